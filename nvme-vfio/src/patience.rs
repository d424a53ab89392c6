//! Waiting for a controller, up to a limit: spin first, then give the CPU away, then sleep.

use std::time::{Duration, Instant};

/// A wait with a limit.
pub(crate) struct Patience {
    start: Instant,
    limit: Duration,
    turns: u32,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), limit, turns: 0 }
    }

    /// Lets a little time pass; false once the limit has.
    pub(crate) fn wait(&mut self) -> bool {
        self.turns = self.turns.saturating_add(1);
        match self.turns {
            ..2_000 => std::hint::spin_loop(),
            2_000..2_200 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
        // The clock costs more than a spin.
        !(self.turns.is_multiple_of(64) || self.turns >= 2_000) || self.start.elapsed() < self.limit
    }

    /// Whether it is time to look at something expensive as well: after the spinning, once in about 10 ms.
    pub(crate) fn look_around(&self) -> bool {
        self.turns >= 2_200 && self.turns.is_multiple_of(64)
    }
}
