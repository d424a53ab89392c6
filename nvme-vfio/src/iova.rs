//! Handing out I/O virtual addresses, inside the windows that the IOMMU leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::transport::DmaLimits;

/// What CPUs and IOMMUs have as the next larger page.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// An address space's I/O virtual addresses, handed out to the device that it belongs to, or to all that share it. Clones
/// are handles to the same one.
#[derive(Clone, Debug)]
pub struct IovaSpace(Arc<Mutex<IovaAllocator>>);

impl IovaSpace {
    /// Addresses of which none is in use. Mappings are made of pages of this process, whatever the IOMMU could do in
    /// smaller ones.
    pub(crate) fn new(limits: &DmaLimits) -> Self {
        let page_size = limits.page_size.max(rustix::param::page_size() as u64);
        Self(Arc::new(Mutex::new(IovaAllocator::new(limits, page_size))))
    }

    fn lock(&self) -> MutexGuard<'_, IovaAllocator> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`IovaAllocator::allocate_pages`].
    pub(crate) fn allocate(&self, len: u64, base: u64, page_size: u64) -> Option<u64> {
        self.lock().allocate_pages(len, base, page_size)
    }

    /// As [`IovaAllocator::release`].
    pub(crate) fn release(&self, iova: u64, len: u64) {
        self.lock().release(iova, len);
    }
}

/// Which I/O virtual addresses are free. First fit: there are few, long-lived mappings.
#[derive(Debug)]
pub(crate) struct IovaAllocator {
    page_size: u64,
    /// First to last address of each free range. Ranges neither overlap nor touch.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// Addresses for mappings that are made of pages of that size, a power of two.
    pub(crate) fn new(limits: &DmaLimits, page_size: u64) -> Self {
        let mut allocator = Self { page_size, free: BTreeMap::new() };
        for window in &limits.windows {
            // Address 0 is legal, but a PRP of 0 is what a forgotten PRP looks like: better that it faults.
            let Some(first) = (*window.start()).max(1).checked_next_multiple_of(page_size) else { continue };
            // Whole pages; with an end that is inclusive, the last page is complete if its last byte is in.
            let Some(pages) = window
                .end()
                .checked_sub(first)
                .map(|span| span / page_size + u64::from(span % page_size == page_size - 1))
            else {
                continue;
            };
            if pages > 0 {
                allocator.free.insert(first, first + (pages * page_size - 1));
            }
        }
        allocator
    }

    /// Takes `len` bytes, a multiple of the page size and not 0, for memory that is at `base` in this process. `None`: no
    /// free range is as long.
    ///
    /// Memory that may be made of huge pages gets an address at which they are huge pages for the IOMMU too.
    #[cfg(test)]
    pub(crate) fn allocate(&mut self, len: u64, base: u64) -> Option<u64> {
        self.allocate_pages(len, base, self.page_size)
    }

    /// The same, of larger pages, for a device that has no smaller ones.
    pub(crate) fn allocate_pages(&mut self, len: u64, base: u64, page_size: u64) -> Option<u64> {
        debug_assert!(len > 0 && len.is_multiple_of(page_size) && page_size >= self.page_size);
        let aligned = if len >= HUGE_PAGE { HUGE_PAGE.max(page_size) } else { page_size };
        let fits = |(first, last): (u64, u64)| {
            let page = first.checked_next_multiple_of(page_size)?;
            let iova = page.checked_add(base.wrapping_sub(page) & (aligned - 1) & !(page_size - 1))?;
            (iova <= last && last - iova >= len - 1).then_some((first, iova, last))
        };
        let (first, iova, last) = self.free.iter().find_map(|(first, last)| fits((*first, *last)))?;
        self.free.remove(&first);
        if iova > first {
            self.free.insert(first, iova - 1);
        }
        if last - iova > len - 1 {
            self.free.insert(iova + len, last);
        }
        Some(iova)
    }

