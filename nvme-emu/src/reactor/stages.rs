//! Where commands spend their time in the controller, sampled: for whoever asked for it when the controller was made.
//!
//! ```text
//!  doorbell seen ──queued──▶ fetched ──decode──▶ submitted ──disk──▶ done ──post──▶ completion posted
//! ```
//!
//! One command in [`EVERY`] has its time taken at each of these, one at a time in each shard, so that the stamps cost
//! hardly anything even where a command takes fifty nanoseconds. What a stamp itself takes is measured and left out.
//! Commands that take several requests are not sampled.

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

/// The command whose time is being taken.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// When it was fetched, submitted, and known to be done.
    fetched: Instant,
    submitted: Instant,
    done: Instant,
    /// Where it waits for its disk, once it does.
    slot: Option<u32>,
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
        Self { left: EVERY, seen: begin, sample: None, stamp: (end - begin) / STAMPS }
    }

    /// A doorbell was seen, of a queue where so many commands wait.
    pub(crate) fn doorbell(&mut self, waiting: u32) {
        if self.sample.is_none() && waiting >= self.left {
            self.seen = Instant::now();
        }
    }

    /// A command is fetched; says whether it is one whose time is taken.
    pub(crate) fn fetched(&mut self) -> bool {
        if self.sample.is_some() {
            return false;
        }
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.left = EVERY;
        let now = Instant::now();
        self.sample = Some(Sample { fetched: now, submitted: now, done: now, slot: None });
        true
    }

    /// The picked command is about to be submitted.
    pub(crate) fn submitting(&mut self) {
        if let Some(sample) = &mut self.sample {
            sample.submitted = Instant::now();
        }
    }

    /// The picked command has been submitted; if it has to wait for its disk, it does so in this slot.
    pub(crate) fn submitted(&mut self, submission: Submission, slot: u32) {
        match submission {
            Submission::Done(_) => self.done(),
            Submission::Pending => self.sample.iter_mut().for_each(|sample| sample.slot = Some(slot)),
            // It will be fetched again.
            Submission::Full => self.forget(),
        }
    }

    /// The picked command is none whose stages these are.
    pub(crate) fn forget(&mut self) {
        self.sample = None;
    }

    /// A command that waited in this slot is done; says whether it is the picked one.
    pub(crate) fn completed(&mut self, slot: u32) -> bool {
        let picked = self.sample.as_ref().is_some_and(|sample| sample.slot == Some(slot));
        if picked {
            self.done();
        }
        picked
    }

    fn done(&mut self) {
        if let Some(sample) = &mut self.sample {
            sample.done = Instant::now();
        }
    }

    /// The picked command's completion has been posted.
    pub(crate) fn posted(&mut self, counters: &ReactorCounters) {
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
        for command in 0..10 * EVERY {
            sampler.doorbell(1);
            if sampler.fetched() {
                picked += 1;
                sampler.submitting();
                sampler.submitted(Submission::Pending, 7);
                assert!(!sampler.fetched() && !sampler.completed(6), "{command}");
                std::thread::sleep(Duration::from_millis(2));
                assert!(sampler.completed(7));
                sampler.posted(&counters);
            }
        }
        let mut times = StageTimes::default();
        times.add(&counters.stages);
        assert_eq!((picked, times.samples), (10, 10));
        assert!(times.disk_ns >= 10 * 1_900_000, "{times:?}");
        assert!(times.queued_ns + times.decode_ns < times.disk_ns, "{times:?}");
    }
}
