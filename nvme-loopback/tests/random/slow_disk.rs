//! A disk in memory that takes its time, so that there is data on its way when something happens.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::{Completion, Disk, DiskInfo, Queue, Request, Segment, Submission};

use block_core::mem::MemDisk;

use super::Random;

/// Takes up to so long for each request.
pub struct SlowDisk {
    pub memory: Arc<MemDisk>,
    pub longest: Duration,
}

impl Disk for SlowDisk {
    fn info(&self) -> DiskInfo {
        // So that flushes are sent.
        DiskInfo { volatile_cache: true, ..self.memory.info() }
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        let memory = self.memory.open_queue(depth)?;
        Ok(Box::new(SlowQueue { memory, longest: self.longest, pending: Vec::new(), random: Random(1) }))
    }

    fn flush(&self) -> io::Result<()> {
        self.memory.flush()
    }
}

struct SlowQueue {
    memory: Box<dyn Queue>,
    longest: Duration,
    pending: Vec<Pending>,
    random: Random,
}

struct Pending {
    due: Instant,
    request: Request<'static>,
    segments: Vec<Segment>,
}

impl SlowQueue {
    fn finish(&mut self, index: usize) -> Completion {
        let Pending { request, segments, .. } = self.pending.swap_remove(index);
        // SAFETY: whoever submitted the request promises that its memory is there until it has completed.
        match unsafe { self.memory.submit(Request { segments: &segments, ..request }) } {
            Submission::Done(result) => Completion { token: request.token, result },
            Submission::Pending | Submission::Full => unreachable!("memory is done at once"),
        }
    }
}

impl Queue for SlowQueue {
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        let longest = self.longest.as_micros() as u64;
        let due = Instant::now() + Duration::from_micros(self.random.below(longest + 1));
        let segments = request.segments.to_vec();
        let Request { operation, offset, len, flags, token, .. } = request;
        let request = Request { operation, offset, len, segments: &[], flags, token };
        self.pending.push(Pending { due, request, segments });
        Submission::Pending
    }

    fn kick(&mut self) {}

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let (before, now) = (completions.len(), Instant::now());
        while let Some(index) = self.pending.iter().position(|pending| pending.due <= now) {
            completions.push(self.finish(index));
        }
        completions.len() - before
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn may_sleep(&mut self) -> bool {
        self.pending.is_empty()
    }
}

impl Drop for SlowQueue {
    fn drop(&mut self) {
        while !self.pending.is_empty() {
            self.finish(0);
        }
    }
}
