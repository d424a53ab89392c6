//! Physical Region Pages (Base 2.0, 4.1.1).
//!
//! A PRP entry is an address; the first of a command may have an offset into its memory page, the others may not,
//! and one that points to a PRP list may have an offset that is a multiple of 8. This is the arithmetic of entries;
//! walking lists in a guest's memory is the controller's work, building them the driver's.

/// Size of a PRP entry, in bytes.
pub const ENTRY_SIZE: u64 = 8;

/// Offset of the entry within its memory page of `page_size` bytes (a power of two).
pub const fn offset(entry: u64, page_size: u64) -> u64 {
    entry & (page_size - 1)
}

/// How many memory pages `length` bytes touch that start `offset` bytes into a page: as many PRP entries describe
/// them.
pub const fn entries(offset: u64, length: u64, page_size: u64) -> u64 {
    // In 128 bits, so that no length overflows.
    ((offset as u128 + length as u128).div_ceil(page_size as u128)) as u64
}

/// How many entries a list holds that starts at `list_address`, up to the end of its memory page.
pub const fn entries_in_list(list_address: u64, page_size: u64) -> u64 {
    (page_size - offset(list_address, page_size)) / ENTRY_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_may_cost_one_entry_more() {
        assert_eq!(entries(0, 8192, 4096), 2);
        assert_eq!(entries(512, 8192, 4096), 3);
        assert_eq!(entries(512, 3584, 4096), 1);
        assert_eq!(entries(0, 0, 4096), 0);
        assert_eq!(entries(4095, u64::MAX, 4096), 1 << 52 | 1);
    }

    #[test]
    fn a_list_ends_with_its_page() {
        assert_eq!(entries_in_list(0x1_0000, 4096), 512);
        assert_eq!(entries_in_list(0x1_0FF8, 4096), 1);
        assert_eq!(offset(0x1_0FF8, 4096), 0xFF8);
    }
}
