//! A submission queue (NVM Express Base Specification 2.0, 3.3.3): fetched from by one reactor.

use super::completion_queue::InvalidDoorbell;
use super::doorbell::Doorbell;
use crate::memory::{Access, Mapping, MemoryMap};
use nvme_spec::SubmissionQueueEntry;
use std::ptr::NonNull;
use std::sync::Arc;

/// What Create I/O Submission Queue (or AQA and ASQ) say of a queue, checked.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SubmissionQueueParameters {
    /// Entries, at least 2.
    pub(crate) size: u32,
    pub(crate) id: u16,
    /// Its completion queue.
    pub(crate) cqid: u16,
    /// I/O virtual address, a multiple of the memory page size.
    pub(crate) base: u64,
}

/// A look and a command take its first cache line only: up to the queue's size and identifier.
#[repr(C, align(64))]
pub(crate) struct SubmissionQueue {
    pub(crate) doorbell: Doorbell,
    ring: Option<NonNull<[u64; 8]>>,
    head: u32,
    tail: u32,
    /// Commands fetched and not completed.
    pub(crate) in_flight: u32,
    /// Where its completion queue is among the shard's.
    cq: u16,
    /// Set when it is to go as soon as nothing of it is in flight.
    pub(crate) deleting: bool,
    pub(crate) parameters: SubmissionQueueParameters,
    rejected: Option<u32>,
    /// What `ring` lies in.
    memory: Option<Arc<Mapping>>,
}

const _: () = assert!(std::mem::offset_of!(SubmissionQueue, parameters.base) == 64);

impl SubmissionQueue {
    pub(crate) fn new(
        parameters: SubmissionQueueParameters,
        doorbell: Doorbell,
        cq: usize,
        map: &MemoryMap,
    ) -> Self {
        let mut this = Self {
            parameters,
            doorbell,
            // There are no more than one page has doorbells for.
            cq: cq as u16,
            ring: None,
            head: 0,
            tail: 0,
            rejected: None,
            in_flight: 0,
            deleting: false,
            memory: None,
        };
        this.remap(map);
        this
    }

    /// Where its completion queue is among the shard's.
    #[inline]
    pub(crate) fn cq(&self) -> usize {
        usize::from(self.cq)
    }

    /// Finds its entries in a new map. While they are in no mapped memory, nothing is fetched.
    pub(crate) fn remap(&mut self, map: &MemoryMap) {
        let len = self.parameters.size as usize * size_of::<SubmissionQueueEntry>();
        let (range, memory) = map.retain(self.parameters.base, len, Access::Read).ok().unzip();
        self.ring = range.and_then(|range| NonNull::new(range.base().cast()));
        self.memory = memory;
    }

    /// Reads the tail doorbell; answers how many entries wait.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<u32, InvalidDoorbell> {
        let tail = self.doorbell.load();
        if tail != self.tail {
            if tail >= self.parameters.size {
                let known = self.rejected.replace(tail) == Some(tail);
                return if known { Ok(self.waiting()) } else { Err(InvalidDoorbell) };
            }
            self.rejected = None;
            self.tail = tail;
            if self.doorbell.has_event_index() {
                self.doorbell.suppress(tail, self.parameters.size);
            }
        }
        Ok(self.waiting())
    }

    /// Entries that wait, as of the last look.
    #[inline]
    pub(crate) fn waiting(&self) -> u32 {
        if self.deleting || self.ring.is_none() {
            0
        } else if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.tail + self.parameters.size - self.head
        }
    }

    /// Copies the entry at the head, which must be a waiting one, and leaves it there.
    #[inline]
    pub(crate) fn peek(&self) -> Option<SubmissionQueueEntry> {
        self.entry(self.head)
    }

    /// Copies the entry behind the one at the head, if that is waiting too. The guest may still change it before it is
    /// fetched: good for hints, and nothing else.
    #[inline]
    pub(crate) fn peek_behind(&self) -> Option<SubmissionQueueEntry> {
        let next = if self.head + 1 == self.parameters.size { 0 } else { self.head + 1 };
        if next == self.tail { None } else { self.entry(next) }
    }

    #[inline]
    fn entry(&self, index: u32) -> Option<SubmissionQueueEntry> {
        let ring = self.ring?;
        debug_assert!(index < self.parameters.size);
        // SAFETY: `remap` checked that the ring's `size` entries lie in mapped memory, which `memory` keeps
        // mapped; `index` is below `size`. The one volatile read is the only one: the guest may write the entry
        // at any time, and only the copy is looked at.
        let words = unsafe { ring.add(index as usize).read_volatile() };
        Some(zerocopy::transmute!(words))
    }

    /// Consumes the entry at the head.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.head += 1;
        if self.head == self.parameters.size {
            self.head = 0;
        }
    }

    /// The head, as completions report it.
    #[inline]
    pub(crate) fn head(&self) -> u16 {
        // Sizes are at most 65536, so indexes fit.
        self.head as u16
    }

    /// The tail as it was last seen.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// Whether its doorbell has moved since the last look.
    pub(crate) fn rung(&self) -> bool {
        let value = self.doorbell.load();
        value != self.tail && self.rejected != Some(value) && !self.deleting
    }
}
