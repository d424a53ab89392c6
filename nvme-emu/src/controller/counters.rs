//! Counters: each is written by one thread, and summed when somebody asks.

use crate::reactor::stages::{StageCounters, StageTimes};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only ever by its writer, so that a plain load and store will do.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds to it, with other writers about.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one reactor counts for one controller, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ReactorCounters {
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) other_commands: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) bytes_written: Counter,
    pub(crate) compares: Counter,
    pub(crate) bytes_compared: Counter,
    pub(crate) errors: Counter,
    pub(crate) busy_ns: Counter,
    pub(crate) late_completions: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) stages: StageCounters,
}

impl ReactorCounters {
    /// Commands completed.
    pub(crate) fn commands(&self) -> u64 {
        self.reads.get() + self.writes.get() + self.other_commands.get()
    }
}

/// What is counted for one controller by whoever does it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) doorbell_messages: Counter,
    pub(crate) resets: Counter,
}

/// A controller's counters, summed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ControllerCounters {
    /// Read commands completed.
    pub reads: u64,
    /// Write commands completed.
    pub writes: u64,
    /// Other commands of I/O queues completed.
    pub other_commands: u64,
    /// Bytes that read commands transferred.
    pub bytes_read: u64,
    /// Bytes that write commands transferred.
    pub bytes_written: u64,
    /// Compare commands completed; they count as other commands too.
    pub compares: u64,
    /// Bytes that compare and verify commands read.
    pub bytes_compared: u64,
    /// Nanoseconds during which commands were outstanding or being looked for, of all reactors.
    pub busy_ns: u64,
    /// Commands of I/O queues that ended with an error.
    pub errors: u64,
    /// Requests that ended after their controller had been reset; their completions were not posted.
    pub late_completions: u64,
    /// Interrupts fired.
    pub interrupts: u64,
    /// Doorbell writes that were trapped: messages from the client, or calls.
    pub doorbell_messages: u64,
    /// Controller level resets.
    pub resets: u64,
    /// Where commands spent their time, if that was asked for ([`crate::ControllerOptions::explain`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<StageTimes>,
}

impl ControllerCounters {
    pub(crate) fn sum<'a>(
        counters: &Counters,
        by_reactor: impl IntoIterator<Item = &'a ReactorCounters>,
        explain: bool,
    ) -> Self {
        let mut sum = Self {
            doorbell_messages: counters.doorbell_messages.get(),
            resets: counters.resets.get(),
            stages: explain.then(StageTimes::default),
            ..Self::default()
        };
        for part in by_reactor {
            sum.reads += part.reads.get();
            sum.writes += part.writes.get();
            sum.other_commands += part.other_commands.get();
            sum.bytes_read += part.bytes_read.get();
            sum.bytes_written += part.bytes_written.get();
            sum.compares += part.compares.get();
            sum.bytes_compared += part.bytes_compared.get();
            sum.busy_ns += part.busy_ns.get();
            sum.errors += part.errors.get();
            sum.late_completions += part.late_completions.get();
            sum.interrupts += part.interrupts.get();
            sum.stages.iter_mut().for_each(|stages| stages.add(&part.stages));
        }
        sum
    }
}
