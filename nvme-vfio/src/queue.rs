//! Submission and completion queues as rings in memory (Base Specification, "Queues").

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nvme_spec::{CompletionQueueEntry, SubmissionQueueEntry};

use crate::doorbell::Doorbell;

/// The host's end of a submission queue. Its owner keeps less commands outstanding than the queue has entries, so
/// that the entry at the tail has always been fetched, and frees the memory after this.
pub(crate) struct SubmissionQueue {
    entries: NonNull<SubmissionQueueEntry>,
    size: u32,
    tail: u16,
    /// The tail that the controller knows.
    rung: u16,
    doorbell: Doorbell,
}

impl SubmissionQueue {
    /// # Safety
    ///
    /// `entries` must be aligned and valid for `size` (2 to 65,536) entries for as long as this lives, with no Rust
    /// references to them.
    pub(crate) unsafe fn new(entries: NonNull<SubmissionQueueEntry>, size: u32, doorbell: Doorbell) -> Self {
        debug_assert!((2..=0x1_0000).contains(&size));
        Self { entries, size, tail: 0, rung: 0, doorbell }
    }

    #[inline]
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Puts a command at the tail. The controller learns of it by [`SubmissionQueue::ring`].
    #[inline]
    pub(crate) fn post(&mut self, command: &SubmissionQueueEntry) {
        // SAFETY: the tail is less than the size, and `new`'s caller has promised that many entries.
        unsafe { self.entries.add(self.tail.into()).write(*command) };
        let next = u32::from(self.tail) + 1;
        self.tail = if next == self.size { 0 } else { next as u16 };
    }

    /// Tells the controller of everything posted since the last time.
    #[inline]
    pub(crate) fn ring(&mut self) -> io::Result<()> {
        if self.rung != self.tail {
            self.doorbell.write(self.rung, self.tail)?;
            self.rung = self.tail;
        }
        Ok(())
    }
}

/// The host's end of a completion queue.
pub(crate) struct CompletionQueue {
    /// Each entry is two of these, the second with the Phase Tag in it.
    entries: NonNull<[u64; 2]>,
    size: u32,
    head: u16,
    /// What the Phase Tag of the next new entry is.
    phase: bool,
    /// The head that the controller knows.
    rung: u16,
    /// Entries taken since then.
    unreported: u32,
    doorbell: Doorbell,
}

/// Where the Phase Tag is in an entry's second half.
const PHASE_TAG: u64 = 1 << 48;

impl CompletionQueue {
    /// # Safety
    ///
    /// `entries` must be aligned, valid for `size` (2 to 65,536) entries for as long as this lives, with no Rust
    /// references to them, and zeroed.
    pub(crate) unsafe fn new(entries: NonNull<CompletionQueueEntry>, size: u32, doorbell: Doorbell) -> Self {
        debug_assert!((2..=0x1_0000).contains(&size));
        Self { entries: entries.cast(), size, head: 0, phase: true, rung: 0, unreported: 0, doorbell }
    }

    /// Takes the entry at the head if it is new.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<CompletionQueueEntry> {
        // SAFETY: the head is less than the size, and `new`'s caller has promised that many entries, aligned to
        // pages. The controller may be writing there: one atomic read decides, and is all that is believed of that
        // half; Acquire keeps the other half's read, and reads of the data, behind it.
        let (first, second) = unsafe {
            let entry = self.entries.add(self.head.into()).cast::<u64>();
            let second = AtomicU64::from_ptr(entry.add(1).as_ptr()).load(Ordering::Acquire);
            if (second & PHASE_TAG != 0) != self.phase {
                return None;
            }
            (entry.read_volatile(), second)
        };
        let next = u32::from(self.head) + 1;
        if next == self.size {
            self.head = 0;
            self.phase = !self.phase;
        } else {
            self.head = next as u16;
        }
        self.unreported += 1;
        Some(CompletionQueueEntry {
            dw0: first as u32,
            dw1: (first >> 32) as u32,
            sq_head: second as u16,
            sq_id: (second >> 16) as u16,
            cid: (second >> 32) as u16,
            status: (second >> 48) as u16,
        })
    }

    /// The entry at the head, if it is not new and the one behind it is: it was passed over, or is about to come.
    pub(crate) fn passed_over(&self) -> Option<u16> {
        let is_new = |index: u32, phase: bool| {
            // SAFETY: as in `take`; the index is less than the size.
            let second = unsafe {
                let entry = self.entries.add(index as usize).cast::<u64>();
                AtomicU64::from_ptr(entry.add(1).as_ptr()).load(Ordering::Relaxed)
            };
            (second & PHASE_TAG != 0) == phase
        };
        let head = u32::from(self.head);
        let (behind, phase) = if head + 1 == self.size { (0, !self.phase) } else { (head + 1, self.phase) };
        (!is_new(head, self.phase) && is_new(behind, phase)).then_some(self.head)
    }

    /// Tells the controller that entries are free, once it could run out of them with `outstanding` commands; at
    /// once if `now`. A queue with more entries than commands saves doorbells.
    #[inline]
    pub(crate) fn ring(&mut self, outstanding: u32, now: bool) -> io::Result<()> {
        // One entry always stays free: a full queue could not be told from an empty one.
        if self.unreported > 0 && (now || self.unreported + outstanding + 1 >= self.size) {
            self.doorbell.write(self.rung, self.head)?;
            self.rung = self.head;
            self.unreported = 0;
        }
        Ok(())
    }
}

// SAFETY: the entries belong to whoever owns the queue, and nothing about them is tied to a thread.
unsafe impl Send for SubmissionQueue {}
// SAFETY: as above.
unsafe impl Send for CompletionQueue {}
