//! Deadlines of commands in flight, without a clock when they are submitted.
//!
//! A queue pair looks at its commands now and then: at every beat of the controller's caretaker, or once in so many
//! polls. A command's time counts from the first look that finds it in flight, so a deadline is late by the time
//! between two looks at most, and costs a submission one byte written.
//!
//! ```text
//!  Unseen ──first look──▶ Seen ──deadline──▶ Aborting ──deadline of the Abort──▶ too late
//! ```

use std::time::{Duration, Instant};

use crate::command_identifier::CommandIdentifiers;

/// Where a command's deadline stands. Times are milliseconds on the clock of [`Deadlines`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Submitted since the last look.
    Unseen,
    /// In flight since then at least.
    Seen(u32),
    /// Its Abort was asked for then.
    Aborting(u32),
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing to be done.
    InTime,
    /// This command's deadline has passed: it is to be aborted. Said once.
    Expired(u16),
    /// This command was to be aborted and is still in flight.
    TooLate(u16),
}

/// The limits of one queue's commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    epoch: Instant,
    limit_ms: u32,
    abort_ms: u32,
}

impl Deadlines {
    /// `limit` for a command, then `abort` for its Abort to end it.
    pub(crate) fn new(limit: Duration, abort: Duration) -> Self {
        Self { epoch: Instant::now(), limit_ms: milliseconds(limit), abort_ms: milliseconds(abort) }
    }

    /// Looks at all commands in flight; the worst that there is.
    pub(crate) fn look(&self, commands: &mut CommandIdentifiers, now: Instant) -> Verdict {
        // Wraps after 49 days, and so do the differences.
        let now = now.saturating_duration_since(self.epoch).as_millis() as u32;
        let mut verdict = Verdict::InTime;
        for (cid, stage) in commands.stages() {
            match *stage {
                Stage::Unseen => *stage = Stage::Seen(now),
                Stage::Seen(since) if now.wrapping_sub(since) >= self.limit_ms => {
                    if verdict == Verdict::InTime {
                        *stage = Stage::Aborting(now);
                        verdict = Verdict::Expired(cid);
                    }
                }
                Stage::Aborting(since) if now.wrapping_sub(since) >= self.abort_ms => {
                    return Verdict::TooLate(cid);
                }
                Stage::Seen(_) | Stage::Aborting(_) => {}
            }
        }
        verdict
    }
}

/// Up to half of what the clock can tell apart.
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).map_or(u32::MAX / 2, |ms| ms.min(u32::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Setup {
        cids: CommandIdentifiers,
        deadlines: Deadlines,
    }

    impl Setup {
        fn new() -> Self {
            let deadlines = Deadlines::new(Duration::from_millis(100), Duration::from_millis(30));
            Self { cids: CommandIdentifiers::new(4), deadlines }
        }

        fn take(&mut self) -> u16 {
            self.cids.take(0).unwrap().1
        }

        fn at(&mut self, ms: u64) -> Verdict {
            self.deadlines.look(&mut self.cids, self.deadlines.epoch + Duration::from_millis(ms))
        }
    }

    #[test]
    fn a_deadline_counts_from_the_first_look_at_the_command() {
        let mut setup = Setup::new();
        let first = setup.take();
        assert_eq!(setup.at(1000), Verdict::InTime);
        let second = setup.take();
        assert_eq!(setup.at(1050), Verdict::InTime);
        assert_eq!(setup.at(1120), Verdict::Expired(first));
        setup.cids.complete(first);
        assert_eq!(setup.at(1149), Verdict::InTime);
        assert_eq!(setup.at(1150), Verdict::Expired(second));
    }

    #[test]
    fn an_abort_is_asked_for_once_and_has_a_deadline_of_its_own() {
        let mut setup = Setup::new();
        let cid = setup.take();
        assert_eq!(setup.at(0), Verdict::InTime);
        assert_eq!(setup.at(100), Verdict::Expired(cid));
        assert_eq!(setup.at(129), Verdict::InTime);
        assert_eq!(setup.at(130), Verdict::TooLate(cid));
    }

    #[test]
    fn several_that_expire_together_are_reported_one_after_the_other() {
        let mut setup = Setup::new();
        let (first, second) = (setup.take(), setup.take());
        setup.at(0);
        assert_eq!(setup.at(100), Verdict::Expired(first));
        assert_eq!(setup.at(101), Verdict::Expired(second));
        assert_eq!(setup.at(102), Verdict::InTime);
    }

    #[test]
    fn a_command_that_takes_the_place_of_another_has_time_of_its_own() {
        let mut setup = Setup::new();
        let cid = setup.take();
        setup.at(0);
        setup.cids.complete(cid);
        setup.take();
        assert_eq!(setup.at(500), Verdict::InTime);
    }

    #[test]
    fn a_limit_longer_than_the_clock_goes_is_as_long_as_the_clock_can_say() {
        let mut setup = Setup::new();
        setup.deadlines = Deadlines::new(Duration::MAX, Duration::MAX);
        setup.take();
        setup.at(0);
        assert_eq!(setup.at(u64::from(u32::MAX) / 2 - 1), Verdict::InTime);
    }
}
