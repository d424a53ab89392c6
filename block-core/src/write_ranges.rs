//! Keeps read-modify-writes apart from every other write to the same blocks.
//!
//! A write that begins or ends inside a block of a disk that only writes whole ones (an `O_DIRECT` file, a drive) has
//! to read the block, change it and write it back; another write that lands in between would be undone. Such writes are
//! *exclusive*: they wait until no other write overlaps their blocks, and keep new ones out. All others, on every queue
//! of the disk, are *plain*: they take no lock, but publish their range in a slot of their queue's [`Lane`] before they
//! look whether an exclusive one is about, which is one fence for a write.
//!
//! A thread that may block waits in [`WriteRanges::exclusive`]. A queue that has to poll for the end of its own plain
//! writes must not: it [claims](WriteRanges::claim) the blocks and looks again until it is [alone](WriteRanges::alone).

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The writes under way on one disk.
pub struct WriteRanges {
    /// Exclusive writes that hold blocks or wait for them.
    exclusives: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
    /// Ranges are rounded outward to this, a power of two.
    block: u64,
}

#[derive(Default)]
struct State {
    held: Vec<Range<u64>>,
    lanes: Vec<Arc<Lane>>,
}

/// The plain writes under way on one queue.
pub struct Lane {
    slots: Box<[Slot]>,
}

/// The range of a write under way; empty while `end` is 0.
#[derive(Default)]
struct Slot {
    start: AtomicU64,
    end: AtomicU64,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Lane {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.slots.iter().any(|slot| {
            // A slot that is refilled between the two loads belongs to a write that came after our count was
            // raised: it finds the count and looks for itself.
            let end = slot.end.load(Ordering::Acquire);
            end != 0 && overlap(&(slot.start.load(Ordering::Relaxed)..end), range)
        })
    }
}

