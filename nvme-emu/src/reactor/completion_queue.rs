//! A completion queue (NVM Express Base Specification 2.0, 3.3.3): posted to by one reactor, so without a lock.

use super::doorbell::Doorbell;
use crate::memory::{Access, Mapping, MemoryMap};
use nvme_spec::CompletionQueueEntry;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What Create I/O Completion Queue (or AQA and ACQ) say of a queue, checked.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct CompletionQueueParameters {
    /// Entries, at least 2.
    pub(crate) size: u32,
    pub(crate) vector: u16,
    pub(crate) interrupts: bool,
    /// I/O virtual address, a multiple of the memory page size.
    pub(crate) base: u64,
    pub(crate) id: u16,
}

/// The doorbell's value cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidDoorbell;

/// A command takes its first cache line only: up to whether there are interrupts.
#[repr(C, align(64))]
pub(crate) struct CompletionQueue {
    pub(crate) doorbell: Doorbell,
    /// The entries, where guest memory has them; `None` while that memory is not mapped.
    ring: Option<NonNull<[AtomicU64; 2]>>,
    tail: u32,
    head: u32,
    /// Places that commands in flight have been promised.
    reserved: u32,
    phase: u16,
    /// Whether it asserts the pin.
    pub(crate) asserts_pin: bool,
    pub(crate) parameters: CompletionQueueParameters,
    /// Completions posted since the last interrupt, if it has any.
    pub(crate) uninterrupted: u32,
    /// What there was no place for: only what nothing was reserved for comes here (admin queue, memory gone).
    backlog: VecDeque<CompletionQueueEntry>,
    /// A doorbell value that was found invalid, and has been reported.
    rejected: Option<u32>,
    /// Since when an interrupt waits for more completions (coalescing).
    pub(crate) waiting_since: Option<Instant>,
    /// What `ring` lies in.
    memory: Option<Arc<Mapping>>,
}

const _: () = assert!(std::mem::offset_of!(CompletionQueue, parameters.base) == 64);

impl CompletionQueue {
    pub(crate) fn new(parameters: CompletionQueueParameters, doorbell: Doorbell, map: &MemoryMap) -> Self {
        let mut this = Self {
            parameters,
            doorbell,
            ring: None,
            tail: 0,
            head: 0,
            phase: 1,
            reserved: 0,
            backlog: VecDeque::new(),
            rejected: None,
            uninterrupted: 0,
            waiting_since: None,
            asserts_pin: false,
            memory: None,
        };
        this.remap(map);
        this
    }

    /// Finds its entries in a new map.
    pub(crate) fn remap(&mut self, map: &MemoryMap) {
        let len = self.parameters.size as usize * size_of::<CompletionQueueEntry>();
        let (range, memory) = map.retain(self.parameters.base, len, Access::Write).ok().unzip();
        self.ring = range.and_then(|range| NonNull::new(range.base().cast()));
        self.memory = memory;
    }

    /// Entries that the guest has not taken yet, as far as is known.
    #[inline]
    fn used(&self) -> u32 {
        if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.tail + self.parameters.size - self.head
        }
    }

    /// Reads the head doorbell.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<(), InvalidDoorbell> {
        let head = self.doorbell.load();
        if head == self.head {
            return Ok(());
        }
        self.move_head(head)
    }

    fn move_head(&mut self, head: u32) -> Result<(), InvalidDoorbell> {
        let size = self.parameters.size;
        let taken = if head >= self.head { head - self.head } else { (head + size).wrapping_sub(self.head) };
        if head >= size || taken > self.used() {
            // Reported once; what is in memory stays there until the guest writes something else.
            let known = self.rejected.replace(head) == Some(head);
            return if known { Ok(()) } else { Err(InvalidDoorbell) };
        }
        self.rejected = None;
        self.head = head;
        Ok(())
    }

    /// Promises a place to a command, if there is one; reads the doorbell only if there seems to be none.
    #[inline]
    pub(crate) fn reserve(&mut self) -> Result<bool, InvalidDoorbell> {
        let room = self.parameters.size - 1;
        if self.used() + self.reserved >= room {
            self.look()?;
            if self.used() + self.reserved >= room {
                return Ok(false);
            }
        }
        self.reserved += 1;
        Ok(true)
    }

    /// Takes a promise back.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.reserved -= 1;
    }

    /// Posts an entry for which a place was reserved. Says whether something is left to do about it: an interrupt, or
    /// to post it once its memory is back.
    #[inline]
    pub(crate) fn post_reserved(&mut self, entry: CompletionQueueEntry) -> bool {
        self.reserved -= 1;
        if self.ring.is_none() {
            self.backlog.push_back(entry);
            return true;
        }
        self.write(entry);
        self.parameters.interrupts
    }

    /// Posts an entry as soon as there is room.
    pub(crate) fn post(&mut self, entry: CompletionQueueEntry) {
        self.backlog.push_back(entry);
    }

    /// Posts what had no room, as far as there is some now. Says how many entries that were.
    pub(crate) fn post_backlog(&mut self) -> Result<usize, InvalidDoorbell> {
        let mut posted = 0;
        while !self.backlog.is_empty() && self.ring.is_some() {
            if self.used() + 1 >= self.parameters.size {
                self.look()?;
                if self.used() + 1 >= self.parameters.size {
                    break;
                }
            }
            let Some(entry) = self.backlog.pop_front() else { break };
            self.write(entry);
            posted += 1;
        }
        Ok(posted)
    }

    /// Entries without room.
    #[inline]
    pub(crate) fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    #[inline]
    fn write(&mut self, mut entry: CompletionQueueEntry) {
        let Some(ring) = self.ring else { return };
        // Entries come with the phase bit clear, unless it is to be wrong.
        entry.status ^= self.phase;
        let [low, high]: [u64; 2] = zerocopy::transmute!(entry);
        // SAFETY: `remap` checked that the ring's `size` entries lie in mapped memory, which `memory` keeps
        // mapped; `tail` is below `size`; the base is page-aligned, and the guest's side of these words is
        // hardware's business.
        let slot = unsafe { ring.add(self.tail as usize).as_ref() };
        slot[0].store(low, Ordering::Relaxed);
        // The phase bit is in this word: release, so that whoever sees it sees the rest, and the data before it.
        slot[1].store(high, Ordering::Release);
        if self.parameters.interrupts {
            self.uninterrupted += 1;
        }
        self.tail += 1;
        if self.tail == self.parameters.size {
            self.tail = 0;
            self.phase ^= 1;
        }
    }

    /// Whether there are entries that the guest has not taken, as of the last look.
    pub(crate) fn has_entries(&self) -> bool {
        self.tail != self.head
    }

    /// The head as it was last seen.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Whether something waits for the guest to take entries.
    pub(crate) fn waits_for_room(&self) -> bool {
        !self.backlog.is_empty() || self.used() + self.reserved >= self.parameters.size - 1
    }

    /// Whether its doorbell has moved since the last look.
    pub(crate) fn rung(&self) -> bool {
        let value = self.doorbell.load();
        value != self.head && self.rejected != Some(value)
    }
}
