//! Pages of our own, for data that the controller cannot be pointed to.
//!
//! Each queue has some; a command takes as many as its data needs, as a chain, wherever they are: PRPs describe pages in
//! any order. When there are none left, requests wait for those of others to come back.

use block_core::Segment;
use block_core::segments;

use crate::dma::{DmaBuffer, DmaRange};

/// No page.
const NIL: u16 = u16::MAX;

/// A queue's pages.
pub(super) struct BouncePages {
    memory: DmaBuffer,
    page_size: usize,
    /// For each page the next one, of its chain or of the free ones.
    next: Box<[u16]>,
    free: u16,
    free_count: usize,
}

/// Pages that belong to one command. To be given back by [`BouncePages::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Chain(u16);

impl BouncePages {
    /// Makes pages of the memory, of the controller's memory page size.
    pub(super) fn new(memory: DmaBuffer, page_size: usize) -> Self {
        let pages = (memory.len() / page_size).min(usize::from(NIL));
        let next = (0..pages).map(|page| if page + 1 < pages { page as u16 + 1 } else { NIL }).collect();
        let free = if pages > 0 { 0 } else { NIL };
        Self { memory, page_size, next, free, free_count: pages }
    }

    /// Takes pages for `len` bytes, more than 0; `None`: there are not so many left.
    pub(super) fn take(&mut self, len: usize) -> Option<Chain> {
        let pages = len.div_ceil(self.page_size);
        if pages == 0 || pages > self.free_count {
            return None;
        }
        let first = self.free;
        let mut last = first;
        for _ in 1..pages {
            last = self.next[usize::from(last)];
        }
        self.free = std::mem::replace(&mut self.next[usize::from(last)], NIL);
        self.free_count -= pages;
        Some(Chain(first))
    }

    /// Gives pages back. The controller does not touch them any more.
    pub(super) fn give_back(&mut self, chain: Chain) {
        let mut last = chain.0;
        self.free_count += 1;
        while self.next[usize::from(last)] != NIL {
            last = self.next[usize::from(last)];
            self.free_count += 1;
        }
        self.next[usize::from(last)] = self.free;
        self.free = chain.0;
    }

    /// Calls `each` for the pieces of bytes `skip..skip + len` of a chain: offset in the memory, and length.
    fn pieces(&self, chain: &Chain, mut skip: usize, mut len: usize, mut each: impl FnMut(usize, usize)) {
        let mut page = chain.0;
        while len > 0 && page != NIL {
            if skip < self.page_size {
                let n = (self.page_size - skip).min(len);
                each(usize::from(page) * self.page_size + skip, n);
                len -= n;
                skip = 0;
            } else {
                skip -= self.page_size;
            }
            page = self.next[usize::from(page)];
        }
    }

    /// Appends where the controller finds bytes `skip..skip + len` of a chain.
    pub(super) fn describe(&self, chain: &Chain, skip: usize, len: usize, ranges: &mut Vec<DmaRange>) {
        self.pieces(chain, skip, len, |at, n| ranges.push(self.memory.range(at..at + n)));
    }

    /// Copies bytes `from..from + len` of segments to bytes `to..to + len` of a chain.
    ///
    /// # Safety
    ///
    /// Each segment is valid for reads of its length.
    pub(super) unsafe fn fill(
        &self,
        chain: &Chain,
        to: usize,
        segments: &[Segment],
        from: usize,
        len: usize,
    ) {
        let mut from = from;
        self.pieces(chain, to, len, |at, n| {
            // SAFETY: `pieces` stays inside the chain's pages, which are inside the memory; segments are the caller's,
            // and cannot overlap memory that only this driver knows of.
            unsafe { segments::gather(segments, from, self.memory.as_ptr().add(at), n) };
            from += n;
        });
    }

    /// Copies bytes `from..from + len` of a chain to bytes `to..to + len` of segments.
    ///
    /// # Safety
    ///
    /// Each segment is valid for writes of its length.
    pub(super) unsafe fn drain(
        &self,
        chain: &Chain,
        from: usize,
        segments: &[Segment],
        to: usize,
        len: usize,
    ) {
        let mut to = to;
        self.pieces(chain, from, len, |at, n| {
            // SAFETY: as in `fill`.
            unsafe { segments::scatter(self.memory.as_ptr().add(at), segments, to, n) };
            to += n;
        });
    }

    /// Fills bytes `to..to + len` of a chain with zeroes.
    pub(super) fn zero(&self, chain: &Chain, to: usize, len: usize) {
        self.pieces(chain, to, len, |at, n| self.memory.fill(at..at + n, 0));
    }
}
