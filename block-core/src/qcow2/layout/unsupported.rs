//! What of an image ringpair cannot use.

use super::feature::{Incompatible, Kind};
use super::{Crypt, Extension, Header};
use crate::qcow2::compressed::Compression;
use std::fmt;

/// Something in an image that ringpair does not support, and so does not open as a disk. Printed, it is one line that
/// names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Guest data is encrypted.
    Encryption(Crypt),
    /// Guest data is compressed, or would be, by a method that is neither zlib nor zstd.
    Compression(u8),
    /// L2 entries with subclusters, which are only read.
    ExtendedL2,
    /// The image was not closed, and its refcounts have to be repaired first.
    Dirty,
    /// Somebody found the image corrupt.
    Corrupt,
    /// Features that nobody here knows, by the names that the image gives them.
    Unknown(Vec<String>),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Encryption(Crypt::Luks) => "LUKS encryption".to_owned(),
            Self::Encryption(_) => "AES encryption".to_owned(),
            Self::Compression(other) => format!("compression type {other}"),
            Self::Unknown(names) => format!("features that ringpair does not know: {}", names.join(", ")),
            Self::ExtendedL2 => {
                return f.write_str(
                    "image uses extended L2 entries (subclusters), which ringpair reads and does not write: \
                     readonly=on",
                );
            }
            Self::Dirty => {
                return f.write_str(
                    "image was not closed and its refcounts may be wrong (dirty bit): repair it first, with \
                     `ringpair img check -r all`",
                );
            }
            Self::Corrupt => {
                return f.write_str(
                    "image was found to be corrupt (corrupt bit): repair it first, with `ringpair img check -r all`",
                );
            }
        };
        match self {
            Self::Unknown(_) => write!(f, "image uses {what}"),
            _ => write!(f, "image uses {what}, which ringpair does not support"),
        }
    }
}

impl std::error::Error for Unsupported {}

impl Unsupported {
    /// Whether it only forbids writing: what a guest may read is all there.
    pub fn can_be_read(&self) -> bool {
        matches!(self, Self::ExtendedL2 | Self::Dirty | Self::Corrupt)
    }
}

impl Header {
    /// What of the image ringpair does not support, if there is something: for whoever opens it as a disk. A person
    /// may have to do something about a dirty or corrupt image, so these come last.
    pub fn unsupported(&self) -> Option<Unsupported> {
        let unknown = self.incompatible_features.difference(Incompatible::KNOWN);
        if !unknown.is_empty() {
            let bits = (0..64u8).filter(|bit| unknown.bits() & (1 << bit) != 0);
            return Some(Unsupported::Unknown(bits.map(|bit| self.incompatible_name(bit)).collect()));
        }
        let has = |feature| self.incompatible_features.contains(feature);
        if self.crypt_method != Crypt::None {
            Some(Unsupported::Encryption(self.crypt_method))
        } else if Compression::of(self.compression_type).is_none() {
            Some(Unsupported::Compression(self.compression_type))
        } else if has(Incompatible::EXTENDED_L2) {
            Some(Unsupported::ExtendedL2)
        } else if has(Incompatible::CORRUPT) {
            Some(Unsupported::Corrupt)
        } else if has(Incompatible::DIRTY) {
            Some(Unsupported::Dirty)
        } else {
            None
        }
    }

    /// What the image calls an incompatible feature.
    fn incompatible_name(&self, bit: u8) -> String {
        let names = self.extensions.iter().filter_map(|extension| match extension {
            Extension::FeatureNames(names) => Some(names),
            _ => None,
        });
        let name = names.flatten().find(|name| name.kind == Kind::Incompatible && name.bit == bit);
        name.map_or_else(
            || format!("incompatible feature {bit}"),
            |name| name.name.escape_debug().to_string(),
        )
    }
}
