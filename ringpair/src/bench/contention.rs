//! Whether the threads that were measured had their CPUs to themselves.
//!
//! The driver's jobs and the server's reactor poll: undisturbed, they use all the time that passes. What is missing went
//! to somebody else, and as each side waits for the other, a figure suffers twice.

use super::place::Place;
use super::placement::Placement;
use super::server::Server;
use super::workload::Workload;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// The part of its time that each side must have had.
const ENOUGH: f64 = 0.9;

/// Taken before a row.
pub struct Watch<'a> {
    began: Instant,
    /// Threads of this process that poll, or CPUs if those are less.
    polling: f64,
    own: Duration,
    server: Option<(&'a Server, Duration)>,
}

impl<'a> Watch<'a> {
    /// Begins to watch the jobs of this process and the controller, if it is ours.
    pub fn start(workload: &Workload, placement: &Placement, place: &'a Place) -> Self {
        Self::of(workload, placement, place.own_cpus(), place.server())
    }

    fn of(workload: &Workload, placement: &Placement, own_cpus: usize, server: Option<&'a Server>) -> Self {
        let jobs = usize::from(workload.numjobs).min(placement.job_cpus());
        Self {
            began: Instant::now(),
            polling: (jobs + own_cpus) as f64,
            own: own_cpu_time(),
            server: server.and_then(|server| Some((server, server.cpu_time()?))),
        }
    }

    /// Whether both sides had their CPUs until now.
    pub fn undisturbed(&self) -> bool {
        let needed = self.began.elapsed().mul_f64(ENOUGH);
        let own = own_cpu_time().saturating_sub(self.own) >= needed.mul_f64(self.polling);
        let server = self.server.as_ref().is_none_or(|(server, before)| {
            server.cpu_time().is_none_or(|after| after.saturating_sub(*before) >= needed)
        });
        own && server
    }
}

fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Pattern;

    #[test]
    fn a_thread_that_slept_was_disturbed() {
        let workload =
            Workload { pattern: Pattern::Read, read_percent: 100, block_size: 512, iodepth: 1, numjobs: 1 };
        // More than the other tests of this process, meanwhile, can make up for.
        let watch = Watch::of(&workload, &Placement::choose().unwrap(), 1000, None);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!watch.undisturbed());
    }
}