    /// Gives back what [`IovaAllocator::allocate`] gave.
    pub(crate) fn release(&mut self, iova: u64, len: u64) {
        let (mut first, mut last) = (iova, iova + (len - 1));
        if let Some((before, end)) = self.free.range(..iova).next_back().map(|(first, last)| (*first, *last))
        {
            debug_assert!(end < iova, "released twice");
            if end + 1 == iova {
                self.free.remove(&before);
                first = before;
            }
        }
        if let Some(end) = last.checked_add(1).and_then(|after| self.free.remove(&after)) {
            last = end;
        }
        self.free.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn allocator(windows: &[(u64, u64)]) -> IovaAllocator {
        let windows = windows.iter().map(|(first, last)| *first..=*last).collect();
        IovaAllocator::new(&DmaLimits { windows, page_size: PAGE }, PAGE)
    }

    #[test]
    fn address_zero_is_never_handed_out() {
        assert_eq!(allocator(&[(0, 0xffff)]).allocate(PAGE, 0), Some(PAGE));
    }

    #[test]
    fn a_window_may_end_at_the_last_address_there_is() {
        let mut iovas = allocator(&[(u64::MAX - 2 * PAGE + 1, u64::MAX)]);
        let first = iovas.allocate(2 * PAGE, 0).unwrap();
        assert_eq!(first, u64::MAX - 2 * PAGE + 1);
        assert_eq!(iovas.allocate(PAGE, 0), None);
        iovas.release(first, 2 * PAGE);
        assert_eq!(iovas.allocate(PAGE, 0), Some(first));
    }

    #[test]
    fn windows_shrink_to_whole_pages() {
        let mut iovas = allocator(&[(100, 8190), (0x10001, 0x12fff)]);
        assert_eq!(iovas.allocate(2 * PAGE, 0), Some(0x11000));
        assert_eq!(iovas.allocate(PAGE, 0), None);
    }

    #[test]
    fn huge_pages_stay_huge_pages() {
        let mut iovas = allocator(&[(PAGE, (1 << 39) - 1)]);
        let base = 0x7f12_3456_7000;
        let iova = iovas.allocate(HUGE_PAGE, base).unwrap();
        assert_eq!(iova % HUGE_PAGE, base % HUGE_PAGE);
        // What was left before it serves for what is small.
        assert_eq!(iovas.allocate(PAGE, base), Some(PAGE));
        iovas.release(iova, HUGE_PAGE);
        iovas.release(PAGE, PAGE);
        assert_eq!(iovas.free.into_iter().collect::<Vec<_>>(), [(PAGE, (1 << 39) - 1)]);
    }

    #[test]
    fn what_spans_two_windows_is_not_free() {
        // The hole is where x86 has its MSI window.
        let mut iovas = allocator(&[(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
        assert_eq!(iovas.allocate(0xfee0_0000, 0), Some(0xff00_0000));
    }

    #[test]
    fn devices_of_an_address_space_get_addresses_apart_in_pages_of_their_own_sizes() {
        let limits = DmaLimits { windows: std::iter::once(PAGE..=(1 << 30) - 1).collect(), page_size: PAGE };
        let (space, page) = (IovaSpace::new(&limits), 1 << 16);
        let first = space.clone().allocate(PAGE, 0, PAGE).unwrap();
        let second = space.allocate(page, 0, page).unwrap();
        assert_eq!((first, second), (PAGE, page));
        assert_eq!(space.allocate(PAGE, 0, PAGE), Some(2 * PAGE));
        space.release(first, PAGE);
        assert_eq!(space.allocate(PAGE, 0, PAGE), Some(first));
    }

    proptest! {
        #[test]
        fn ranges_are_disjoint_inside_windows_and_all_come_back(
            steps in proptest::collection::vec((any::<bool>(), 1..9u64, any::<usize>()), 1..200)
        ) {
            let windows = [(PAGE, 17 * PAGE - 1), (32 * PAGE, 64 * PAGE - 1)];
            let mut iovas = allocator(&windows);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (take, pages, pick) in steps {
                if take {
                    let len = pages * PAGE;
                    if let Some(iova) = iovas.allocate(len, 0) {
                        prop_assert!(iova.is_multiple_of(PAGE));
                        prop_assert!(windows.iter().any(|(a, b)| iova >= *a && iova + len - 1 <= *b));
                        prop_assert!(held.iter().all(|(i, l)| iova + len <= *i || i + l <= iova));
                        held.push((iova, len));
                    }
                } else if !held.is_empty() {
                    let (iova, len) = held.swap_remove(pick % held.len());
                    iovas.release(iova, len);
                }
            }
            for (iova, len) in held {
                iovas.release(iova, len);
            }
            let free: Vec<_> = iovas.free.into_iter().collect();
            prop_assert_eq!(free, windows.to_vec());
        }
    }
}
