//! How long to spin: the length that would have cost least, had it been in force lately.

use super::WAKE;
use std::time::Duration;

/// The lengths to choose from. The shortest is spent on nearly every gap: a burst's next command is often just being
/// written.
/// The longest costs as much as the wake-up that it may save.
pub(super) const SPINS: [Duration; 5] = [
    Duration::from_micros(2),
    Duration::from_micros(6),
    Duration::from_micros(14),
    Duration::from_micros(28),
    WAKE,
];

/// How fast old gaps are forgotten: each counts 1/16 less with every later one.
const MEMORY: u64 = 16;

/// One learner. What each length would have paid for the gaps so far, faded, in nanoseconds; at most [`MEMORY`] times the
/// dearest gap.
#[derive(Debug, Default)]
pub(super) struct Spin {
    paid: [u64; SPINS.len()],
    chosen: usize,
}

impl Spin {
    /// The length to spin for now.
    #[inline]
    pub(super) fn length(&self) -> Duration {
        SPINS[self.chosen]
    }

    /// Whether no longer spin would have been worth it lately.
    #[inline]
    pub(super) fn is_shortest(&self) -> bool {
        self.chosen == 0
    }

    /// A gap was so long: every length pays what it would have cost.
    pub(super) fn charge(&mut self, gap: Duration) {
        if gap <= SPINS[0] {
            // The same for all of them.
            return;
        }
        for (paid, spin) in self.paid.iter_mut().zip(SPINS) {
            let cost = if gap <= spin { gap } else { spin + WAKE };
            *paid = *paid - *paid / MEMORY + cost.as_nanos() as u64;
        }
        // The first of those that cost the same: the shortest.
        self.chosen = (0..SPINS.len()).min_by_key(|&spin| self.paid[spin]).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_after(gaps: impl IntoIterator<Item = u64>) -> Duration {
        let mut spin = Spin::default();
        gaps.into_iter().for_each(|gap| spin.charge(Duration::from_micros(gap)));
        spin.length()
    }

    #[test]
    fn the_shortest_spin_that_covers_the_gaps_is_chosen() {
        assert_eq!(chosen_after([5; 20]), Duration::from_micros(6));
        assert_eq!(chosen_after([20; 20]), Duration::from_micros(28));
        assert_eq!(chosen_after([40; 20]), WAKE);
    }

    #[test]
    fn gaps_longer_than_a_wake_up_is_worth_are_hardly_spun_for() {
        assert_eq!(chosen_after([60; 20]), SPINS[0]);
        assert_eq!(chosen_after([1_000_000; 20]), SPINS[0]);
    }

    #[test]
    fn long_gaps_between_short_ones_do_not_spoil_the_short_ones() {
        assert_eq!(chosen_after([5, 500].repeat(50)), Duration::from_micros(6));
    }

    #[test]
    fn a_change_is_followed_within_its_memory() {
        let change = |before: u64, after: u64| {
            (1..100).find(|&n| {
                chosen_after(std::iter::repeat_n(before, 1000).chain(std::iter::repeat_n(after, n)))
                    == chosen_after([after; 1000])
            })
        };
        // Back to a spin that is little shorter it takes longer, because it gains little.
        assert!(change(5, 1000).is_some_and(|gaps| gaps <= 48), "{:?}", change(5, 1000));
        assert!(change(1000, 5).is_some_and(|gaps| gaps <= 4), "{:?}", change(1000, 5));
        assert!(change(40, 1000).is_some_and(|gaps| gaps <= 16), "{:?}", change(40, 1000));
    }
}
