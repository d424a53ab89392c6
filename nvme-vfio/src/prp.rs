//! Building PRP entries and PRP lists (Base Specification, "Physical Region Page Entry and List").

use std::ptr::NonNull;

use crate::dma::DmaRange;

/// The two PRP entries of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prps {
    pub(crate) prp1: u64,
    pub(crate) prp2: u64,
}

/// Why data cannot be described by PRPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrpError {
    /// The data begins at an address that is not a multiple of 4.
    #[error("data begins at I/O virtual address {0:#x}, which is not a multiple of 4")]
    Unaligned(u64),
    /// A piece other than the first begins, or a piece other than the last ends, inside a page.
    #[error("pieces of a command's data meet inside a page, at I/O virtual address {0:#x}")]
    Gap(u64),
    /// It takes more entries than there is room for.
    #[error("data needs a longer PRP list than there is room for")]
    TooLong,
}

/// Pages for one command's PRP list, one after another in the controller's address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrpListPages {
    /// First entry, aligned to a page.
    pub(crate) base: NonNull<u64>,
    /// I/O virtual address of the first entry.
    pub(crate) iova: u64,
    /// How many pages.
    pub(crate) pages: usize,
    /// Memory page size (CC.MPS), in bytes.
    pub(crate) page_size: u64,
}

/// How many list pages a transfer of `len` bytes may need, wherever it begins.
pub(crate) fn list_pages(len: u64, page_size: u64) -> usize {
    // PRP1 takes the first page; with an offset in it there is one more in all.
    let entries = len.div_ceil(page_size);
    if entries < 2 {
        return 0;
    }
    // Of each page but the last, one entry leads to the next.
    let in_page = page_size / 8;
    (entries - 1).div_ceil(in_page - 1).max(1) as usize
}

/// Describes `data` by two PRP entries and, if it takes more, a list in `list`.
#[inline]
pub(crate) fn build(data: &[DmaRange], list: &PrpListPages) -> Result<Prps, PrpError> {
    let page_mask = list.page_size - 1;
    if let [DmaRange { iova, len }] = *data {
        // What nearly all commands look like: one piece in at most two pages.
        let first = list.page_size - (iova & page_mask);
        let len = u64::from(len);
        if len <= first + list.page_size {
            let prp2 = if len > first { iova.wrapping_add(first) } else { 0 };
            return if iova & 3 == 0 {
                Ok(Prps { prp1: iova, prp2 })
            } else {
                Err(PrpError::Unaligned(iova))
            };
        }
    }
    build_list(data, list)
}

/// [`build`] for any number of pieces and pages.
fn build_list(data: &[DmaRange], list: &PrpListPages) -> Result<Prps, PrpError> {
    let page_mask = list.page_size - 1;
    let mut builder = Builder { list, prps: Prps::default(), entries: 0, next: 0 };
    let mut end = 0;
    for piece in data.iter().filter(|piece| piece.len != 0) {
        if builder.entries == 0 {
            if piece.iova & 3 != 0 {
                return Err(PrpError::Unaligned(piece.iova));
            }
        } else if (piece.iova | end) & page_mask != 0 {
            return Err(PrpError::Gap(piece.iova));
        }
        // The first page from where the piece begins, the others from their beginnings.
        let mut page = piece.iova;
        let mut left = u64::from(piece.len);
        while left > 0 {
            builder.push(page)?;
            let in_page = (list.page_size - (page & page_mask)).min(left);
            page = page.wrapping_add(in_page);
            left -= in_page;
        }
        end = page;
    }
    Ok(builder.prps)
}

/// Puts page after page where the specification wants it.
struct Builder<'a> {
    list: &'a PrpListPages,
    prps: Prps,
    /// How many pages there are so far.
    entries: usize,
    /// The next free entry, counted from the first of the first list page.
    next: usize,
}

