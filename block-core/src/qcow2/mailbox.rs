//! How a queue's requests get to who may block for them, and back.
//!
//! A queue has a slot for each of its requests, made when it is opened, so that handing one over allocates nothing.

use super::mapping::Mapping;
use crate::file::transfer::Transfer;
use crate::request::{Operation, RequestFlags};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A request, or what is left of it, as it is handed over.
pub(super) struct Job {
    pub operation: Operation,
    pub flags: RequestFlags,
    pub transfer: Transfer,
}

/// What has become of a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// It is for the queue to go on: what its next cluster is (or would be, if nothing is left) has been found out.
    GoOn(Mapping),
    /// It has failed, with an errno.
    Failed(i32),
}

/// The requests of one queue that are, or may be, handed over.
pub(super) struct Mailbox {
    slots: Box<[Mutex<Job>]>,
    answers: Mutex<Vec<(u32, Answer)>>,
    /// Whether there are answers: looked at before the lock is taken.
    any: AtomicBool,
    /// Readable while there are answers.
    event: OwnedFd,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    /// For a queue of `depth` requests.
    pub fn new(depth: usize) -> io::Result<Self> {
        let job = || Job {
            operation: Operation::Flush,
            flags: RequestFlags::NONE,
            transfer: Transfer::with_usual_room(),
        };
        Ok(Self {
            slots: (0..depth).map(|_| Mutex::new(job())).collect(),
            answers: Mutex::new(Vec::with_capacity(depth)),
            any: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Readable while there are answers.
    pub fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// The job in a slot; it is the queue's until it is handed over, and then the other side's until it is answered.
    pub fn job(&self, slot: u32) -> MutexGuard<'_, Job> {
        locked(&self.slots[slot as usize])
    }

    /// Answers a job.
    pub fn answer(&self, slot: u32, answer: Answer) {
        let mut answers = locked(&self.answers);
        let first = answers.is_empty();
        answers.push((slot, answer));
        if first {
            // Under the lock: who collects takes the answers and the signal together.
            self.any.store(true, Ordering::Release);
            // It cannot block or fail: the count is 0 or 1.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Whether there are answers.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Swaps the answers with `into`, which is empty and keeps what comes next.
    pub fn collect(&self, into: &mut Vec<(u32, Answer)>) {
        if self.any() {
            let mut answers = locked(&self.answers);
            std::mem::swap(&mut *answers, into);
            self.any.store(false, Ordering::Relaxed);
            let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        }
    }
}
