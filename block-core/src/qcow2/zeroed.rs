//! Clusters that have been zeroed where they are, until nothing can be under way any more that may have been sent there.
//!
//! They read as zeroes already. Some are to be given away, others stay; until the requests that began before have ended
//! ([`super::epoch`]), neither may get another place, for the old one would be somebody else's at once. A cluster that is
//! written again meanwhile gets its old place back; when it is then zeroed once more, what was sent to it in between
//! counts too. So a cluster waits here once at most, for the last time that it was zeroed.

use super::epoch::Clock;
use std::ops::Range;

/// A range of the guest's that has been zeroed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zeroed {
    /// Where, as the guest sees it, in bytes.
    pub guest: Range<u64>,
    pub fate: Fate,
    /// What began before this moment of the disk's clock may have been sent there.
    moment: u64,
}

/// What is to become of the place of zeroed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They keep it.
    Stays,
    /// They are given away.
    GivenAway {
        /// Where in the data file the first byte was, if they had a place of their own.
        host: Option<u64>,
    },
}

impl Fate {
    /// That of what follows `n` bytes further on.
    fn following(self, n: u64) -> Self {
        match self {
            Self::GivenAway { host } => Self::GivenAway { host: host.map(|host| host + n) },
            Self::Stays => Self::Stays,
        }
    }
}

impl Zeroed {
    /// The part of it that lies in a range, if any does.
    fn part(&self, range: &Range<u64>) -> Option<Self> {
        let guest = self.guest.start.max(range.start)..self.guest.end.min(range.end);
        let fate = self.fate.following(guest.start.saturating_sub(self.guest.start));
        (!guest.is_empty()).then_some(Self { guest, fate, moment: self.moment })
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting(Vec<Zeroed>);

impl Waiting {
    /// Whether some are to be given away.
    pub fn any_to_give_away(&self) -> bool {
        self.0.iter().any(|it| it.fate != Fate::Stays)
    }

    /// A range has been zeroed.
    pub fn add(&mut self, guest: Range<u64>, fate: Fate, moment: u64) {
        if self.0.iter().any(|it| it.part(&guest).is_some()) {
            let rest = |it: Zeroed| [it.part(&(0..guest.start)), it.part(&(guest.end..u64::MAX))];
            self.0 = std::mem::take(&mut self.0).into_iter().flat_map(rest).flatten().collect();
        }
        self.0.push(Zeroed { guest, fate, moment });
    }

    /// Bytes from the beginning of a range that may get another place than they had.
    pub fn movable(&self, guest: &Range<u64>, clock: &Clock) -> u64 {
        let waiting = self.0.iter().filter_map(|it| it.part(guest)).filter(|it| !clock.passed(it.moment));
        waiting.map(|it| it.guest.start).min().unwrap_or(guest.end) - guest.start
    }

    /// Takes those that nothing can be under way to any more, and gives what is to be given away.
    pub fn take_passed(&mut self, clock: &Clock) -> Vec<Zeroed> {
        let mut passed: Vec<Zeroed> = self.0.extract_if(.., |it| clock.passed(it.moment)).collect();
        passed.retain(|it| it.fate != Fate::Stays);
        passed
    }

    /// Forgets those that stay and that nothing can be under way to any more.
    pub fn forget_passed(&mut self, clock: &Clock) {
        self.0.retain(|it| it.fate != Fate::Stays || !clock.passed(it.moment));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn given_away(host: u64) -> Fate {
        Fate::GivenAway { host: Some(host) }
    }

    fn passed(waiting: &mut Waiting, clock: &Clock) -> Vec<(Range<u64>, Fate)> {
        waiting.take_passed(clock).into_iter().map(|it| (it.guest, it.fate)).collect()
    }

    #[test]
    fn what_is_zeroed_again_waits_for_the_last_time_and_the_rest_for_the_first() {
        let clock = Arc::new(Clock::default());
        let mut waiting = Waiting::default();
        waiting.add(0..30, given_away(100), clock.wind());
        let mut pin = clock.pin();
        let heap = pin.begin();
        waiting.add(10..20, given_away(510), clock.wind());
        assert_eq!(passed(&mut waiting, &clock), [(0..10, given_away(100)), (20..30, given_away(120))]);
        pin.end(heap);
        assert_eq!(passed(&mut waiting, &clock), [(10..20, given_away(510))]);
        assert!(!waiting.any_to_give_away());
    }

    #[test]
    fn nothing_moves_that_something_may_be_under_way_to() {
        let clock = Arc::new(Clock::default());
        let mut waiting = Waiting::default();
        let mut pin = clock.pin();
        waiting.add(0..10, Fate::Stays, clock.wind());
        let heap = pin.begin();
        waiting.add(20..30, Fate::Stays, clock.wind());
        waiting.add(40..50, given_away(0), clock.wind());
        let movable = |waiting: &Waiting, start| waiting.movable(&(start..60), &clock);
        assert_eq!([0, 20, 25, 30, 45, 50].map(|start| movable(&waiting, start)), [20, 0, 0, 10, 0, 10]);
        waiting.forget_passed(&clock);
        assert_eq!(waiting.0.len(), 2, "what began before the first has ended");
        pin.end(heap);
        assert_eq!(movable(&waiting, 20), 40);
        waiting.forget_passed(&clock);
        assert_eq!(passed(&mut waiting, &clock), [(40..50, given_away(0))]);
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
                let fate = if stays { Fate::Stays } else { Fate::GivenAway { host } };
                (start..start + len).for_each(|at| model[at as usize] = Some(fate.following(at - start)));
                waiting.add(start..start + len, fate, clock.wind());
            }
            let mut found = [const { None }; 60];
            for Zeroed { guest, fate, .. } in waiting.take_passed(&clock) {
                for at in guest.clone() {
                    let before = found[at as usize].replace(fate.following(at - guest.start));
                    prop_assert_eq!(before, None, "it waits twice");
                }
            }
            prop_assert_eq!(found, model.map(|fate| fate.filter(|fate| *fate != Fate::Stays)));
        }
    }
}
