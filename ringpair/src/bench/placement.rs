//! Which CPU does what while measuring.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;

/// The CPUs of a measurement: the driver's jobs on some, the controller's reactor on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    jobs: Vec<usize>,
    reactor: usize,
}

impl Placement {
    /// Takes the CPUs that this process may run on (`taskset` narrows them), one of each core while there are
    /// cores left, the last one for the reactor.
    ///
    /// # Errors
    ///
    /// The kernel does not say which CPUs there are.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("asking which CPUs this process may use")?;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let cores: Vec<usize> = cpus.iter().copied().filter(|&cpu| is_first_of_core(cpu, &cpus)).collect();
        Self::divide(if cores.len() >= 2 { cores } else { cpus })
    }

    fn divide(mut cpus: Vec<usize>) -> Result<Self> {
        let reactor = cpus.pop().context("this process may use no CPU")?;
        if cpus.is_empty() {
            cpus.push(reactor);
        }
        Ok(Self { jobs: cpus, reactor })
    }

    /// Where job number `job` runs.
    pub fn job(&self, job: u16) -> usize {
        self.jobs[usize::from(job) % self.jobs.len()]
    }

    /// How many CPUs the jobs share.
    pub fn job_cpus(&self) -> usize {
        self.jobs.len()
    }

    /// Where the controller's reactor runs.
    pub fn reactor(&self) -> usize {
        self.reactor
    }

    /// Whether both sides have to share a CPU, so that figures say little.
    pub fn is_cramped(&self) -> bool {
        self.jobs.contains(&self.reactor)
    }
}

/// Whether no CPU before this one in `cpus` is another thread of the same core.
fn is_first_of_core(cpu: usize, cpus: &[usize]) -> bool {
    let core = |cpu: usize| {
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()
    };
    let own = core(cpu);
    own.is_none() || !cpus.iter().take_while(|&&other| other != cpu).any(|&other| core(other) == own)
}

/// Keeps the calling thread on a CPU. A machine that refuses is measured as it is.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!("cannot pin a thread to CPU {cpu}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_is_the_reactors() {
        let placement = Placement::divide(vec![0, 2, 5]).unwrap();
        assert_eq!((placement.job(0), placement.job(1), placement.job(2)), (0, 2, 0));
        assert_eq!(placement.reactor(), 5);
        assert!(!placement.is_cramped());
    }

    #[test]
    fn a_single_cpu_is_shared() {
        assert!(Placement::divide(vec![3]).unwrap().is_cramped());
    }
}
