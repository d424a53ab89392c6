//! Refcounts: the table, and the blocks that it points to.

/// A refcount table entry: where a refcount block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry(pub u64);

impl TableEntry {
    const MASK: u64 = !0x1ff;

    /// Where the block is, if there is one. May be no multiple of the cluster size in a corrupt image.
    pub fn block_offset(self) -> Option<u64> {
        Some(self.0 & Self::MASK).filter(|offset| *offset != 0)
    }

    /// Whether bits are set that should not be.
    pub fn reserved(self) -> bool {
        self.0 & !Self::MASK != 0
    }
}

/// How many refcounts a block has.
pub fn block_entries(cluster_bits: u32, refcount_order: u32) -> u64 {
    1 << (cluster_bits + 3 - refcount_order)
}

/// The largest refcount of a width.
pub fn max(refcount_order: u32) -> u64 {
    u64::MAX >> (64 - (1u32 << refcount_order))
}

/// A refcount of a block's bytes, or 0 beyond their end.
pub fn get(block: &[u8], index: usize, refcount_order: u32) -> u64 {
    if refcount_order < 3 {
        let Some(byte) = block.get(index >> (3 - refcount_order)) else { return 0 };
        let shift = (index << refcount_order) & 7;
        return u64::from(byte >> shift) & max(refcount_order);
    }
    let bytes = 1usize << (refcount_order - 3);
    let Some(raw) = index.checked_mul(bytes).and_then(|at| block.get(at..at.checked_add(bytes)?)) else {
        return 0;
    };
    raw.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets a refcount of a block's bytes. One that is too large, or beyond the end, is refused.
#[must_use]
pub fn set(block: &mut [u8], index: usize, refcount_order: u32, value: u64) -> bool {
    if value > max(refcount_order) {
        return false;
    }
    if refcount_order < 3 {
        let Some(byte) = block.get_mut(index >> (3 - refcount_order)) else { return false };
        let shift = (index << refcount_order) & 7;
        *byte = *byte & !((max(refcount_order) as u8) << shift) | (value as u8) << shift;
        return true;
    }
    let bytes = 1usize << (refcount_order - 3);
    let raw = index.checked_mul(bytes).and_then(|at| block.get_mut(at..at.checked_add(bytes)?));
    let Some(raw) = raw else { return false };
    raw.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    true
}
