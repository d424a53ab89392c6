//! An L1 table entry: where an L2 table is.

use super::{COPIED, OFFSET_MASK};

/// An L1 table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// An entry that points to an L2 table.
    pub fn new(l2_table_offset: u64, copied: bool) -> Self {
        Self((l2_table_offset & OFFSET_MASK) | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table is, if there is one. May be no multiple of the cluster size in a corrupt image.
    pub fn l2_table_offset(self) -> Option<u64> {
        Some(self.0 & OFFSET_MASK).filter(|offset| *offset != 0)
    }

    /// Whether the entry says that the L2 table's refcount is exactly one.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Whether bits are set that should not be.
    pub fn reserved(self) -> bool {
        self.0 & !(COPIED | OFFSET_MASK) != 0
    }
}

/// The entries of a table's bytes; a last piece of an entry is left out.
pub fn entries(table: &[u8]) -> impl Iterator<Item = L1Entry> + '_ {
    table.as_chunks::<8>().0.iter().map(|raw| L1Entry(u64::from_be_bytes(*raw)))
}
