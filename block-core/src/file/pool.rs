//! Threads that carry out what blocks, and how requests get to them and back.
//!
//! A disk has one pool, shared by its queues. A queue has [`Jobs`]: a slot for each of its requests, made when it is
//! opened, so that handing one over allocates nothing. Threads are started as they are needed and stay.

use super::blocking::{Job, Workplace};
use super::bounce::BounceBuffer;
use super::open_file::OpenFile;
use super::transfer::Transfer;
use crate::request::Request;
use crate::write_ranges::Lane;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The threads of one disk at most. More of them would only wait for the same drive.
const MAX_THREADS: usize = 16;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of a disk.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Arc<Jobs>, u32)>,
    idle: usize,
    threads: usize,
    /// Room in `waiting` that the open queues need.
    depth: usize,
    closed: bool,
}

impl Pool {
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new() }),
            threads: Mutex::default(),
        }
    }

    /// Makes room for the requests of another queue.
    pub fn reserve(&self, depth: usize) {
        let mut state = locked(&self.shared.state);
        state.depth += depth;
        let additional = state.depth.saturating_sub(state.waiting.len());
        state.waiting.reserve(additional);
    }

    /// Takes back [`Pool::reserve`].
    pub fn release(&self, depth: usize) {
        locked(&self.shared.state).depth -= depth;
    }

    /// Hands over the jobs in these slots. Fails, having taken none, if no thread could be started at all.
    pub fn run(&self, jobs: &Arc<Jobs>, slots: &[u32]) -> io::Result<()> {
        let mut state = locked(&self.shared.state);
        let needed = (state.waiting.len() + slots.len()).saturating_sub(state.idle);
        for _ in 0..needed.min(MAX_THREADS - state.threads.min(MAX_THREADS)) {
            match self.start_thread() {
                Ok(()) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                Err(_) => break,
            }
        }
        state.waiting.extend(slots.iter().map(|&slot| (jobs.clone(), slot)));
        let wake = state.idle.min(slots.len());
        drop(state);
        for _ in 0..wake {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("block-io".to_owned()).spawn(move || work(&shared))?;
        locked(&self.threads).push(thread);
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        locked(&self.shared.state).closed = true;
        self.shared.work.notify_all();
        for thread in locked(&self.threads).drain(..) {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// What each thread does.
fn work(shared: &Shared) {
    let mut bounce: Option<BounceBuffer> = None;
    let mut state = locked(&shared.state);
    loop {
        if let Some((jobs, slot)) = state.waiting.pop_front() {
            drop(state);
            let bounce = bounce.get_or_insert_with(|| jobs.file.bounce_buffer());
            jobs.carry_out(slot, bounce);
            drop(jobs);
            state = locked(&shared.state);
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// The requests of one queue that are, or may be, with the pool.
pub(super) struct Jobs {
    file: Arc<OpenFile>,
    /// Where the queue's plain writes are published, by slot.
    lane: Arc<Lane>,
    slots: Box<[Mutex<Job>]>,
    /// Slots that have ended and how, until the queue collects them.
    ended: Mutex<Vec<(u32, Result<(), i32>)>>,
    /// Whether there are any: what [`Jobs::collect`] looks at before it takes a lock.
    any_ended: AtomicBool,
    /// Readable while there are any.
    event: OwnedFd,
}

impl Jobs {
    /// For a queue of `depth` requests, each with `room` for its segments.
    pub fn new(
        file: Arc<OpenFile>,
        depth: usize,
        room: fn() -> Transfer,
        event_flags: EventfdFlags,
    ) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | event_flags)?;
        let lane = file.ranges.lane(depth);
        Ok(Self {
            file,
            lane,
            slots: (0..depth).map(|_| Mutex::new(Job::none(room()))).collect(),
            ended: Mutex::new(Vec::with_capacity(depth)),
            any_ended: AtomicBool::new(false),
            event,
        })
    }

    /// Readable while something waits to be collected.
    pub fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Where the queue's plain writes are published.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Puts a request into a slot, to be handed over.
    pub fn begin(&self, slot: u32, request: &Request<'_>) {
        if let Some(job) = self.slots.get(slot as usize) {
            locked(job).begin(request);
        }
    }

    /// The job in a slot that is not handed over.
    pub fn job(&self, slot: u32) -> Option<MutexGuard<'_, Job>> {
        self.slots.get(slot as usize).map(locked)
    }

    fn carry_out(&self, slot: u32, bounce: &mut BounceBuffer) {
        let Some(mut job) = self.job(slot) else { return };
        let mut workplace = Workplace { bounce, lane: &self.lane, slot: slot as usize };
        // SAFETY: the request is pending until this has been collected, and its submitter keeps the segments valid.
        let result = unsafe { self.file.execute(&mut job, &mut workplace) };
        drop(job);
        self.end(slot, result);
    }

    /// Notes how the job in a slot has ended.
    pub fn end(&self, slot: u32, result: Result<(), i32>) {
        let mut ended = locked(&self.ended);
        let first = ended.is_empty();
        ended.push((slot, result));
        if first {
            // Under the lock: who collects takes the list and the signal together.
            self.any_ended.store(true, Ordering::Release);
            // It cannot block or fail: the count is 0 or 1.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Moves what has ended into `into`, whose place in turn keeps what ends next. `signal_taken` says that the event
    /// has been read already.
    #[inline]
    pub fn collect(&self, into: &mut Vec<(u32, Result<(), i32>)>, signal_taken: bool) {
        if self.any_ended.load(Ordering::Acquire) {
            let mut ended = locked(&self.ended);
            std::mem::swap(&mut *ended, into);
            self.any_ended.store(false, Ordering::Relaxed);
            if !signal_taken {
                let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
            }
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.file.ranges.remove_lane(&self.lane);
    }
}

/// Waits until no thread of the pool looks at `jobs` any more, which is at most a few instructions after its last job
/// has ended: so that whoever closes the disk next closes the file with it, and its locks.
pub(super) fn let_go(jobs: &Arc<Jobs>) {
    while Arc::strong_count(jobs) > 1 {
        std::thread::yield_now();
    }
}