impl WriteRanges {
    /// For a disk whose blocks, as far as writes must be kept apart, have `block` bytes, a power of two.
    pub fn new(block: u64) -> Self {
        Self {
            exclusives: AtomicU32::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
            block: block.max(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self, offset: u64, len: u64) -> Range<u64> {
        let mask = self.block - 1;
        let end = offset.saturating_add(len);
        offset & !mask..end.saturating_add(mask) & !mask
    }

    /// A lane for a queue in which up to `depth` writes can be under way.
    pub fn lane(&self, depth: usize) -> Arc<Lane> {
        let lane = Arc::new(Lane { slots: (0..depth).map(|_| Slot::default()).collect() });
        self.state().lanes.push(lane.clone());
        lane
    }

    /// Takes back a lane with nothing under way.
    pub fn remove_lane(&self, lane: &Arc<Lane>) {
        self.state().lanes.retain(|other| !Arc::ptr_eq(other, lane));
    }

    /// Begins a plain write in a slot of a lane; ends with [`WriteRanges::leave`]. Refused (`false`) while an
    /// exclusive write has some of these blocks: then it has to be exclusive itself.
    #[inline]
    pub fn enter(&self, lane: &Lane, slot: usize, offset: u64, len: u64) -> bool {
        let range = self.blocks(offset, len);
        let Some(place) = lane.slots.get(slot) else { return false };
        place.start.store(range.start, Ordering::Relaxed);
        place.end.store(range.end, Ordering::Release);
        // Pairs with the fence in `exclusive`: either we see its count, or it sees our slot.
        fence(Ordering::SeqCst);
        self.exclusives.load(Ordering::Relaxed) == 0 || self.enter_beside(place, &range)
    }

    #[cold]
    fn enter_beside(&self, place: &Slot, range: &Range<u64>) -> bool {
        let state = self.state();
        let free = !state.held.iter().any(|held| overlap(held, range));
        if !free {
            place.end.store(0, Ordering::Release);
            self.changed.notify_all();
        }
        free
    }

    /// Ends a plain write.
    #[inline]
    pub fn leave(&self, lane: &Lane, slot: usize) {
        if let Some(place) = lane.slots.get(slot) {
            place.end.store(0, Ordering::Release);
        }
        // Pairs with the fence in `exclusive`: either it sees the slot empty, or we see its count and wake it.
        fence(Ordering::SeqCst);
        if self.exclusives.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // With the lock, so that nobody is between looking and waiting.
        let _state = self.state();
        self.changed.notify_all();
    }

    /// Waits until no other write overlaps these blocks, and keeps others out until the guard is dropped.
    ///
    /// Plain writes that it waits for end without its help: they are with the kernel, and their queues' owners poll, as
    /// the contract of [`crate::Queue`] asks of them.
    pub fn exclusive(&self, offset: u64, len: u64) -> Exclusive<'_> {
        let range = self.blocks(offset, len);
        self.announce();
        let mut state = self.state();
        while state.held.iter().any(|held| overlap(held, &range)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // From here on plain writes are refused, so those that are left can only become fewer.
        state.held.push(range.clone());
        while state.lanes.iter().any(|lane| lane.overlaps(&range)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        Exclusive { ranges: self, range }
    }

    /// Begins an exclusive write without waiting: new writes are kept out of these blocks from now on, until
    /// [`WriteRanges::release`]. Refused (`false`) while another exclusive write has some of them.
    pub fn claim(&self, offset: u64, len: u64) -> bool {
        let range = self.blocks(offset, len);
        self.announce();
        let mut state = self.state();
        if state.held.iter().any(|held| overlap(held, &range)) {
            drop(state);
            self.exclusives.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        state.held.push(range);
        true
    }

    /// Whether no plain write is under way in blocks that were claimed. Once it is so, it stays so.
    pub fn alone(&self, offset: u64, len: u64) -> bool {
        let range = self.blocks(offset, len);
        // Pairs with the fence in `enter`.
        fence(Ordering::SeqCst);
        !self.state().lanes.iter().any(|lane| lane.overlaps(&range))
    }

    /// Ends an exclusive write that [`WriteRanges::claim`] began.
    pub fn release(&self, offset: u64, len: u64) {
        self.let_go(&self.blocks(offset, len));
    }

    /// Says that there is an exclusive write, before it looks for others.
    fn announce(&self) {
        self.exclusives.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn let_go(&self, range: &Range<u64>) {
        let mut state = self.state();
        if let Some(at) = state.held.iter().position(|held| held == range) {
            state.held.swap_remove(at);
        }
        drop(state);
        self.exclusives.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// Blocks that one write has for itself.
pub struct Exclusive<'a> {
    ranges: &'a WriteRanges,
    range: Range<u64>,
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.ranges.let_go(&self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn plain_writes_overlap_each_other_freely() {
        let ranges = WriteRanges::new(4096);
        let lane = ranges.lane(2);
        assert!(ranges.enter(&lane, 0, 0, 4096));
        assert!(ranges.enter(&lane, 1, 0, 8192));
        ranges.leave(&lane, 0);
        ranges.leave(&lane, 1);
    }

    #[test]
    fn an_exclusive_write_keeps_its_blocks_and_no_others() {
        let ranges = WriteRanges::new(4096);
        let lane = ranges.lane(1);
        let exclusive = ranges.exclusive(5000, 10);
        assert!(!ranges.enter(&lane, 0, 4096, 512), "same block");
        assert!(!ranges.enter(&lane, 0, 0, 1 << 20), "around it");
        assert!(ranges.enter(&lane, 0, 8192, 4096), "next block");
        ranges.leave(&lane, 0);
        drop(exclusive);
        assert!(ranges.enter(&lane, 0, 4096, 512));
    }

    #[test]
    fn an_exclusive_write_waits_for_plain_ones_on_every_lane() {
        let ranges = WriteRanges::new(512);
        let lanes = [ranges.lane(1), ranges.lane(1)];
        assert!(ranges.enter(&lanes[0], 0, 0, 512));
        assert!(ranges.enter(&lanes[1], 0, 512, 512));
        let got = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _exclusive = ranges.exclusive(500, 24);
                got.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
            ranges.leave(&lanes[0], 0);
            std::thread::sleep(Duration::from_millis(20));
            assert!(!got.load(Ordering::SeqCst), "one is left");
            ranges.leave(&lanes[1], 0);
        });
        assert!(got.load(Ordering::SeqCst));
    }

    #[test]
    fn claimed_blocks_are_kept_from_everybody_and_alone_once_plain_writes_have_left() {
        let ranges = WriteRanges::new(4096);
        let lane = ranges.lane(2);
        assert!(ranges.enter(&lane, 0, 0, 8192));
        assert!(ranges.claim(5000, 10));
        assert!(!ranges.alone(5000, 10));
        assert!(!ranges.claim(4096, 4096), "claimed twice");
        assert!(!ranges.enter(&lane, 1, 4096, 512));
        assert!(ranges.claim(8192, 1) && ranges.alone(8192, 1), "other blocks");
        ranges.leave(&lane, 0);
        assert!(ranges.alone(5000, 10));
        ranges.release(5000, 10);
        ranges.release(8192, 1);
        assert!(ranges.enter(&lane, 1, 4096, 512));
        assert_eq!(ranges.exclusives.load(Ordering::SeqCst), 0);
    }

    /// What the type is for: no update of a block is lost, whoever makes it.
    #[test]
    fn no_write_is_lost_between_a_read_and_its_write_back() {
        let ranges = WriteRanges::new(8);
        // A block of two halves: plain writers replace it, exclusive ones read it, change one half, write it back.
        let block = AtomicU64::new(0);
        let plain_done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let (ranges, block, plain_done) = (&ranges, &block, &plain_done);
                scope.spawn(move || {
                    let lane = ranges.lane(1);
                    for i in 0..2000 {
                        if thread == 0 && ranges.enter(&lane, 0, 0, 8) {
                            // Plain: the low half counts.
                            let value = block.load(Ordering::SeqCst);
                            block.store(value + 1, Ordering::SeqCst);
                            plain_done.fetch_add(1, Ordering::SeqCst);
                            ranges.leave(&lane, 0);
                        } else if thread == 1 {
                            let _exclusive = ranges.exclusive(4, 2);
                            let value = block.load(Ordering::SeqCst);
                            if i % 16 == 0 {
                                std::thread::yield_now();
                            }
                            block.store(value + (1 << 32), Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let value = block.load(Ordering::SeqCst);
        assert_eq!(value >> 32, 2000);
        assert_eq!(value & 0xffff_ffff, plain_done.load(Ordering::SeqCst));
    }
}
