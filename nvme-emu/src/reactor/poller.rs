//! When to spin, when to doze and when to sleep.
//!
//! ```text
//!            work                     work              work                      work
//!          ┌──────┐              ┌────────────┐     ┌───────────┐            ┌───────────┐
//!          ▼      │              ▼            │     ▼           │            ▼           │
//!        busy ────┴─ no work ─▶ spinning ─────┴─ busy ...   dozing ──────────┴─ busy   asleep
//!                                  │   the spin is over, work comes in batches ▲          ▲
//!                                  ├───────────────────────────────────────────┘          │
//!                                  └─ the spin is over, work comes one by one ────────────┤
//!                                                    the doze is over ────────────────────┘
//! ```
//!
//! * *Spinning*: looking again at once. Waking up costs both sides more than a short look, so for as long as gaps are
//!   short the spin lasts up to twice the usual one; when they are longer than a spin could be worth, hardly at all.
//! * *Dozing*: looking again every [`Poller::DOZE`], with the doorbells left unarmed: a guest that works through a
//!   batch of completions and submits the next takes its time, but does not have to ring, and a doze costs little.
//!   A lone command would wait for up to that long, so only guests whose commands come in batches are dozed for.
//! * *Asleep*: with the doorbells armed, until something happens.
//!
//! Against the best choice in hindsight, a gap costs at most [`Poller::MAX_SPIN`] of CPU time more, and a batch at most
//! one doze of delay.

use std::time::{Duration, Instant};

/// What to do with no work at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Look again.
    Spin,
    /// Sleep for this long, or until something happens that needs no doorbell, then look again.
    Doze(Duration),
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
    /// Whether the spin is over.
    dozing: bool,
    /// Moving average of the gaps between work, in nanoseconds.
    usual_gap: u64,
    /// Commands since the last gap.
    batch: usize,
    /// Moving average of the commands between two gaps that were not spun through, in sixteenths.
    usual_batch: usize,
}

impl Poller {
    /// Longest spin: about what a sleep and a wake-up cost a guest and its VMM.
    pub(crate) const MAX_SPIN: Duration = Duration::from_micros(50);
    /// Shortest spin, however long the gaps: a burst's next command is often just being written.
    const MIN_SPIN: Duration = Duration::from_micros(2);
    /// One doze.
    const DOZE: Duration = Duration::from_micros(50);
    /// Longest series of dozes.
    const MAX_DOZE: Duration = Duration::from_millis(1);
    /// Commands between two gaps that make a batch.
    const BATCH: usize = 3;
    /// Looks between two looks at the clock, which costs more than they do.
    const LOOKS_PER_CLOCK: u32 = 32;
    /// Gaps longer than this say no more than this does.
    const LONGEST_GAP: Duration = Duration::from_millis(2);

    pub(crate) fn new() -> Self {
        Self { looks: 0, since: None, dozing: false, usual_gap: 0, batch: 0, usual_batch: 0 }
    }

    /// There was work, so many commands of it.
    #[inline]
    pub(crate) fn worked(&mut self, commands: usize, clock: impl FnOnce() -> Instant) {
        if self.looks > 0 {
            self.end_of_gap(clock);
        }
        self.batch += commands;
    }

    #[inline]
    fn end_of_gap(&mut self, clock: impl FnOnce() -> Instant) {
        // A gap that ended before the clock was looked at is as good as none.
        let gap = self.since.take().map_or(Duration::ZERO, |since| clock().saturating_duration_since(since));
        let gap = gap.min(Self::LONGEST_GAP).as_nanos() as u64;
        self.usual_gap = (self.usual_gap * 7 + gap) / 8;
        if std::mem::take(&mut self.dozing) {
            self.usual_batch = (self.usual_batch * 7 + self.batch.min(1024) * 16) / 8;
            self.batch = 0;
        }
        self.looks = 0;
    }

    /// There was none.
    #[inline]
    pub(crate) fn idle(&mut self, clock: impl FnOnce() -> Instant) -> Idle {
        self.looks = self.looks.wrapping_add(1).max(1);
        if !self.dozing && !self.looks.is_multiple_of(Self::LOOKS_PER_CLOCK) {
            return Idle::Spin;
        }
        let now = clock();
        let since = *self.since.get_or_insert(now);
        let waited = now.saturating_duration_since(since);
        if waited < self.spin() {
            return Idle::Spin;
        }
        self.dozing = true;
        if waited < self.doze() { Idle::Doze(Self::DOZE) } else { Idle::Sleep }
    }

