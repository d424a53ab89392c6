//! A plain io_uring loop on the file under test: what the file gives to a program that does nothing but I/O on it.
//!
//! It has all that a ring offers: one per job, single issuer with deferred task work, a registered file, registered
//! buffers, one system call for everything that there is to submit and to collect. It stays a plain one, as `fio` has
//! it: the disk, which gives the kernel what it has a few requests at a time, can be a little above it.

use super::copy::Memory;
use super::placement::{Placement, pin};
use super::workload::{Direction, Sequence, Workload};
use anyhow::{Context, Result, anyhow};
use io_uring::{EnterFlags, IoUring, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// How the loop learns of completions. Which is faster depends on the machine: asleep, a CPU may be given to the
/// thread that does the I/O; awake, nothing has to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeps in the kernel until there is one.
    Asleep,
    /// Asks again and again.
    Awake,
}

/// The file under test, opened as the disk opens it.
pub struct Subject<'a> {
    /// With O_DIRECT, if the disk's cache mode says so.
    pub file: &'a File,
    /// Bytes of it that are used.
    pub capacity: u64,
    /// Whether each write is made durable (`cache=writethrough`, `cache=directsync`).
    pub dsync: bool,
}

/// I/Os a second of `workload` on the file.
///
/// # Errors
///
/// io_uring is not to be had, or an I/O fails.
pub fn measure(
    workload: &Workload,
    subject: &Subject<'_>,
    placement: &Placement,
    waiting: Waiting,
    runtime: Duration,
) -> Result<f64> {
    let start = Barrier::new(usize::from(workload.numjobs));
    thread::scope(|scope| {
        let start = &start;
        let jobs: Vec<_> = (0..workload.numjobs)
            .map(|number| {
                scope.spawn(move || {
                    // The CPU of the reactor first: interrupts reach the loop as they would reach the disk.
                    pin(if number == 0 { placement.reactor() } else { placement.job(number - 1) });
                    let job = Job::new(workload, subject, number);
                    start.wait();
                    job?.run(waiting, runtime)
                })
            })
            .collect();
        let mut total = 0.0;
        for job in jobs {
            total += job.join().map_err(|_| anyhow!("a thread of the file loop died"))??;
        }
        Ok(total)
    })
}

struct Job {
    // Before the buffers: the kernel lets go of them when the ring is closed.
    ring: IoUring,
    buffers: Memory,
    fixed: bool,
    dsync: bool,
    block_size: u32,
    iodepth: u16,
    sequence: Sequence,
}

impl Job {
    fn new(workload: &Workload, subject: &Subject<'_>, number: u16) -> Result<Self> {
        let entries = u32::from(workload.iodepth).next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))
            .context("setting up io_uring for the plain loop on the file")?;
        ring.submitter().register_files(&[subject.file.as_raw_fd()]).context("registering the file")?;
        let buffers = Memory::new(workload.block_size as usize * usize::from(workload.iodepth))?;
        let iovecs = [libc::iovec { iov_base: buffers.base().cast(), iov_len: buffers.len() }];
        // SAFETY: the buffers live as long as the ring, which is dropped before them.
        let fixed = unsafe { ring.submitter().register_buffers(&iovecs) }.is_ok();
        Ok(Self {
            ring,
            buffers,
            fixed,
            dsync: subject.dsync,
            block_size: workload.block_size,
            iodepth: workload.iodepth,
            sequence: Sequence::new(workload, subject.capacity, number),
        })
    }

    fn entry(&mut self, slot: u16) -> squeue::Entry {
        let (direction, offset) = self.sequence.next();
        let len = self.block_size;
        let file = types::Fixed(0);
        // `slot` is below `iodepth`, of which the buffers hold a block each.
        let buffer = self.buffers.base().wrapping_add(usize::from(slot) * len as usize);
        let flags = if self.dsync { libc::RWF_DSYNC } else { 0 };
        let entry = match (direction, self.fixed) {
            (Direction::Read, true) => opcode::ReadFixed::new(file, buffer, len, 0).offset(offset).build(),
            (Direction::Read, false) => opcode::Read::new(file, buffer, len).offset(offset).build(),
            (Direction::Write, true) => {
                opcode::WriteFixed::new(file, buffer, len, 0).offset(offset).rw_flags(flags).build()
            }
            (Direction::Write, false) => {
                opcode::Write::new(file, buffer, len).offset(offset).rw_flags(flags).build()
            }
        };
        entry.user_data(u64::from(slot))
    }

    fn run(mut self, waiting: Waiting, runtime: Duration) -> Result<f64> {
        let mut idle: Vec<u16> = (0..self.iodepth).collect();
        let mut completed = 0u64;
        let began = Instant::now();
        let mut elapsed = Duration::ZERO;
        let mut failure = None;
        loop {
            // After a failure too, what is in flight is awaited: the kernel may be writing into the buffers.
            let stopping = elapsed >= runtime || failure.is_some();
            if !stopping {
                while let Some(slot) = idle.pop() {
                    let entry = self.entry(slot);
                    // SAFETY: the entry's buffer is a block of `buffers`, which outlive the ring.
                    unsafe { self.ring.submission().push(&entry) }.context("the submission queue is full")?;
                }
            }
            if idle.len() == usize::from(self.iodepth) {
                let iops = completed as f64 / elapsed.as_secs_f64();
                return failure.map_or(Ok(iops), Err).context("the plain io_uring loop on the file");
            }
            self.enter(waiting)?;
            for completion in self.ring.completion() {
                let result = completion.result();
                if result < 0 {
                    failure = Some(io::Error::from_raw_os_error(-result).into());
                } else if result.unsigned_abs() != self.block_size {
                    failure = Some(anyhow!("{result} bytes instead of {}", self.block_size));
                }
                // The token is a slot number.
                idle.push(completion.user_data() as u16);
                completed += 1;
            }
            elapsed = began.elapsed();
        }
    }

    fn enter(&mut self, waiting: Waiting) -> Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        let at_least = u32::from(waiting == Waiting::Asleep);
        // SAFETY: no argument beyond the counts; entries were pushed with buffers that outlive the ring.
        let entered = unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(
                to_submit,
                at_least,
                EnterFlags::GETEVENTS.bits(),
                None,
            )
        };
        match entered {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(error).context("io_uring_enter in the plain loop on the file")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Pattern;
    use std::os::unix::fs::FileExt;

    fn subject_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        file
    }

    #[test]
    fn both_ways_of_waiting_complete_every_pattern() {
        let file = subject_file();
        let placement = Placement::choose().unwrap();
        for waiting in [Waiting::Asleep, Waiting::Awake] {
            for (pattern, dsync) in [(Pattern::RandomMixed, false), (Pattern::Write, true)] {
                let workload =
                    Workload { pattern, read_percent: 50, block_size: 4096, iodepth: 5, numjobs: 2 };
                let subject = Subject { file: &file, capacity: 1 << 20, dsync };
                let iops =
                    measure(&workload, &subject, &placement, waiting, Duration::from_millis(20)).unwrap();
                assert!(iops > 0.0);
            }
        }
    }

    #[test]
    fn a_short_read_is_an_error() {
        let file = subject_file();
        let workload =
            Workload { pattern: Pattern::Read, read_percent: 100, block_size: 4096, iodepth: 1, numjobs: 1 };
        let subject = Subject { file: &file, capacity: 1 << 30, dsync: false };
        let placement = Placement::choose().unwrap();
        let result = measure(&workload, &subject, &placement, Waiting::Asleep, Duration::from_secs(5));
        assert!(result.is_err());
    }
}
