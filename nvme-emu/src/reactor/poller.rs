//! When to spin and when to sleep.
//!
//! ```text
//!            work                          work
//!          ┌──────┐                 ┌─────────────────┐
//!          ▼      │                 ▼                 │
//!        busy ────┴─ no work ──▶ spinning ── budget ──▶ asleep
//! ```
//!
//! A reactor that ran out of work goes on looking for a little while, because waking up costs both sides more than a
//! short look. How long is tuned by the gaps that were seen: while they are short, up to twice the usual gap; when
//! they are longer than a spin could ever be worth, hardly at all. The spin is bounded by [`Poller::MAX_SPIN`], so
//! against the best choice in hindsight a gap costs at most that much more.

use std::time::{Duration, Instant};

/// What to do with no work at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Look again.
    Spin,
    /// Sleep until something happens.
    Sleep,
}

/// The state of one reactor's patience.
#[derive(Debug)]
pub(crate) struct Poller {
    /// Looks without work since the last work.
    looks: u32,
    /// When the spin's first clock look was; unknown while the spin is young.
    since: Option<Instant>,
    /// Moving average of the gaps between work, in nanoseconds.
    usual_gap: u64,
}

impl Poller {
    /// Longest spin. A sleep costs the guest an exit and a message to wake us with, and between two batches a guest
    /// under emulation takes its time to handle an interrupt and submit again. Doorbell messages per request of a TCG
    /// guest at queue depth 32, on two busy cores (medians of five one-second samples, each bound measured twice):
    /// 50 µs 0.37 and 0.44, 200 µs 0.10 and 0.10, 500 µs 0.04 and 0.06, 1 ms 0.04 and 0.03. The price is a core that
    /// spins for guests whose gaps are that long; KVM guests, whose gaps are shorter, were not measured.
    pub(crate) const MAX_SPIN: Duration = Duration::from_micros(500);
    /// Shortest spin, however long the gaps: a burst's next command is often just being written.
    const MIN_SPIN: Duration = Duration::from_micros(2);
    /// Looks between two looks at the clock, which costs more than they do.
    const LOOKS_PER_CLOCK: u32 = 32;

    pub(crate) fn new() -> Self {
        Self { looks: 0, since: None, usual_gap: 0 }
    }

    /// There was work.
    #[inline]
    pub(crate) fn worked(&mut self, clock: impl FnOnce() -> Instant) {
        if self.looks == 0 {
            return;
        }
        self.end_of_gap(clock);
    }

    #[inline]
    fn end_of_gap(&mut self, clock: impl FnOnce() -> Instant) {
        // A gap that ended before the clock was looked at is as good as none.
        let gap = self.since.take().map_or(0, |since| {
            u64::try_from(clock().saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX)
        });
        // A night's gap says no more than one of ten spins does.
        let gap = gap.min(10 * Self::MAX_SPIN.as_nanos() as u64);
        self.usual_gap = (self.usual_gap * 7 + gap) / 8;
        self.looks = 0;
    }

    /// There was none.
    #[inline]
    pub(crate) fn idle(&mut self, clock: impl FnOnce() -> Instant) -> Idle {
        self.looks = self.looks.wrapping_add(1).max(1);
        if !self.looks.is_multiple_of(Self::LOOKS_PER_CLOCK) {
            return Idle::Spin;
        }
        let now = clock();
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.budget() { Idle::Spin } else { Idle::Sleep }
    }

    fn budget(&self) -> Duration {
        let usual = Duration::from_nanos(self.usual_gap);
        if usual > Self::MAX_SPIN {
            Self::MIN_SPIN
        } else {
            (usual * 2).clamp(Self::MIN_SPIN, Self::MAX_SPIN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the poller through gaps on a simulated clock that advances by 20 ns a look; answers the time spent
    /// spinning and how many gaps were slept through.
    fn run(gaps: impl IntoIterator<Item = Duration>) -> (Duration, u32) {
        let mut poller = Poller::new();
        let mut now = Instant::now();
        let (mut spun, mut slept) = (Duration::ZERO, 0);
        for gap in gaps {
            let end = now + gap;
            while now < end {
                if poller.idle(|| now) == Idle::Sleep {
                    slept += 1;
                    now = end;
                    break;
                }
                now += Duration::from_nanos(20);
                spun += Duration::from_nanos(20);
            }
            poller.worked(|| now);
        }
        (spun, slept)
    }

    #[test]
    fn short_gaps_are_spun_through() {
        let (_, slept) = run(std::iter::repeat_n(Duration::from_micros(5), 1000));
        assert!(slept < 20, "{slept}");
    }

    #[test]
    fn long_gaps_are_slept_through_after_a_bounded_spin() {
        let (spun, slept) = run(std::iter::repeat_n(Duration::from_millis(1), 1000));
        assert_eq!(slept, 1000);
        assert!(spun < Duration::from_millis(10), "{spun:?}");
    }

    #[test]
    fn no_gap_costs_more_than_the_longest_spin_over_sleeping_at_once() {
        let mut seed = 1u64;
        let gaps: Vec<_> = (0..2000)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                Duration::from_nanos(10 << (seed >> 59))
            })
            .filter(|gap| *gap < Duration::from_secs(1))
            .collect();
        let (spun, _) = run(gaps.iter().copied());
        let clock_slack = Duration::from_nanos(20 * 64);
        let worst = gaps.iter().map(|gap| (*gap).min(Poller::MAX_SPIN) + clock_slack).sum();
        assert!(spun <= worst, "{spun:?} > {worst:?}");
    }
}
