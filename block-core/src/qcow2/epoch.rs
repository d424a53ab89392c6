//! When no queue can have a request under way to a cluster any more.
//!
//! A cluster that has been zeroed is given away, or moved, only when every request that may have been sent to it has
//! ended: one that came late would write into what is somebody else's by then. Each queue says in a [`Pin`] since when
//! it has requests under way, as a number of the disk's clock; who takes a mapping out of the table winds the clock, and
//! waits until no pin is older. Nothing here blocks, and a queue pays one fence when it stops being idle.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// A pin of a queue with nothing under way.
const IDLE: u64 = u64::MAX;

/// The clock of a disk, and the pins of its queues.
#[derive(Default)]
pub(super) struct Clock {
    now: AtomicU64,
    pins: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Clock {
    /// A pin for a queue.
    pub fn pin(self: &Arc<Self>) -> Pin {
        let oldest = Arc::new(AtomicU64::new(IDLE));
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).push(oldest.clone());
        Pin { clock: self.clone(), oldest, sides: [Side::default(); 2], young: 0 }
    }

    /// To be called once mappings have been taken out of the table: nobody can have found them there who pins a moment
    /// from the one that is returned on.
    pub fn wind(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether every request has ended that may have begun before `moment`.
    pub fn passed(&self, moment: u64) -> bool {
        // Pairs with the fence in `Pin::begin`: either we see its pin, or it sees the table as it is now.
        fence(Ordering::SeqCst);
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.iter().all(|oldest| oldest.load(Ordering::Acquire) >= moment)
    }
}

/// Since when a queue has requests under way.
pub(super) struct Pin {
    clock: Arc<Clock>,
    oldest: Arc<AtomicU64>,
    /// The requests under way in two heaps: when the older one is used up, the younger one takes its place.
    sides: [Side; 2],
    young: usize,
}

#[derive(Clone, Copy, Default)]
struct Side {
    since: u64,
    under_way: u32,
}

/// Which heap a request is in; goes back to [`Pin::end`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heap(usize);

impl Pin {
    /// A request begins: to be called before it looks into the table.
    #[inline]
    pub fn begin(&mut self) -> Heap {
        let now = self.clock.now.load(Ordering::Acquire);
        let young = self.young;
        if self.sides[0].under_way + self.sides[1].under_way == 0 {
            self.sides[young] = Side { since: now, under_way: 1 };
            self.oldest.store(now, Ordering::Relaxed);
            // Pairs with the one in `Clock::passed`.
            fence(Ordering::SeqCst);
            return Heap(young);
        }
        if self.sides[young].under_way == 0 {
            self.sides[young].since = now;
        } else if self.sides[young].since != now && self.sides[1 - young].under_way == 0 {
            // What is young grows old, and a new heap begins.
            self.young = 1 - young;
            self.sides[self.young] = Side { since: now, under_way: 0 };
        }
        self.sides[self.young].under_way += 1;
        Heap(self.young)
    }

    /// A request has ended. `true` if it was the last one under way.
    #[inline]
    pub fn end(&mut self, heap: Heap) -> bool {
        self.sides[heap.0].under_way -= 1;
        if self.sides[heap.0].under_way > 0 {
            return false;
        }
        let other = self.sides[1 - heap.0];
        let idle = other.under_way == 0;
        self.oldest.store(if idle { IDLE } else { other.since }, Ordering::Release);
        idle
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.clock.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.retain(|pin| !Arc::ptr_eq(pin, &self.oldest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_passed_when_all_that_began_before_has_ended() {
        let clock = Arc::new(Clock::default());
        let mut pin = clock.pin();
        let moment = clock.wind();
        assert!(clock.passed(moment), "nobody has anything under way");
        let (a, b) = (pin.begin(), pin.begin());
        let moment = clock.wind();
        assert!(!clock.passed(moment));
        let c = pin.begin();
        assert!(!pin.end(a) && !clock.passed(moment), "b began before");
        assert!(!pin.end(b) && clock.passed(moment), "c began after");
        let later = clock.wind();
        assert!(!clock.passed(later));
        assert!(pin.end(c) && clock.passed(later));
    }

    #[test]
    fn a_queue_that_is_never_idle_still_moves_on() {
        let clock = Arc::new(Clock::default());
        let mut pin = clock.pin();
        let mut under_way = std::collections::VecDeque::from([pin.begin()]);
        let mut passed = 0;
        let mut moment = clock.wind();
        for _ in 0..100 {
            under_way.push_back(pin.begin());
            assert!(!pin.end(under_way.pop_front().unwrap()));
            if clock.passed(moment) {
                passed += 1;
                moment = clock.wind();
            }
        }
        assert!(passed > 20, "{passed}");
    }

    #[test]
    fn a_queue_that_is_gone_holds_nothing_up() {
        let clock = Arc::new(Clock::default());
        let mut pin = clock.pin();
        pin.begin();
        let moment = clock.wind();
        assert!(!clock.passed(moment));
        drop(pin);
        assert!(clock.passed(moment));
    }
}
