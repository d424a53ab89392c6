//! When to spin, when to doze and when to sleep.
//!
//! A state machine without a clock, a descriptor or a thread in it: it is told what each look found, and when, and
//! says what to do next. `simulation.rs` runs it against made-up guests and says what it costs.
//!
//! | state | a look finds work | a look finds nothing |
//! |---|---|---|
//! | *busy*: the last look found work | busy | spinning; asleep if commands come alone and far apart |
//! | *spinning*: looking again at once | busy | spinning, until the spin is over; then dozing if commands come in batches, else asleep |
//! | *dozing*: looking every [`DOZE`], doorbells left unarmed | busy | dozing, until the doze is over; then asleep |
//! | *asleep*: doorbells armed, until something happens | busy | spinning: it was woken for something |
//!
//! From the first look that finds nothing to the next that finds something is a *gap*. What each state is for:
//!
//! * *Spinning.* To be woken costs the reactor, the guest and its VMM about [`WAKE`] together, so a gap shorter than
//!   that is better spun through, and a longer one better slept from its beginning. Nobody knows beforehand which it
//!   will be. So each gap that ends is charged to every length of [`SPINS`] as if that had been in force, and the
//!   length that would have cost least lately is ([`Spin`]). Against the best *fixed* length in hindsight this loses
//!   little more than what it takes to notice that the guest has changed; and as no length is above [`WAKE`], no
//!   gap costs more than twice what somebody who knew the future would have paid, plus the shortest spin.
//! * *Dozing.* A guest that works through a batch of completions and submits the next takes longer than a spin, but
//!   need not ring, and a doze costs little. A lone command would wait for up to one doze, so only guests whose
//!   commands come in batches (of [`BATCH`] or more) are dozed for, and only if their gaps end within [`MAX_DOZE`].
//! * *Sleeping* has no bound: nothing polls on an idle controller. Where each command lately was followed by a gap of
//!   [`FAR_APART`] or more, even the shortest spin is left out: it would find nothing, and keep whoever is to hear of
//!   the completion from this CPU.
//!
//! Bounds, for any sequence of gaps (tested): CPU time of [`WAKE`] and `MAX_DOZE / DOZE` dozes a gap above that of
//! sleeping at once; delay of one doze a batch, and none for a lone command, above that of always spinning.

mod spin;

#[cfg(test)]
mod simulation;

use spin::Spin;
use std::time::{Duration, Instant};

/// What being woken costs everybody together: longest spin.
pub(crate) const WAKE: Duration = Duration::from_micros(50);
/// One doze.
pub(crate) const DOZE: Duration = Duration::from_micros(50);
/// Longest series of dozes.
pub(crate) const MAX_DOZE: Duration = Duration::from_millis(1);
/// Commands between two gaps that make a batch.
const BATCH: u32 = 3;
/// Gaps after which a command is alone: more than a wake-up takes, so that a guest whose gaps only seem long because the
/// reactor has to be woken from them is not among those that are never spun for.
const FAR_APART: Duration = Duration::from_micros(100);
/// Looks between two looks at the clock, which costs more than they do.
const LOOKS_PER_CLOCK: u32 = 32;

/// What to do with no work at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Look again.
    Spin,
    /// Sleep for this long, or until something happens that needs no doorbell, then look again.
    Doze(Duration),
    /// Sleep until something happens, then look again.
    Sleep,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Busy,
    /// After so many looks; `since` is the first look at the clock, unknown while the spin is young.
    Spinning {
        looks: u32,
        since: Option<Instant>,
    },
    Dozing {
        since: Instant,
    },
    Asleep {
        since: Instant,
    },
}

/// The state of one reactor's patience.
#[derive(Debug)]
pub(crate) struct Poller {
    state: State,
    spin: Spin,
    /// Commands since the last gap that was longer than its spin.
    batch: u32,
    /// Moving averages over those gaps: of the commands between them, in sixteenths, and of their lengths.
    usual_batch: u32,
    usual_gap: Duration,
}

