//! Latencies, sampled so that taking them does not eat what is being measured.
//!
//! A time stamp costs about ten nanoseconds, two of them and a histogram entry tens. At ten million I/Os a second
//! that would be most of the time there is, so every N-th I/O is stamped: N is chosen from the rate seen while
//! warming up so that about [`SAMPLES_PER_SECOND`] remain, and is odd, so that it does not fall into step with
//! batches and rings, whose sizes are mostly powers of two. Slow rows are stamped whole.

use hdrhistogram::Histogram;
use std::time::Duration;

/// How many I/Os a second are stamped at most, by each job.
pub const SAMPLES_PER_SECOND: u64 = 100_000;

/// Longest latency that is told apart, in ticks: hours.
const MAX_TICKS: u64 = 1 << 44;

/// A counter that runs at a fixed rate, read without a system call.
#[inline]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 CPU has RDTSC, and Linux lets programs use it.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let ticks: u64;
        // SAFETY: reads the virtual counter, which Linux lets programs read; touches nothing else.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
        ticks
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Stamps every N-th I/O of one job.
pub struct Sampler {
    every: u32,
    until_next: u32,
    /// When the I/O in each slot began; 0 where it is not one of the N-th.
    began: Box<[u64]>,
    histogram: Histogram<u64>,
    start: (std::time::Instant, u64),
}

impl Sampler {
    /// For a job with `slots` I/Os in flight, which stamps one in `every`.
    ///
    /// # Errors
    ///
    /// Not with these bounds; the histogram's constructor says that it might.
    pub fn new(slots: u16, every: u32) -> anyhow::Result<Self> {
        Ok(Self {
            every,
            until_next: 1,
            began: vec![0; usize::from(slots)].into(),
            histogram: Histogram::new_with_bounds(1, MAX_TICKS, 3)?,
            start: (std::time::Instant::now(), ticks()),
        })
    }

    /// One in how many, at a rate of `iops`.
    pub fn interval(iops: f64) -> u32 {
        ((iops / SAMPLES_PER_SECOND as f64) as u32) | 1
    }

    /// The I/O in `slot` is about to be submitted.
    #[inline]
    pub fn submitting(&mut self, slot: u16) {
        self.until_next -= 1;
        if self.until_next == 0 {
            self.until_next = self.every;
            self.began[usize::from(slot)] = ticks();
        }
    }

    /// The I/O in `slot` has been seen to complete.
    #[inline]
    pub fn completed(&mut self, slot: u16) {
        let began = &mut self.began[usize::from(slot)];
        if *began != 0 {
            let latency = ticks().wrapping_sub(*began).clamp(1, MAX_TICKS);
            *began = 0;
            self.histogram.saturating_record(latency);
        }
    }

    /// What was sampled, with its unit.
    pub fn finish(self) -> Samples {
        let ticks = ticks().wrapping_sub(self.start.1).max(1);
        let ns_per_tick = self.start.0.elapsed().as_nanos() as f64 / ticks as f64;
        Samples { histogram: self.histogram, ns_per_tick }
    }
}

/// Latencies of one or more jobs.
pub struct Samples {
    histogram: Histogram<u64>,
    ns_per_tick: f64,
}

impl Samples {
    /// Adds another job's.
    ///
    /// # Errors
    ///
    /// Not between samples of this module.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.histogram.add(&other.histogram)?)
    }

    /// Their summary.
    pub fn latency(&self) -> Latency {
        let ns = |ticks: f64| (ticks * self.ns_per_tick).round() as u64;
        let quantile = |q| ns(self.histogram.value_at_quantile(q) as f64);
        Latency {
            mean: ns(self.histogram.mean()),
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: ns(self.histogram.max() as f64),
        }
    }
}

/// Latencies in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Latency {
    /// Average.
    pub mean: u64,
    /// Half of the I/Os took no longer.
    pub p50: u64,
    /// 99 of a hundred took no longer.
    pub p99: u64,
    /// 999 of a thousand took no longer.
    pub p999: u64,
    /// The longest that was seen.
    pub max: u64,
}

/// Latencies are drawn and printed in microseconds.
pub fn microseconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_n_is_stamped() {
        let mut sampler = Sampler::new(4, 3).unwrap();
        for io in 0..30u16 {
            sampler.submitting(io % 4);
            sampler.completed(io % 4);
        }
        assert_eq!(sampler.finish().histogram.len(), 10);
    }

    #[test]
    fn the_interval_is_odd_and_leaves_about_the_wanted_rate() {
        assert_eq!(Sampler::interval(20_000.0), 1);
        assert_eq!(Sampler::interval(1_000_000.0), 11);
        assert_eq!(Sampler::interval(10_000_000.0), 101);
    }

    #[test]
    fn ticks_are_converted_to_nanoseconds() {
        let mut sampler = Sampler::new(1, 1).unwrap();
        sampler.submitting(0);
        std::thread::sleep(Duration::from_millis(20));
        sampler.completed(0);
        let latency = sampler.finish().latency();
        assert!(latency.mean >= 19_000_000, "{latency:?}");
        assert!(latency.max >= latency.p50);
    }
}
