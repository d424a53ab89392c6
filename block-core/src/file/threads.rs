//! `aio=threads`: every request is carried out by a thread that blocks. For kernels and sandboxes without io_uring.

use super::open_file::OpenFile;
use super::pool::{Jobs, Pool, let_go};
use super::transfer::Transfer;
use crate::queue::{Queue, Submission};
use crate::request::{Completion, Request, RequestError};
use rustix::event::EventfdFlags;
use rustix::fd::AsFd;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A queue whose requests the disk's threads carry out.
pub(super) struct ThreadsQueue {
    file: Arc<OpenFile>,
    pool: Arc<Pool>,
    jobs: Arc<Jobs>,
    /// What completions need of each slot's request.
    requests: Box<[Pending]>,
    free: Vec<u32>,
    /// Submitted, not handed over yet.
    batch: Vec<u32>,
    /// Collected from the pool; empty between calls.
    ended: Vec<(u32, Result<(), i32>)>,
}

/// A request that has a slot.
#[derive(Clone, Copy, Default)]
pub(super) struct Pending {
    pub token: u64,
    pub offset: u64,
    pub len: u64,
}

impl Pending {
    pub fn new(request: &Request<'_>) -> Self {
        Self { token: request.token, offset: request.offset, len: request.len }
    }

    pub fn completion(self, result: Result<(), i32>) -> Completion {
        let Self { token, offset, len } = self;
        Completion { token, result: result.map_err(|errno| RequestError { errno, offset, len }) }
    }
}

impl ThreadsQueue {
    pub fn open(file: Arc<OpenFile>, pool: Arc<Pool>, depth: u16) -> io::Result<Self> {
        let depth = usize::from(depth.max(1));
        let jobs =
            Arc::new(Jobs::new(file.clone(), depth, Transfer::with_usual_room, EventfdFlags::NONBLOCK)?);
        pool.reserve(depth);
        Ok(Self {
            file,
            pool,
            jobs,
            requests: vec![Pending::default(); depth].into(),
            free: (0..depth as u32).rev().collect(),
            batch: Vec::with_capacity(depth),
            ended: Vec::with_capacity(depth),
        })
    }
}

impl Queue for ThreadsQueue {
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        if let Some(result) = self.file.settled(&request) {
            return Submission::Done(result);
        }
        let Some(slot) = self.free.pop() else { return Submission::Full };
        self.requests[slot as usize] = Pending::new(&request);
        self.jobs.begin(slot, &request);
        self.batch.push(slot);
        Submission::Pending
    }

    fn kick(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if let Err(error) = self.pool.run(&self.jobs, &self.batch) {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            for &slot in &self.batch {
                self.jobs.end(slot, Err(errno));
            }
        }
        self.batch.clear();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        self.jobs.collect(&mut self.ended, false);
        let before = completions.len();
        for (slot, result) in self.ended.drain(..) {
            completions.push(self.requests[slot as usize].completion(result));
            self.free.push(slot);
        }
        completions.len() - before
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.jobs.event().as_fd())
    }
}

impl Drop for ThreadsQueue {
    fn drop(&mut self) {
        self.kick();
        let mut rest = Vec::new();
        while self.free.len() < self.requests.len() {
            if self.poll(&mut rest) == 0 {
                let mut fds = [rustix::event::PollFd::new(self.jobs.event(), rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, None);
            }
        }
        let_go(&self.jobs);
        self.pool.release(self.requests.len());
    }
}
