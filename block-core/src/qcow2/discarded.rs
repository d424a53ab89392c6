//! Clusters that the guest has discarded, until they can be given away.
//!
//! They read as zeroes already, but are given away only when nothing is under way any more that may have been sent to
//! them ([`super::epoch`]). A cluster that is written again meanwhile gets its old place back; when it is then zeroed once
//! more, what was sent to it in between counts too. So a cluster waits here once at most, for the last time that it was
//! zeroed.

use super::epoch::Clock;
use std::ops::Range;

/// A range of the guest's that has been zeroed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Discarded {
    /// Where, as the guest sees it, in bytes.
    pub guest: Range<u64>,
    /// Where in the data file its first byte was, if it had a place of its own.
    pub host: Option<u64>,
    /// What began before this moment of the disk's clock may have been sent there.
    moment: u64,
}

impl Discarded {
    /// The part of it that lies in a range, if any does.
    fn part(&self, range: Range<u64>) -> Option<Self> {
        let guest = self.guest.start.max(range.start)..self.guest.end.min(range.end);
        let host = self.host.map(|host| host + (guest.start.saturating_sub(self.guest.start)));
        (!guest.is_empty()).then_some(Self { guest, host, moment: self.moment })
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting(Vec<Discarded>);

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A range has been zeroed, and is to be given away.
    pub fn add(&mut self, guest: Range<u64>, host: Option<u64>, moment: u64) {
        self.remove(&guest);
        self.0.push(Discarded { guest, host, moment });
    }

    /// A range has been zeroed, and is to stay where it is.
    pub fn remove(&mut self, guest: &Range<u64>) {
        if self.0.iter().any(|it| it.part(guest.clone()).is_some()) {
            let rest = |it: Discarded| [it.part(0..guest.start), it.part(guest.end..u64::MAX)];
            self.0 = std::mem::take(&mut self.0).into_iter().flat_map(rest).flatten().collect();
        }
    }

    /// Takes those that nothing can be under way to any more.
    pub fn take_passed(&mut self, clock: &Clock) -> Vec<Discarded> {
        self.0.extract_if(.., |it| clock.passed(it.moment)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn what_is_zeroed_again_waits_for_the_last_time_and_the_rest_for_the_first() {
        let clock = Arc::new(Clock::default());
        let mut waiting = Waiting::default();
        waiting.add(0..30, Some(100), clock.wind());
        let mut pin = clock.pin();
        let heap = pin.begin();
        waiting.add(10..20, Some(510), clock.wind());
        let passed: Vec<_> = waiting.take_passed(&clock).into_iter().map(|it| (it.guest, it.host)).collect();
        assert_eq!(passed, [(0..10, Some(100)), (20..30, Some(120))]);
        pin.end(heap);
        let passed: Vec<_> = waiting.take_passed(&clock).into_iter().map(|it| (it.guest, it.host)).collect();
        assert_eq!(passed, [(10..20, Some(510))]);
        assert!(waiting.is_empty());
    }

    proptest! {
        /// Against an array: where each cluster was when it was last zeroed, if it is to be given away.
        #[test]
        fn a_cluster_waits_once_with_its_last_place(
            steps in prop::collection::vec((0..40u64, 1..20u64, prop::option::of(0..1000u64), any::<bool>()), 0..40),
        ) {
            let clock = Arc::new(Clock::default());
            let mut waiting = Waiting::default();
            let mut model = [const { None }; 60];
            for (start, len, host, stays) in steps {
                let guest = start..start + len;
                for at in guest.clone() {
                    model[at as usize] = (!stays).then_some(host.map(|host| host + at - start));
                }
                if stays {
                    waiting.remove(&guest);
                } else {
                    waiting.add(guest, host, clock.wind());
                }
            }
            let mut found = [const { None }; 60];
            for Discarded { guest, host, .. } in waiting.take_passed(&clock) {
                for at in guest.clone() {
                    let before = found[at as usize].replace(host.map(|host| host + at - guest.start));
                    prop_assert_eq!(before, None, "it waits twice");
                }
            }
            prop_assert_eq!(found, model);
        }
    }
}
