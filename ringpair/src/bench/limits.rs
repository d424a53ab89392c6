//! The machine's own limit beside each row.
//!
//! Virtual cores move: the round trip between two of them can double from one second to the next, and so does every
//! figure that contains it. A row is therefore held against a limit that is taken right before and right after it,
//! and is run again while the two disagree.

use super::copy::{self, Memory};
use super::file_loop::{self, Subject, Waiting};
use super::placement::Placement;
use super::ring;
use super::workload::Workload;
use anyhow::Result;
use std::fs::File;
use std::time::Duration;

/// How far apart two limits may be, relative to the higher, before the row between them is run again.
const DISAGREEMENT: f64 = 0.1;

/// How often a row is run before it is taken as it is, and marked.
const ATTEMPTS: u32 = 3;

/// How long the limits that do no I/O are measured, unless rows are shorter.
const SHORT: Duration = Duration::from_millis(200);

/// What a target is held against.
pub enum Limit {
    /// Nothing but the passing of commands: for `null:`, and for servers of which nothing else is known.
    Ring,
    /// The lower of that and of copying blocks out of this memory: for `mem:`.
    RingAndCopies(Memory),
    /// A plain io_uring loop on the same file.
    File {
        /// Opened as the disk opens it.
        file: File,
        /// Bytes of it that are used.
        capacity: u64,
        /// Whether each write is made durable.
        dsync: bool,
    },
}

/// A limit, and what it is a limit of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// I/Os a second.
    pub iops: f64,
    /// What sets it, in a word.
    pub set_by: &'static str,
}

impl Limit {
    /// The limit now. `waiting` is how a file's loop waits; `None` tries both ways, keeps the better, and measures that
    /// anew: the better one of two was partly the luckier one.
    fn measure(
        &self,
        workload: &Workload,
        placement: &Placement,
        runtime: Duration,
        waiting: &mut Option<Waiting>,
    ) -> Result<Bound> {
        let short = SHORT.min(runtime);
        let ring = || Bound { iops: ring::measure(workload, placement, short), set_by: "ring" };
        match self {
            Self::Ring => Ok(ring()),
            Self::RingAndCopies(memory) => {
                let iops = copy::measure(workload, memory, placement.reactor(), short)?;
                let ring = ring();
                Ok(if iops < ring.iops { Bound { iops, set_by: "copy" } } else { ring })
            }
            Self::File { file, capacity, dsync } => {
                let subject = Subject { file, capacity: *capacity, dsync: *dsync };
                // As long a look as at the row, within reason: storage has moods.
                let runtime = runtime.min(Duration::from_secs(1));
                let run = |waiting| file_loop::measure(workload, &subject, placement, waiting, runtime);
                let better = if let Some(waiting) = *waiting {
                    waiting
                } else {
                    let (asleep, awake) = (run(Waiting::Asleep)?, run(Waiting::Awake)?);
                    if asleep > awake { Waiting::Asleep } else { Waiting::Awake }
                };
                *waiting = Some(better);
                Ok(Bound { iops: run(better)?, set_by: "io_uring" })
            }
        }
    }

    /// Runs a row between two measurements of the limit until they agree and the row says that it was undisturbed,
    /// or often enough. What `pause` returns lives as long as a measurement of the limit.
    ///
    /// # Errors
    ///
    /// The row's, or those of measuring the limit.
    pub fn beside<T, P>(
        &self,
        workload: &Workload,
        placement: &Placement,
        runtime: Duration,
        pause: impl Fn() -> P,
        row: impl FnMut() -> Result<(T, bool)>,
    ) -> Result<Judged<T>> {
        let mut waiting = None;
        let limit = || {
            let _paused = pause();
            self.measure(workload, placement, runtime, &mut waiting)
        };
        judge(limit, row)
    }
}

/// A row, and the limit that it was held against.
#[derive(Debug, PartialEq)]
pub struct Judged<T> {
    /// The row.
    pub row: T,
    /// The mean of the limits before and after.
    pub limit: Bound,
    /// Whether these two agreed, and the row was undisturbed.
    pub steady: bool,
}

fn judge<T>(
    mut limit: impl FnMut() -> Result<Bound>,
    mut row: impl FnMut() -> Result<(T, bool)>,
) -> Result<Judged<T>> {
    let mut before = limit()?;
    let mut attempt = 1;
    loop {
        let (row, undisturbed) = row()?;
        let after = limit()?;
        let higher = before.iops.max(after.iops);
        let agree = (before.iops - after.iops).abs() <= DISAGREEMENT * higher;
        let steady = agree && undisturbed;
        if steady || attempt == ATTEMPTS {
            let set_by = if after.iops < before.iops { after.set_by } else { before.set_by };
            let limit = Bound { iops: f64::midpoint(before.iops, after.iops), set_by };
            return Ok(Judged { row, limit, steady });
        }
        tracing::info!(
            before = before.iops,
            after = after.iops,
            undisturbed,
            "unsteady: running the row again"
        );
        before = after;
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits<const N: usize>(of: [f64; N]) -> impl FnMut() -> Result<Bound> {
        let mut left = of.into_iter();
        move || Ok(Bound { iops: left.next().unwrap(), set_by: "ring" })
    }

    fn counting() -> impl FnMut() -> Result<(u32, bool)> {
        disturbed(0)
    }

    /// Counts its runs, of which the first ones are disturbed.
    fn disturbed(first: u32) -> impl FnMut() -> Result<(u32, bool)> {
        let mut runs = 0;
        move || {
            runs += 1;
            Ok((runs, runs > first))
        }
    }

    #[test]
    fn a_row_between_limits_that_agree_runs_once() {
        let judged = judge(limits([100.0, 92.0]), counting()).unwrap();
        assert_eq!(judged, Judged { row: 1, limit: Bound { iops: 96.0, set_by: "ring" }, steady: true });
    }

    #[test]
    fn a_row_between_limits_that_disagree_runs_again() {
        let judged = judge(limits([100.0, 50.0, 50.0]), counting()).unwrap();
        assert_eq!(judged, Judged { row: 2, limit: Bound { iops: 50.0, set_by: "ring" }, steady: true });
    }

    #[test]
    fn a_row_that_was_disturbed_runs_again() {
        let judged = judge(limits([100.0; 3]), disturbed(1)).unwrap();
        assert_eq!(judged, Judged { row: 2, limit: Bound { iops: 100.0, set_by: "ring" }, steady: true });
    }

    #[test]
    fn a_row_that_never_gets_a_steady_limit_is_marked() {
        let judged = judge(limits([100.0, 50.0, 100.0, 50.0]), counting()).unwrap();
        assert_eq!(judged, Judged { row: 3, limit: Bound { iops: 75.0, set_by: "ring" }, steady: false });
    }
}
