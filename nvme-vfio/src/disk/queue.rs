//! The data path: requests in, commands out.
//!
//! What nearly all requests are, whole blocks and registered memory, becomes one command that is sent in
//! [`Queue::submit`]. Everything else is a request in several steps: `Work::advance` sends what can be sent now, and is
//! called again when commands have ended (they lead on) or room has come back (the stalled ones, in their order).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use block_core::{Completion, Queue, Request, Submission};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::counters::QueueCounters;
use super::drive::Drive;
use super::namespace::DiskNamespace;
use super::work::Work;
use crate::queue_pair::QueuePair;

/// How long dropping a queue sleeps at most between two looks.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A queue on a namespace.
pub(super) struct NvmeQueue {
    /// Its right to a queue pair; dropped after that.
    pair: QueuePair,
    work: Work,
    _lease: Lease,
}

/// Gives the queue pair's place, and the counters, back to the drive.
struct Lease {
    drive: Arc<Drive>,
    counters: Arc<QueueCounters>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.drive.take_back(&self.counters);
    }
}
impl NvmeQueue {
    pub(super) fn open(
        drive: Arc<Drive>,
        disk: Arc<DiskNamespace>,
        depth: u16,
        read_only: bool,
    ) -> io::Result<Self> {
        let (pair, counters) = drive.hand_out()?;
        let lease = Lease { drive: drive.clone(), counters: counters.clone() };
        // A request is one command as a rule: more of them than commands would only wait.
        let depth = depth.min(pair.depth()).max(1);
        let work = Work::new(drive, disk, (depth, pair.depth()), read_only, counters)?;
        Ok(Self { pair, work, _lease: lease })
    }

    /// Takes what has ended, and goes on with what that makes possible.
    fn collect(&mut self, out: &mut Vec<Completion>) {
        let Self { pair, work, .. } = self;
        let polled = pair.poll(|token, result| work.command_ended(token, result, out));
        if !work.ended.is_empty() {
            work.lead_on(pair, out);
        }
        if !work.stalled.is_empty() {
            work.retry(pair, out);
        }
        if work.discards_are_late {
            work.kick_discards(pair);
        }
        if std::mem::take(&mut work.sent) {
            pair.kick();
        }
        if let Err(fault) = polled {
            work.fail(fault, out);
        }
    }
}

impl Queue for NvmeQueue {
    #[inline]
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        self.work.submit(&mut self.pair, &request)
    }

    fn kick(&mut self) {
        let Self { pair, work, .. } = self;
        work.kick_discards(pair);
        work.sent = false;
        pair.kick();
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        if !self.work.ready.is_empty() {
            completions.append(&mut self.work.ready);
        }
        self.collect(completions);
        completions.len() - before
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pair.wait_fd()
    }

    fn may_sleep(&mut self) -> bool {
        match self.pair.wait_fd() {
            // Interrupts of completions that have been polled already. For one that comes from here on, it becomes
            // readable again; one that came just before is found by the look that follows.
            Some(eventfd) => drop(rustix::io::read(eventfd, &mut [0; 8])),
            None if self.work.is_idle() => return true,
            None => return false,
        }
        let mut ready = std::mem::take(&mut self.work.ready);
        self.collect(&mut ready);
        self.work.ready = ready;
        self.work.ready.is_empty() && !self.work.waits_for_others()
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        let mut out = Vec::new();
        self.kick();
        while !self.work.is_idle() {
            self.collect(&mut out);
            out.clear();
            if self.work.is_idle() {
                break;
            }
            if let Some(eventfd) = self.pair.wait_fd() {
                let _ = rustix::event::poll(&mut [PollFd::new(&eventfd, PollFlags::IN)], Some(&PATIENCE));
                let _ = rustix::io::read(eventfd, &mut [0; 8]);
                if let Err(fault) = self.pair.check() {
                    self.work.fail(fault, &mut out);
                }
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        self.work.disk.ranges.remove_lane(&self.work.lane);
    }
}