impl Poller {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Busy,
            spin: Spin::default(),
            batch: 0,
            usual_batch: 0,
            usual_gap: Duration::ZERO,
        }
    }

    /// A look found work, so many commands of it. The clock is only asked when the answer matters.
    #[inline]
    pub(crate) fn worked(&mut self, commands: usize, clock: impl FnOnce() -> Instant) {
        if !matches!(self.state, State::Busy) {
            self.end_gap(clock);
        }
        self.batch = self.batch.saturating_add(commands as u32);
    }

    /// A look found nothing.
    #[inline]
    pub(crate) fn idle(&mut self, clock: impl FnOnce() -> Instant) -> Idle {
        match self.state {
            State::Busy if !self.is_far_apart() => self.state = State::Spinning { looks: 1, since: None },
            State::Spinning { looks, since } if !looks.is_multiple_of(LOOKS_PER_CLOCK) => {
                self.state = State::Spinning { looks: looks.wrapping_add(1), since };
            }
            _ => return self.idle_at(clock()),
        }
        Idle::Spin
    }

    fn idle_at(&mut self, now: Instant) -> Idle {
        let (state, answer) = match self.state {
            State::Busy => self.rest(now, now),
            State::Spinning { looks, since } => {
                let since = since.unwrap_or(now);
                if now.saturating_duration_since(since) < self.spin.length() {
                    (State::Spinning { looks: looks.wrapping_add(1), since: Some(since) }, Idle::Spin)
                } else {
                    self.rest(since, now)
                }
            }
            State::Dozing { since } => self.rest(since, now),
            State::Asleep { .. } => {
                // However long it was, the gap is over: what comes next is looked for with fresh patience.
                self.end_gap(|| now);
                (State::Spinning { looks: 1, since: Some(now) }, Idle::Spin)
            }
        };
        self.state = state;
        answer
    }

    /// Whether commands come one at a time, with long gaps between them.
    #[inline]
    fn is_far_apart(&self) -> bool {
        // One and a half: now and then there may be two.
        self.usual_batch < 24 && self.usual_gap >= FAR_APART && self.spin.is_shortest()
    }

    /// What to do when the spin is over.
    fn rest(&self, since: Instant, now: Instant) -> (State, Idle) {
        if now.saturating_duration_since(since) < self.doze() {
            (State::Dozing { since }, Idle::Doze(DOZE))
        } else {
            (State::Asleep { since }, Idle::Sleep)
        }
    }

    /// How long to doze, counted from the beginning of the gap.
    fn doze(&self) -> Duration {
        if self.usual_batch < BATCH * 16 || self.usual_gap > MAX_DOZE {
            return Duration::ZERO;
        }
        (self.usual_gap * 4).min(MAX_DOZE)
    }

    #[inline]
    fn end_gap(&mut self, clock: impl FnOnce() -> Instant) {
        let state = std::mem::replace(&mut self.state, State::Busy);
        match state {
            // One that ended before the clock was looked at is shorter than any spin: all of them would have paid the
            // same, so there is nothing to learn from it.
            State::Busy | State::Spinning { since: None, .. } => {}
            State::Spinning { since: Some(since), .. } => {
                self.spin.charge(clock().saturating_duration_since(since));
            }
            State::Dozing { since } | State::Asleep { since } => {
                self.end_long_gap(clock().saturating_duration_since(since));
            }
        }
    }

    /// A gap has ended that was longer than its spin.
    fn end_long_gap(&mut self, gap: Duration) {
        self.spin.charge(gap);
        // One that is twice too long to be dozed through says no more than that.
        self.usual_gap = (self.usual_gap * 7 + gap.min(MAX_DOZE * 2)) / 8;
        self.usual_batch = (self.usual_batch * 7 + self.batch.min(1024) * 16) / 8;
        self.batch = 0;
    }
}