    /// How long to spin.
    fn spin(&self) -> Duration {
        let usual = Duration::from_nanos(self.usual_gap);
        if usual > Self::MAX_SPIN {
            Self::MIN_SPIN
        } else {
            (usual * 2).clamp(Self::MIN_SPIN, Self::MAX_SPIN)
        }
    }

    /// How long to doze, counted from the beginning of the gap.
    fn doze(&self) -> Duration {
        if self.usual_batch < Self::BATCH * 16 {
            return Duration::ZERO;
        }
        (Duration::from_nanos(self.usual_gap) * 4).min(Self::MAX_DOZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a look, and what a doze or a sleep with its wake-up, cost on the simulated machine.
    const LOOK: Duration = Duration::from_nanos(20);
    const NAP: Duration = Duration::from_micros(5);

    #[derive(Default, Debug)]
    struct Cost {
        cpu: Duration,
        rings: u32,
        /// Time for which work waited to be seen.
        delay: Duration,
    }

    /// Runs the poller through gaps of a simulated guest, each followed by a batch of commands.
    fn run(gaps: impl IntoIterator<Item = Duration>, batch: usize) -> Cost {
        let mut poller = Poller::new();
        let mut now = Instant::now();
        let mut cost = Cost::default();
        for gap in gaps {
            let end = now + gap;
            while now < end {
                match poller.idle(|| now) {
                    Idle::Spin => (now, cost.cpu) = (now + LOOK, cost.cpu + LOOK),
                    Idle::Doze(nap) => (now, cost.cpu) = (now + nap, cost.cpu + NAP),
                    Idle::Sleep => {
                        (now, cost.cpu) = (end.max(now), cost.cpu + NAP);
                        cost.rings += 1;
                    }
                }
            }
            cost.delay += now - end;
            poller.worked(batch, || now);
        }
        cost
    }

    #[test]
    fn short_gaps_are_spun_through() {
        let cost = run(std::iter::repeat_n(Duration::from_micros(5), 1000), 1);
        assert!(cost.rings < 20, "{cost:?}");
    }

    #[test]
    fn gaps_between_batches_are_dozed_through_and_the_guest_need_not_ring() {
        for micros in [60, 100, 200, 400] {
            let gap = Duration::from_micros(micros);
            let cost = run(std::iter::repeat_n(gap, 1000), 32);
            assert!(cost.rings < 50, "{micros}: {cost:?}");
            assert!(cost.cpu < gap * 1000 / 4, "{micros}: {cost:?}");
            assert!(cost.delay <= Poller::DOZE * 1000, "{micros}: {cost:?}");
        }
    }

    #[test]
    fn lone_commands_are_not_dozed_for() {
        let cost = run(std::iter::repeat_n(Duration::from_micros(100), 1000), 1);
        assert_eq!(cost.delay, Duration::ZERO);
        assert!(cost.rings > 950, "{cost:?}");
    }

    #[test]
    fn long_gaps_are_slept_through_after_a_bounded_spin() {
        let cost = run(std::iter::repeat_n(Duration::from_millis(10), 1000), 1);
        assert_eq!(cost.rings, 1000);
        assert!(cost.cpu < Duration::from_millis(20), "{cost:?}");
    }

    #[test]
    fn an_idle_guest_after_a_busy_one_is_dozed_for_only_a_little_while() {
        let busy = std::iter::repeat_n(Duration::from_micros(200), 1000);
        let before = run(busy.clone(), 32);
        let after = run(busy.chain([Duration::from_secs(1)]), 32);
        assert!(after.cpu - before.cpu < Duration::from_micros(500), "{before:?} {after:?}");
        assert_eq!(after.rings, before.rings + 1);
    }

    #[test]
    fn no_gap_costs_more_cpu_than_the_longest_spin_over_sleeping_at_once() {
        let mut seed = 1u64;
        let gaps: Vec<_> = (0..2000)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                Duration::from_nanos(10 << (seed >> 59))
            })
            .filter(|gap| *gap < Duration::from_secs(1))
            .collect();
        for batch in [1, 32] {
            let cost = run(gaps.iter().copied(), batch);
            let clock_slack = LOOK * 2 * Poller::LOOKS_PER_CLOCK;
            let dozes = if batch > 1 { NAP * 20 } else { Duration::ZERO };
            let worst = gaps.iter().map(|gap| (*gap).min(Poller::MAX_SPIN) + clock_slack + NAP + dozes).sum();
            assert!(cost.cpu <= worst, "{cost:?} > {worst:?}");
        }
    }
}
