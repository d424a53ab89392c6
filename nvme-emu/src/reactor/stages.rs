//! Where commands spend their time in the controller, sampled: for whoever asked for it when the controller was made.
//!
//! ```text
//!  doorbell seen ──queued──▶ fetched ──decode──▶ submitted ──disk──▶ done ──post──▶ completion posted
//! ```
//!
//! One command in [`EVERY`] has its time taken at each of these, one at a time in each shard, so that the stamps cost
//! hardly anything even where a command takes fifty nanoseconds. What a stamp itself takes is measured and left out.
//! Commands that take several requests are not sampled. Where nobody asks, a shard finds that out once a batch: the
//! data path is generic in its [`Stamps`].

use crate::controller::counters::{Counter, ReactorCounters};
use block_core::Submission;
use serde::Serialize;
use std::time::{Duration, Instant};

/// One command in so many. A prime, so that it does not fall into step with batches.
const EVERY: u32 = 251;

/// Sums over the sampled commands, with one writer.
#[derive(Debug, Default)]
pub(crate) struct StageCounters {
    samples: Counter,
    queued_ns: Counter,
    decode_ns: Counter,
    disk_ns: Counter,
    post_ns: Counter,
}

/// Times of sampled commands, summed. Divided by `samples`, they are means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageTimes {
    /// How many commands.
    pub samples: u64,
    /// From the look that saw their doorbell to when they were fetched: behind others of their batch.
    pub queued_ns: u64,
    /// Until they were submitted to their disk: validated, and their addresses looked up.
    pub decode_ns: u64,
    /// Until their disk had done them.
    pub disk_ns: u64,
    /// Until their completions were posted.
    pub post_ns: u64,
}

impl StageTimes {
    /// Adds what a reactor has counted.
    pub(crate) fn add(&mut self, counters: &StageCounters) {
        self.samples += counters.samples.get();
        self.queued_ns += counters.queued_ns.get();
        self.decode_ns += counters.decode_ns.get();
        self.disk_ns += counters.disk_ns.get();
        self.post_ns += counters.post_ns.get();
    }
}

/// What a command tells on its way through the data path. Nobody (`()`) wants to know, and costs nothing; the
/// [`StageSampler`] does of the commands that it has picked.
pub(super) trait Stamps {
    /// Marks the token of its request.
    const MARK: u32 = 0;

    /// It is fetched.
    fn fetched(&mut self) {}
    /// It is about to be submitted.
    fn submitting(&mut self) {}
    /// It has been submitted.
    fn submitted(&mut self, _: Submission) {}
    /// It is none whose stages these are.
    fn forget(&mut self) {}
    /// Its completion has been posted.
    fn posted(&mut self, _: &ReactorCounters) {}
}

impl Stamps for () {}

/// Marks the tokens of requests whose time is being taken.
pub(super) const SAMPLED: u32 = 1 << 30;

/// The command whose time is being taken: when it was fetched, submitted, and known to be done.
#[derive(Clone, Copy, Debug)]
struct Sample {
    fetched: Instant,
    submitted: Instant,
    done: Instant,
}

/// Picks commands of a shard and takes their time.
pub(crate) struct StageSampler {
    /// Commands until the next one that is picked.
    left: u32,
    /// When the doorbell was seen of the batch that the next one is in.
    seen: Instant,
    sample: Option<Sample>,
    /// What a stamp takes.
    stamp: Duration,
}

impl StageSampler {
    pub(crate) fn new() -> Self {
        const STAMPS: u32 = 64;
        let begin = Instant::now();
        let end = (0..STAMPS).fold(begin, |_, _| Instant::now());
        Self { left: EVERY - 1, seen: begin, sample: None, stamp: (end - begin) / STAMPS }
    }

    /// A doorbell was seen, of a queue where so many commands wait.
    pub(super) fn doorbell(&mut self, waiting: u32) {
        if self.sample.is_none() && waiting > self.left {
            self.seen = Instant::now();
        }
    }

    /// Whether the next command is one whose time is taken.
    pub(super) fn picks_next(&self) -> bool {
        self.left == 0 && self.sample.is_none()
    }

    /// Another command was fetched.
    pub(super) fn passed(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// The picked command, which had to wait for its disk, is done.
    pub(super) fn done(&mut self) {
        if let Some(sample) = &mut self.sample {
            sample.done = Instant::now();
        }
    }
}

impl Stamps for StageSampler {
    const MARK: u32 = SAMPLED;

    fn fetched(&mut self) {
        let now = Instant::now();
        self.sample = Some(Sample { fetched: now, submitted: now, done: now });
        self.left = EVERY;
    }

    fn submitting(&mut self) {
        if let Some(sample) = &mut self.sample {
            sample.submitted = Instant::now();
        }
    }

    fn submitted(&mut self, submission: Submission) {
        match submission {
            Submission::Done(_) => self.done(),
            Submission::Pending => {}
            // It will be fetched again.
            Submission::Full => self.forget(),
        }
    }

    fn forget(&mut self) {
        self.sample = None;
    }

    fn posted(&mut self, counters: &ReactorCounters) {
        let Some(sample) = self.sample.take() else { return };
        let posted = Instant::now();
        let ns = |from: Instant, to: Instant| {
            let taken = to.saturating_duration_since(from).saturating_sub(self.stamp);
            u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX)
        };
        let stages = &counters.stages;
        stages.samples.add(1);
        stages.queued_ns.add(ns(self.seen, sample.fetched));
        stages.decode_ns.add(ns(sample.fetched, sample.submitted));
        stages.disk_ns.add(ns(sample.submitted, sample.done));
        stages.post_ns.add(ns(sample.done, posted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_in_so_many_is_sampled_and_no_other_while_it_is_under_way() {
        let (mut sampler, counters) = (StageSampler::new(), ReactorCounters::default());
        let mut picked = 0;
        for _ in 0..10 * EVERY {
            sampler.doorbell(1);
            if sampler.picks_next() {
                picked += 1;
                sampler.fetched();
                sampler.submitting();
                sampler.submitted(Submission::Pending);
                for _ in 0..2 * EVERY {
                    sampler.passed();
                    assert!(!sampler.picks_next());
                }
                sampler.left = EVERY;
                std::thread::sleep(Duration::from_millis(2));
                sampler.done();
                sampler.posted(&counters);
            }
            sampler.passed();
        }
        let mut times = StageTimes::default();
        times.add(&counters.stages);
        assert_eq!((picked, times.samples), (10, 10));
        assert!(times.disk_ns >= 10 * 1_900_000, "{times:?}");
        assert!(times.queued_ns + times.decode_ns < times.disk_ns, "{times:?}");
    }

    #[test]
    fn a_command_that_finds_no_room_is_forgotten() {
        let (mut sampler, counters) = (StageSampler::new(), ReactorCounters::default());
        sampler.fetched();
        sampler.submitted(Submission::Full);
        sampler.posted(&counters);
        assert_eq!(counters.stages.samples.get(), 0);
    }
}
