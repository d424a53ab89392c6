//! The disk queues of one reactor: one for each disk that any of its controllers uses.

use block_core::{Completion, Disk, Operation, Queue, Request, Submission};
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

/// Requests that can be pending at a disk, from one reactor.
const DEPTH: u16 = 1024;

struct DiskQueue {
    disk: Arc<dyn Disk>,
    queue: Box<dyn Queue>,
    takes_hints: bool,
    /// Requests submitted since the last kick.
    submitted: bool,
    pending: u32,
}

/// The disk queues of one reactor.
#[derive(Default)]
pub(crate) struct DiskQueues {
    queues: Vec<DiskQueue>,
    /// Pending at all of them.
    pending: usize,
}

impl DiskQueues {
    /// Where the disk's queue is; opens it if there is none yet.
    pub(crate) fn open(&mut self, disk: &Arc<dyn Disk>) -> io::Result<(usize, Option<RawFd>)> {
        if let Some(index) = self.queues.iter().position(|q| Arc::ptr_eq(&q.disk, disk)) {
            return Ok((index, None));
        }
        let queue = disk.open_queue(DEPTH)?;
        let fd = queue.wait_fd().map(|fd| fd.as_raw_fd());
        let takes_hints = queue.takes_hints();
        self.queues.push(DiskQueue { disk: disk.clone(), queue, takes_hints, submitted: false, pending: 0 });
        Ok((self.queues.len() - 1, fd))
    }

    /// Submits to the disk's queue.
    ///
    /// # Safety
    ///
    /// As [`Queue::submit`].
    #[inline]
    pub(crate) unsafe fn submit(&mut self, disk: usize, request: Request<'_>) -> Submission {
        let queue = &mut self.queues[disk];
        // SAFETY: the caller's promise.
        let submission = unsafe { queue.queue.submit(request) };
        if submission == Submission::Pending {
            queue.submitted = true;
            queue.pending += 1;
            self.pending += 1;
        }
        submission
    }

    /// Whether the disk has any use for [`DiskQueues::expect`].
    pub(crate) fn takes_hints(&self, disk: usize) -> bool {
        self.queues[disk].takes_hints
    }

    /// As [`Queue::hint`].
    #[inline]
    pub(crate) fn hint(&self, disk: usize, operation: Operation, offset: u64, len: u64) {
        let queue = &self.queues[disk];
        if queue.takes_hints {
            queue.queue.hint(operation, offset, len);
        }
    }

    /// Whether no disk queue has anything for this thread to do; from here on their descriptors tell.
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.queues.iter_mut().all(|queue| queue.queue.may_sleep())
    }

    /// Ends the batch, and collects what has completed.
    #[inline]
    pub(crate) fn kick_and_poll(&mut self, completions: &mut Vec<Completion>) {
        if self.pending == 0 {
            return;
        }
        for queue in &mut self.queues {
            if std::mem::take(&mut queue.submitted) {
                queue.queue.kick();
            }
            if queue.pending > 0 {
                let ended = queue.queue.poll(completions);
                queue.pending -= ended as u32;
                self.pending -= ended;
            }
        }
    }
}
