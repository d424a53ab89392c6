//! The structures of a qcow2 image as they are on the medium, and nothing that does I/O.
//!
//! Each file here is one structure of QEMU's `docs/interop/qcow2.rst`, whose words are used for the fields. Whatever
//! is parsed may come from a stranger: every length, offset and count is checked against the specification and against
//! QEMU's own limits before it is used, the arithmetic cannot overflow, and what is kept in memory is bounded by the bytes
//! that were passed in.
//!
//! Start reading at [`Header`]; [`Header::unsupported`] says what of an image the rest of ringpair cannot use.

pub mod bitmap;
pub mod extension;
pub mod feature;
pub mod header;
pub mod l1;
pub mod l2;
pub mod refcount;
pub mod snapshot;
pub mod unsupported;

pub use crate::format::QCOW2_MAGIC as MAGIC;
pub use bitmap::Bitmap;
pub use extension::Extension;
pub use header::{Crypt, Header, Version};
pub use l1::L1Entry;
pub use l2::{HostCluster, L2Entry, L2Format};
pub use snapshot::Snapshot;
pub use unsupported::Unsupported;

/// Smallest and largest `cluster_bits` (the specification's limit, and QEMU's).
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Largest cluster in bytes: whoever has so much of an image's beginning has its whole header.
pub const MAX_CLUSTER_SIZE: usize = 1 << *CLUSTER_BITS.end();

/// Bits 9 to 55, where L1 and L2 entries keep an offset into the image file.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Bit 63 of L1 and L2 entries: what it points to has a refcount of exactly one.
pub const COPIED: u64 = 1 << 63;

/// Largest L1 table, in bytes (QEMU's limit).
pub const MAX_L1_SIZE: u64 = 32 << 20;

/// Largest refcount table, in bytes (QEMU's limit).
pub const MAX_REFCOUNT_TABLE_SIZE: u64 = 8 << 20;

/// What is wrong with an image's metadata. Each is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It does not begin as a qcow2 image does.
    #[error("not a qcow2 image")]
    NotQcow2,
    /// A version that is neither 2 nor 3.
    #[error("qcow2 version {0} is unknown (2 and 3 are known)")]
    Version(u32),
    /// A structure ends before its last byte.
    #[error("the {0} is cut off")]
    Short(&'static str),
    /// A field has a value that it must not have.
    #[error("{field} is {value}, which {rule}")]
    Field {
        /// The specification's name of the field.
        field: &'static str,
        /// Its value, as a person reads it.
        value: String,
        /// What is wrong with it ("is not a multiple of the cluster size").
        rule: &'static str,
    },
}

impl LayoutError {
    fn field(field: &'static str, value: impl std::fmt::Display, rule: &'static str) -> Self {
        Self::Field { field, value: value.to_string(), rule }
    }
}

/// A result of parsing.
pub type Result<T> = std::result::Result<T, LayoutError>;

/// Checks that a table begins at a multiple of the cluster size and ends where an offset can still point to.
fn check_table(field: &'static str, offset: u64, bytes: u64, cluster_bits: u32) -> Result<()> {
    if !offset.is_multiple_of(1 << cluster_bits) {
        return Err(LayoutError::field(
            field,
            format_args!("{offset:#x}"),
            "is not a multiple of the cluster size",
        ));
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= OFFSET_MASK => Ok(()),
        _ => Err(LayoutError::field(field, format_args!("{offset:#x}"), "is beyond the largest file")),
    }
}

/// Text of the image: a name that a person gave.
fn text(field: &'static str, bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => {
            Err(LayoutError::field(field, String::from_utf8_lossy(bytes).escape_debug(), "is not UTF-8"))
        }
    }
}

#[cfg(test)]
mod tests;
