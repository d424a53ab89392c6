//! Which format a disk has: what its name and `format=` say, never what a guest could have written into it.
//!
//! `format=` decides, or else the name: `.qcow2` is qcow2, anything else raw. The header only has to agree: a file whose
//! name says raw and whose first bytes say qcow2 is refused until somebody says which, and so is the reverse.

use crate::spec::{DiskSpec, SpecError};
use std::path::Path;

/// The first bytes of every qcow2 image (QEMU's `docs/interop/qcow2.rst`).
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// What a disk's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Themselves.
    Raw {
        /// Somebody has said so, and so they do whatever they look like.
        said: bool,
    },
    /// An image of [`crate::qcow2`].
    Qcow2,
}

/// Takes `format=` out of a spec, and looks at the name where it does not say.
///
/// # Errors
///
/// A format that does not exist.
pub fn take(spec: &mut DiskSpec) -> Result<Format, SpecError> {
    let words = [("raw", Format::Raw { said: true }), ("qcow2", Format::Qcow2)];
    Ok(spec.take_word("format", &words)?.unwrap_or_else(|| of_name(spec.location())))
}

/// The format that a name says.
pub fn of_name(location: &str) -> Format {
    let extension = Path::new(location).extension();
    match extension.is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2")) {
        true => Format::Qcow2,
        false => Format::Raw { said: false },
    }
}
