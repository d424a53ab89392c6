//! What a disk has promised to keep, and whether it has: for power cuts on a simulated medium
//! ([`crate::file::simulated`]), servers that are killed, and whatever else ends a disk before its time.
//!
//! A [`Workload`] does what a guest does to any [`crate::Disk`] (overlapping writes at depth, FUA, flushes, discards, write
//! zeroes, on several queues) and writes a [`History`] of what it asked and what it was told. Each sector that it writes
//! says which request wrote it, and where to. Once the disk is gone, [`History::check`] holds what is left against it:
//! for each sector there is a set of requests that may have been the last, and nothing else may be found there.

mod ended;
mod history;
mod mode;
mod workload;

pub use ended::writing_has_ended;
pub use history::{History, Loss, Promise};
pub use mode::{ENGINES, Mode};
pub use workload::Workload;

use std::ops::Range;

/// The seeds to run a test with: as many as the test finds enough, or `RINGPAIR_SEEDS` times as many; from
/// `RINGPAIR_SEED` on, if that is set.
///
/// # Panics
///
/// A variable that is no number.
pub fn seeds(enough: u64) -> Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let first = number("RINGPAIR_SEED").unwrap_or(0);
    first..first + enough * number("RINGPAIR_SEEDS").unwrap_or(1)
}
