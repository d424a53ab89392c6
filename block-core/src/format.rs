//! Which format a disk has: what its name and `format=` say, never what a guest could have written into it.
//!
//! `format=` decides, or else the name: `.qcow2` is qcow2, anything else raw. The header only has to agree: a file whose
//! name says raw and whose first bytes say qcow2 is refused until somebody says which, and so is the reverse.

use crate::spec::{DiskSpec, SpecError};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The first bytes of every qcow2 image (QEMU's `docs/interop/qcow2.rst`).
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// What a disk's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Themselves.
    Raw,
    /// An image of [`crate::qcow2`].
    Qcow2,
}

impl Format {
    /// All of them, by their names.
    pub const WORDS: &[(&str, Self)] = &[("raw", Self::Raw), ("qcow2", Self::Qcow2)];
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, format)| *format).ok_or_else(|| {
            let known: Vec<_> = Self::WORDS.iter().map(|(word, _)| *word).collect();
            format!("`{text}` is no format that ringpair knows: {}", known.join(", "))
        })
    }
}

/// Takes `format=` out of a spec.
///
/// # Errors
///
/// A format that does not exist.
pub fn take(spec: &mut DiskSpec) -> Result<Option<Format>, SpecError> {
    spec.take_word("format", Format::WORDS)
}

/// The format that a name says.
pub fn of_name(location: &str) -> Format {
    let extension = Path::new(location).extension();
    match extension.is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2")) {
        true => Format::Qcow2,
        false => Format::Raw,
    }
}
