//! Feature bits of a version 3 header, and the table of their names.

use super::LayoutError;
use bitflags::bitflags;

bitflags! {
    /// Features without which an image cannot be used.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// Refcounts may be wrong: the image was not closed.
        const DIRTY = 1 << 0;
        /// Any structure may be wrong: not to be written to.
        const CORRUPT = 1 << 1;
        /// Guest data is in another file.
        const EXTERNAL_DATA_FILE = 1 << 2;
        /// Compressed clusters are not deflated.
        const COMPRESSION_TYPE = 1 << 3;
        /// L2 entries have subclusters.
        const EXTENDED_L2 = 1 << 4;
        const _ = !0;
    }

    /// Features that may be ignored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compatible: u64 {
        /// Refcounts may be updated late, under the dirty bit.
        const LAZY_REFCOUNTS = 1 << 0;
        const _ = !0;
    }

    /// Features that a writer which does not know them clears.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Autoclear: u64 {
        /// The bitmaps are consistent with the data.
        const BITMAPS = 1 << 0;
        /// The external data file is a raw image by itself.
        const RAW_EXTERNAL_DATA = 1 << 1;
        const _ = !0;
    }
}

impl Incompatible {
    /// The bits that the specification gives a meaning.
    pub const KNOWN: Self = Self::DIRTY
        .union(Self::CORRUPT)
        .union(Self::EXTERNAL_DATA_FILE)
        .union(Self::COMPRESSION_TYPE)
        .union(Self::EXTENDED_L2);
}

/// Which of the three bit masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Incompatible features.
    Incompatible,
    /// Compatible features.
    Compatible,
    /// Autoclear features.
    Autoclear,
    /// A mask that the specification does not know.
    Unknown(u8),
}

/// An entry of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// Which mask.
    pub kind: Kind,
    /// Which bit of it.
    pub bit: u8,
    /// What to call it.
    pub name: String,
}

/// Bytes of an entry.
const ENTRY: usize = 48;

impl FeatureName {
    /// Parses the table. Names are only for people, so what is not UTF-8 is replaced.
    pub(super) fn parse_all(data: &[u8]) -> super::Result<Vec<Self>> {
        if !data.len().is_multiple_of(ENTRY) {
            let rule = "is not a multiple of its entries' length";
            return Err(LayoutError::field("length of the feature name table", data.len(), rule));
        }
        let entry = |entry: &[u8]| {
            let name = &entry[2..];
            let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
            let kind = match entry[0] {
                0 => Kind::Incompatible,
                1 => Kind::Compatible,
                2 => Kind::Autoclear,
                other => Kind::Unknown(other),
            };
            Self { kind, bit: entry[1], name: String::from_utf8_lossy(name).into_owned() }
        };
        Ok(data.chunks_exact(ENTRY).map(entry).collect())
    }

    pub(super) fn encode_all(names: &[Self]) -> Vec<u8> {
        let mut data = Vec::with_capacity(names.len() * ENTRY);
        for FeatureName { kind, bit, name } in names {
            data.push(match kind {
                Kind::Incompatible => 0,
                Kind::Compatible => 1,
                Kind::Autoclear => 2,
                Kind::Unknown(other) => *other,
            });
            data.push(*bit);
            let mut padded = [0; ENTRY - 2];
            // Replaced characters may have made it longer than it was.
            let length = name.len().min(padded.len());
            padded[..length].copy_from_slice(&name.as_bytes()[..length]);
            data.extend_from_slice(&padded);
        }
        data
    }
}
