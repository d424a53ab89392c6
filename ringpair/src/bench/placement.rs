//! Which CPU does what while measuring.

use anyhow::{Context, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeSet;
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

    /// The same for a server of somebody else's, whose threads are pinned to these CPUs: a job beside one that polls would
    /// wait for its time slices.
    pub fn beside(&self, pinned: &BTreeSet<usize>) -> Self {
        let cpus: BTreeSet<usize> = self.jobs.iter().copied().chain([self.reactor]).collect();
        let Some(&reactor) = cpus.intersection(pinned).last() else { return self.clone() };
        let jobs: Vec<usize> = cpus.difference(pinned).copied().collect();
        Self { jobs: if jobs.is_empty() { vec![reactor] } else { jobs }, reactor }
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

/// The CPUs that a process has busy threads for which may run nowhere else: all but those that ran for less than a tenth of
/// the time of the busiest. None if it has ended, or is in another PID namespace.
pub fn pinned_cpus(process: Pid) -> BTreeSet<usize> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let pinned: Vec<(usize, u64)> = tasks.filter_map(|task| pinned_thread(&task)).collect();
    let most = pinned.iter().map(|(_, ran)| *ran).max().unwrap_or(0);
    pinned.into_iter().filter(|(_, ran)| *ran >= most / 10).map(|(cpu, _)| cpu).collect()
}

/// The only CPU that a thread may run on, and for how many ns it has run.
fn pinned_thread(task: &fs::DirEntry) -> Option<(usize, u64)> {
    let thread = Pid::from_raw(task.file_name().to_str()?.parse().ok()?)?;
    let set = sched_getaffinity(Some(thread)).ok().filter(|set| set.count() == 1)?;
    let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| set.is_set(cpu))?;
    let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
    let ran = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
    Some((cpu, ran))
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn the_last_cpu_is_the_reactors() {
        let placement = Placement::divide(vec![0, 2, 5]).unwrap();
        assert_eq!((placement.job(0), placement.job(1), placement.job(2)), (0, 2, 0));
        assert_eq!(placement.reactor(), 5);
        assert!(!placement.is_cramped());
    }

    #[test]
    fn jobs_stay_off_the_cpus_that_a_server_is_pinned_to() {
        let placement = Placement::divide(vec![0, 1, 2]).unwrap();
        assert_eq!(placement.beside(&[0].into()), Placement { jobs: vec![1, 2], reactor: 0 });
        assert_eq!(placement.beside(&[2, 7].into()), Placement { jobs: vec![0, 1], reactor: 2 });
        assert_eq!(placement.beside(&[0, 1].into()), Placement { jobs: vec![2], reactor: 1 });
        for elsewhere in [BTreeSet::new(), [7].into()] {
            assert_eq!(placement.beside(&elsewhere), placement);
        }
        assert!(placement.beside(&[0, 1, 2].into()).is_cramped());
    }

    #[test]
    fn a_busy_pinned_thread_is_seen_from_outside() {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
        let seen = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(cpu);
                while !seen.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let start = Instant::now();
            while !seen.load(Ordering::Relaxed) {
                let late = start.elapsed() > Duration::from_secs(20);
                seen.store(late || pinned_cpus(rustix::process::getpid()).contains(&cpu), Ordering::Relaxed);
                assert!(!late, "it was not seen");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    #[test]
    fn a_single_cpu_is_shared() {
        assert!(Placement::divide(vec![3]).unwrap().is_cramped());
    }
}