impl Builder<'_> {
    fn push(&mut self, page: u64) -> Result<(), PrpError> {
        match self.entries {
            0 => self.prps.prp1 = page,
            1 => self.prps.prp2 = page,
            2 => {
                let second = std::mem::replace(&mut self.prps.prp2, self.list.iova);
                self.append(second)?;
                self.append(page)?;
            }
            _ => self.append(page)?,
        }
        self.entries += 1;
        Ok(())
    }

    fn append(&mut self, page: u64) -> Result<(), PrpError> {
        let in_page = (self.list.page_size / 8) as usize;
        if self.next >= self.list.pages * in_page {
            return Err(PrpError::TooLong);
        }
        if self.next > 0 && self.next.is_multiple_of(in_page) {
            // One more than fits: the last entry of the full page moves, and leads to where it has moved.
            let last = self.next - 1;
            let moved = self.read(last);
            self.write(last, self.list.iova + 8 * self.next as u64);
            self.write(self.next, moved);
            self.next += 1;
        }
        self.write(self.next, page);
        self.next += 1;
        Ok(())
    }

    fn read(&self, entry: usize) -> u64 {
        // SAFETY: `entry` is one that `append` has checked to be inside the list's pages and has written.
        u64::from_le(unsafe { self.list.base.add(entry).read_volatile() })
    }

    fn write(&self, entry: usize, value: u64) {
        // SAFETY: `append` has checked that the page of `entry` is one of the list's.
        unsafe { self.list.base.add(entry).write_volatile(value.to_le()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const LIST_IOVA: u64 = 0x7000_0000;

    struct List {
        entries: Vec<u64>,
    }

    impl List {
        fn new(pages: usize) -> Self {
            Self { entries: vec![u64::MAX; pages * 512] }
        }

        fn build(&mut self, data: &[DmaRange]) -> Result<Prps, PrpError> {
            let base = NonNull::new(self.entries.as_mut_ptr()).unwrap();
            let pages = self.entries.len() / 512;
            build(data, &PrpListPages { base, iova: LIST_IOVA, pages, page_size: PAGE })
        }

        /// What a controller makes of it: the specification's rules read from the other side.
        fn walk(&self, prps: Prps, len: u64) -> Vec<(u64, u64)> {
            let mut pieces = Vec::new();
            let mut left = len;
            let mut take = |address: u64, left: &mut u64| {
                let n = (*left).min(PAGE - address % PAGE);
                pieces.push((address, n));
                *left -= n;
            };
            take(prps.prp1, &mut left);
            if left == 0 {
                assert_eq!(prps.prp2, 0);
            } else if left <= PAGE {
                assert_eq!(prps.prp2 % PAGE, 0);
                take(prps.prp2, &mut left);
            } else {
                let mut at = prps.prp2;
                while left > 0 {
                    let entry = self.entries[((at - LIST_IOVA) / 8) as usize];
                    assert_eq!(entry % PAGE, 0, "offsets are 0 in a list");
                    if at % PAGE == PAGE - 8 && left > PAGE {
                        at = entry;
                    } else {
                        take(entry, &mut left);
                        at += 8;
                    }
                }
            }
            pieces
        }
    }

    /// Merges what is contiguous, so that pieces can be compared with ranges.
    fn merged(pieces: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (iova, len) in pieces {
            match out.last_mut() {
                Some((first, sum)) if *first + *sum == iova => *sum += len,
                _ => out.push((iova, len)),
            }
        }
        out
    }

    #[test]
    fn one_page_needs_no_second_entry() {
        let prps = List::new(0).build(&[DmaRange { iova: 0x10010, len: 4080 }]);
        assert_eq!(prps, Ok(Prps { prp1: 0x10010, prp2: 0 }));
    }

    #[test]
    fn two_pages_need_no_list() {
        let prps = List::new(0).build(&[DmaRange { iova: 0x10010, len: 8176 }]);
        assert_eq!(prps, Ok(Prps { prp1: 0x10010, prp2: 0x11000 }));
    }

    #[test]
    fn three_pages_need_a_list_of_two() {
        let mut list = List::new(1);
        let prps = list.build(&[DmaRange { iova: 0x10010, len: 8177 }]);
        assert_eq!(prps, Ok(Prps { prp1: 0x10010, prp2: LIST_IOVA }));
        assert_eq!(list.entries[..3], [0x11000, 0x12000, u64::MAX]);
    }

    #[test]
    fn a_list_that_just_fits_its_page_is_not_chained() {
        let mut list = List::new(1);
        let prps = list.build(&[DmaRange { iova: 0x100000, len: 513 * 4096 }]).unwrap();
        assert_eq!(list.walk(prps, 513 * PAGE).len(), 513);
        assert_eq!(list.entries[511], 0x100000 + 512 * PAGE);
    }

    #[test]
    fn a_list_that_just_does_not_is() {
        let mut list = List::new(2);
        let prps = list.build(&[DmaRange { iova: 0x100000, len: 514 * 4096 }]).unwrap();
        assert_eq!(list.walk(prps, 514 * PAGE).len(), 514);
        assert_eq!(list.entries[511], LIST_IOVA + PAGE);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(
            List::new(1).build(&[DmaRange { iova: 0x100000, len: 514 * 4096 }]),
            Err(PrpError::TooLong)
        );
        assert_eq!(List::new(0).build(&[DmaRange { iova: 0x100000, len: 3 * 4096 }]), Err(PrpError::TooLong));
    }

    #[test]
    fn data_begins_at_a_dword() {
        assert_eq!(
            List::new(0).build(&[DmaRange { iova: 0x1002, len: 512 }]),
            Err(PrpError::Unaligned(0x1002))
        );
        let long = DmaRange { iova: 0x1002, len: 16384 };
        assert_eq!(List::new(1).build(&[long]), Err(PrpError::Unaligned(0x1002)));
    }

    #[test]
    fn pieces_meet_at_page_boundaries_only() {
        let page = |iova| DmaRange { iova, len: 4096 };
        let half = |iova| DmaRange { iova, len: 2048 };
        assert_eq!(List::new(1).build(&[half(0x1000), half(0x2000)]), Err(PrpError::Gap(0x2000)));
        assert_eq!(List::new(1).build(&[page(0x1000), half(0x2800)]), Err(PrpError::Gap(0x2800)));
        assert!(List::new(1).build(&[half(0x1800), page(0x9000), half(0x5000)]).is_ok());
    }

    proptest! {
        #[test]
        fn a_controller_finds_each_byte_where_it_is(
            offset in (0..1024u64).prop_map(|dword| dword * 4),
            pieces in proptest::collection::vec((1..1u64 << 30, 1..300u64), 1..6),
            tail in 1..=PAGE,
        ) {
            let last = pieces.len() - 1;
            let mut data: Vec<DmaRange> = Vec::new();
            for (index, (page, pages)) in pieces.into_iter().enumerate() {
                let mut iova = page * PAGE;
                let mut len = pages * PAGE;
                if index == last {
                    len = len - PAGE + tail;
                }
                if index == 0 {
                    iova += offset;
                    len = len.saturating_sub(offset).max(if last == 0 { 1 } else { 0 });
                }
                if len > 0 {
                    data.push(DmaRange { iova, len: len as u32 });
                }
            }
            prop_assume!(data[0].iova.is_multiple_of(4));
            let total: u64 = data.iter().map(|piece| u64::from(piece.len)).sum();
            let mut list = List::new(list_pages(total, PAGE));
            let prps = list.build(&data).unwrap();
            let expected = merged(data.iter().map(|piece| (piece.iova, u64::from(piece.len))));
            prop_assert_eq!(merged(list.walk(prps, total)), expected);
        }
    }
}
