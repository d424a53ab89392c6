//! `aio=io_uring`: requests go to the kernel through a ring of shared memory, one system call for up to [`BATCH`] of
//! them.
//!
//! Each queue has a [`Ring`] of its own. What io_uring cannot take as it is goes to the disk's thread pool, whose event
//! the ring reads, so that the ring's descriptor is the only one to wait on.

use super::open_file::OpenFile;
use super::pool::{Jobs, Pool, let_go};
use super::ring::{Completed, Entry, REAP, Ring};
use super::threads::Pending;
use super::transfer::Transfer;
use crate::queue::{Queue, Submission};
use crate::request::{Completion, Operation, Request, RequestFlags};
use rustix::event::EventfdFlags;
use rustix::fd::AsFd;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// `IORING_MAX_ENTRIES` of the kernel, less one for the pool's event.
const MAX_DEPTH: u16 = 32767;

/// Requests that go to the kernel in one system call, at most.
///
/// The kernel takes some microseconds of CPU time for each, and the medium hears of the first only when the call is
/// through with all of them. So a medium that has nothing else to do, because it completed all that it had together,
/// begins earlier the smaller the batch, while each batch costs a system call and what ringing the medium costs.
/// `docs/speed.md` has what was measured.
const BATCH: u32 = 8;

/// The user data of the read that waits for the pool's event; requests have their slot's number.
const POOL_EVENT: u64 = u64::MAX;

/// A queue on a ring.
pub(super) struct UringQueue<R: Ring> {
    ring: R,
    file: Arc<OpenFile>,
    pool: Arc<Pool>,
    jobs: Arc<Jobs>,
    slots: Box<[Slot]>,
    free: Vec<u32>,
    /// Entries in the submission ring that the kernel has not taken yet.
    unsubmitted: u32,
    /// Entries that the kernel has taken and not given back.
    with_kernel: u32,
    /// For the pool, handed over by the next kick.
    pool_batch: Vec<u32>,
    with_pool: usize,
    /// Whether the ring waits for the pool's event.
    event_armed: bool,
    /// Where that read puts the event's count; nobody looks at it.
    event_count: Box<u64>,
    /// Collected from the pool; empty between calls.
    ended: Vec<(u32, Result<(), i32>)>,
    /// The next poll has something to give to the kernel or the pool: the rest of a request, or a batch that the
    /// kernel had no memory for.
    unfinished: bool,
}

/// A request and how far it has got.
struct Slot {
    request: Pending,
    step: Step,
    transfer: Transfer,
    /// It is a plain write among the disk's [`crate::write_ranges`].
    entered: bool,
}

/// What of a request the kernel is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write {
        /// It must be durable when the request completes.
        durable: bool,
        /// It was submitted with `RWF_DSYNC`.
        dsync: bool,
    },
    /// A flush, or the second step of a durable write.
    Sync,
}

/// What a completion means for its request.
enum Outcome {
    Ended(Result<(), i32>),
    /// There is more to submit.
    Continue,
    /// The rest is not for io_uring.
    ToPool,
}

impl<R: Ring> UringQueue<R> {
    pub fn open(file: Arc<OpenFile>, pool: Arc<Pool>, depth: u16) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        // Each request has at most one entry at a time, and the pool's event has one.
        let ring = R::open(&file, u32::from(depth) + 1)?;
        let depth = usize::from(depth);
        // Blocking, for io_uring then waits where a non-blocking descriptor would give `EAGAIN`.
        let jobs = Arc::new(Jobs::new(file.clone(), depth, Transfer::empty, EventfdFlags::empty())?);
        pool.reserve(depth);
        let slot = |_| Slot {
            request: Pending::default(),
            step: Step::Sync,
            transfer: Transfer::with_usual_room(),
            entered: false,
        };
        Ok(Self {
            ring,
            file,
            pool,
            jobs,
            slots: (0..depth).map(slot).collect(),
            free: (0..depth as u32).rev().collect(),
            unsubmitted: 0,
            with_kernel: 0,
            pool_batch: Vec::with_capacity(depth),
            with_pool: 0,
            event_armed: false,
            event_count: Box::new(0),
            ended: Vec::with_capacity(depth),
            unfinished: false,
        })
    }

    /// Puts the next step of a slot's request into the submission ring.
    #[inline]
    fn push_step(&mut self, index: u32) {
        let Slot { step, transfer, .. } = &mut self.slots[index as usize];
        let (segments, offset) = (transfer.next_segments(), transfer.offset);
        let entry = match step {
            Step::Read => Entry::Read { segments, offset },
            Step::Write { durable, dsync } => {
                *dsync = *durable && !self.file.dsync_refused.load(Ordering::Relaxed);
                Entry::Write { segments, offset, dsync: *dsync }
            }
            Step::Sync => Entry::Sync,
        };
        // SAFETY: what the entry points to (segments in the slot, memory of the request) stays until it has completed:
        // slots are reused, and the queue dropped, only then.
        while !unsafe { self.ring.push(entry, u64::from(index)) } {
            // There is room for every slot and the event; should a kernel ever leave entries behind, it gets them first.
            let taken = self.ring.enter(self.unsubmitted, 0).unwrap_or(0).min(self.unsubmitted);
            self.unsubmitted -= taken;
            self.with_kernel += taken;
        }
        self.unsubmitted += 1;
    }

    /// Enters a write that io_uring could take among the plain ones; `false` if it has to be exclusive.
    #[inline]
    fn enter_range(&mut self, index: u32, request: &Request<'_>) -> bool {
        let direct = self.file.cache.direct();
        let entered =
            direct && self.file.ranges.enter(self.jobs.lane(), index as usize, request.offset, request.len);
        self.slots[index as usize].entered = entered;
        entered || !direct
    }

    /// Hands a request to the pool with the next kick.
    #[cold]
    fn hand_to_pool(&mut self, index: u32) {
        self.pool_batch.push(index);
        self.with_pool += 1;
    }

    #[cold]
    fn kick_pool(&mut self) {
        if let Err(error) = self.pool.run(&self.jobs, &self.pool_batch) {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            for &index in &self.pool_batch {
                self.jobs.end(index, Err(errno));
            }
        }
        self.pool_batch.clear();
        self.arm_event();
    }

    fn arm_event(&mut self) {
        if self.with_pool > 0 && !self.event_armed {
            let entry = Entry::Event { event: self.jobs.event().as_fd(), count: &raw mut *self.event_count };
            // SAFETY: the event and its count stay as long as the queue, which waits for its entries before it goes.
            while !unsafe { self.ring.push(entry, POOL_EVENT) } {
                // As in `push_step`.
                let taken = self.ring.enter(self.unsubmitted, 0).unwrap_or(0).min(self.unsubmitted);
                self.unsubmitted -= taken;
                self.with_kernel += taken;
            }
            self.unsubmitted += 1;
            self.event_armed = true;
        }
    }

    /// Gives the kernel what is in the submission ring and takes what has completed, waiting for `wait` completions.
    fn enter(&mut self, wait: u32) {
        loop {
            match self.ring.enter(self.unsubmitted, wait) {
                Ok(n) => {
                    let taken = n.min(self.unsubmitted);
                    self.unsubmitted -= taken;
                    self.with_kernel += taken;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // No memory for requests for now. Those under way will end and wake whoever sleeps on the ring, and
                    // the poll that follows comes back here; with none under way, only trying again helps.
                    Some(libc::EAGAIN | libc::EBUSY) if self.with_kernel == 0 => {
                        std::thread::yield_now();
                        continue;
                    }
                    Some(libc::EAGAIN | libc::EBUSY) => {
                        self.unfinished = true;
                        return;
                    }
                    _ => {
                        tracing::error!(%error, "io_uring_enter failed");
                        self.unfinished = true;
                        return;
                    }
                },
            }
            if self.unsubmitted == 0 {
                return;
            }
        }
    }

    fn complete(&mut self, index: u32, result: i32) -> Outcome {
        let slot = &mut self.slots[index as usize];
        if let Some(n) = u64::try_from(result).ok().filter(|&n| n > 0) {
            slot.transfer.advance(n.min(slot.transfer.left));
            let done = slot.transfer.left == 0;
            return match slot.step {
                Step::Write { durable: true, dsync: false } if done => {
                    slot.step = Step::Sync;
                    Outcome::Continue
                }
                _ if done => Outcome::Ended(Ok(())),
                _ if self.file.takes_rest_directly(&slot.transfer) => Outcome::Continue,
                _ => Outcome::ToPool,
            };
        }
        match (slot.step, -result) {
            (_, libc::EINTR | libc::EAGAIN) => Outcome::Continue,
            (Step::Sync, 0) => Outcome::Ended(Ok(())),
            (Step::Sync, errno) => {
                self.file.sync_failed(errno);
                Outcome::Ended(Err(errno))
            }
            // Zeroes, which the kernel does not have.
            (Step::Read, 0) if self.file.image => Outcome::ToPool,
            // A read at the end of a file that was cut off behind our back; a write that moves nothing.
            (_, 0) => Outcome::Ended(Err(libc::EIO)),
            (Step::Write { dsync: true, .. }, libc::EOPNOTSUPP) => {
                self.file.dsync_refused.store(true, Ordering::Relaxed);
                Outcome::Continue
            }
            (Step::Write { dsync, .. }, errno) => {
                self.file.write_failed(errno, dsync);
                Outcome::Ended(Err(errno))
            }
            (_, errno) => Outcome::Ended(Err(errno)),
        }
    }

    #[inline]
    fn leave(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if std::mem::take(&mut slot.entered) {
            self.file.ranges.leave(self.jobs.lane(), index as usize);
        }
    }

    #[inline]
    fn end(&mut self, index: u32, result: Result<(), i32>, completions: &mut Vec<Completion>) {
        self.leave(index);
        completions.push(self.slots[index as usize].request.completion(result));
        self.free.push(index);
    }

    #[cold]
    fn collect_from_pool(&mut self, completions: &mut Vec<Completion>) {
        self.event_armed = false;
        let mut ended = std::mem::take(&mut self.ended);
        self.jobs.collect(&mut ended, true);
        for (index, result) in ended.drain(..) {
            self.with_pool -= 1;
            self.end(index, result, completions);
        }
        self.ended = ended;
        self.arm_event();
        self.unfinished |= self.event_armed;
    }

    /// Works off what is in the completion ring.
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut entries: [MaybeUninit<Completed>; REAP] = [const { MaybeUninit::uninit() }; REAP];
        loop {
            let n = self.ring.reap(&mut entries);
            if n == 0 {
                return;
            }
            self.with_kernel -= n as u32;
            for entry in &entries[..n] {
                // SAFETY: `reap` has written the first `n`.
                let Completed { user_data, result } = unsafe { entry.assume_init() };
                if user_data == POOL_EVENT {
                    self.collect_from_pool(completions);
                    continue;
                }
                let index = user_data as u32;
                match self.complete(index, result) {
                    Outcome::Ended(result) => self.end(index, result, completions),
                    Outcome::Continue => {
                        self.push_step(index);
                        self.unfinished = true;
                    }
                    Outcome::ToPool => self.rest_to_pool(index),
                }
            }
        }
    }

    #[cold]
    fn rest_to_pool(&mut self, index: u32) {
        // The pool enters the range again, as what is left needs it.
        self.leave(index);
        let slot = &mut self.slots[index as usize];
        if let Some(mut job) = self.jobs.job(index) {
            (job.operation, job.flags) = match slot.step {
                Step::Write { durable: true, .. } => (Operation::Write, RequestFlags::FUA),
                Step::Write { durable: false, .. } => (Operation::Write, RequestFlags::NONE),
                _ => (Operation::Read, RequestFlags::NONE),
            };
            std::mem::swap(&mut job.transfer, &mut slot.transfer);
        }
        self.hand_to_pool(index);
        self.unfinished = true;
    }
}

impl<R: Ring> Queue for UringQueue<R> {
    #[inline]
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        if let Some(result) = self.file.settled(&request) {
            return Submission::Done(result);
        }
        let Some(index) = self.free.pop() else { return Submission::Full };
        let step = match request.operation {
            Operation::Read if self.file.takes_directly(request.offset, request.len, request.segments) => {
                Some(Step::Read)
            }
            Operation::Write if self.file.takes_directly(request.offset, request.len, request.segments) => {
                let durable = self.file.durable(request.operation, request.flags);
                self.enter_range(index, &request).then_some(Step::Write { durable, dsync: false })
            }
            Operation::Flush => Some(Step::Sync),
            _ => None,
        };
        let slot = &mut self.slots[index as usize];
        slot.request = Pending::new(&request);
        match step {
            Some(step) => {
                slot.step = step;
                slot.transfer.begin(&request);
                self.push_step(index);
                if self.unsubmitted >= BATCH {
                    self.enter(0);
                }
            }
            None => {
                self.jobs.begin(index, &request);
                self.hand_to_pool(index);
            }
        }
        Submission::Pending
    }

    #[inline]
    fn kick(&mut self) {
        self.unfinished = false;
        if !self.pool_batch.is_empty() {
            self.kick_pool();
        }
        if self.unsubmitted > 0 {
            self.enter(0);
        }
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        if self.free.len() == self.slots.len() {
            return 0;
        }
        self.reap(completions);
        // Completions that the kernel has, but works off only when it is asked to.
        while self.ring.has_deferred() {
            self.enter(0);
            self.reap(completions);
        }
        if self.unfinished {
            self.kick();
        }
        completions.len() - before
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.fd())
    }
}

impl<R: Ring> Drop for UringQueue<R> {
    fn drop(&mut self) {
        let mut rest = Vec::new();
        self.kick();
        while self.free.len() < self.slots.len() {
            self.enter(1);
            self.poll(&mut rest);
        }
        let_go(&self.jobs);
        self.pool.release(self.slots.len());
        self.ring.release_file();
    }
}

#[cfg(test)]
mod tests {
    use super::super::open::FileOptions;
    use super::super::ring::{KernelRing, probe};
    use super::*;
    use crate::Segment;

    /// A queue on a file, and 8 KiB of memory to write from. `None`, and says so, without io_uring or O_DIRECT.
    fn queue(cache: &str) -> Option<(UringQueue<KernelRing>, Vec<u8>)> {
        if let Err(error) = probe() {
            eprintln!("skipped: no io_uring: {error}");
            return None;
        }
        let exe = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let name = format!("{},cache={cache}", file.path().display());
        let file = match FileOptions::take(name.parse().unwrap()).unwrap().open() {
            Ok(file) => Arc::new(file),
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let queue = UringQueue::open(file, Arc::new(Pool::new()), 2 * BATCH as u16).unwrap();
        Some((queue, vec![0; 16384]))
    }

    /// Submits an aligned write of 8 KiB at 4096 and gives its slot; the kernel has not got it yet.
    fn write(queue: &mut UringQueue<KernelRing>, memory: &mut [u8], flags: RequestFlags) -> u32 {
        let aligned = memory.as_ptr().align_offset(4096);
        let base = memory[aligned..].as_mut_ptr();
        let segments = [Segment { base, len: 8192 }];
        let request = Request {
            operation: Operation::Write,
            offset: 4096,
            len: 8192,
            segments: &segments,
            flags,
            token: 7,
        };
        let slot = *queue.free.last().unwrap();
        // SAFETY: the queue is dropped before `memory`.
        assert_eq!(unsafe { queue.submit(request) }, Submission::Pending);
        slot
    }

    #[test]
    fn a_full_batch_does_not_wait_for_the_kick() {
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        for n in 1..BATCH {
            write(&mut queue, &mut memory, RequestFlags::NONE);
            assert_eq!((queue.unsubmitted, queue.with_kernel), (n, 0));
        }
        write(&mut queue, &mut memory, RequestFlags::NONE);
        assert_eq!((queue.unsubmitted, queue.with_kernel), (0, BATCH));
        write(&mut queue, &mut memory, RequestFlags::NONE);
        assert_eq!(queue.unsubmitted, 1, "begins the next");
        drop(queue);
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::NONE);
        assert!(matches!(queue.complete(slot, 100), Outcome::Continue));
        let transfer = &queue.slots[slot as usize].transfer;
        assert_eq!((transfer.offset, transfer.left, transfer.next_segments()[0].len), (4196, 8092, 8092));
        assert!(matches!(queue.complete(slot, 8092), Outcome::Ended(Ok(()))));
        drop(queue);
    }

    #[test]
    fn past_the_page_cache_the_rest_of_a_write_cut_inside_a_block_is_for_the_pool() {
        let Some((mut queue, mut memory)) = queue("none") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::NONE);
        assert!(matches!(queue.complete(slot, 100), Outcome::ToPool));
        drop(queue);
    }

    #[test]
    fn interrupted_steps_are_taken_again() {
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::NONE);
        for errno in [libc::EINTR, libc::EAGAIN] {
            assert!(matches!(queue.complete(slot, -errno), Outcome::Continue));
        }
        assert_eq!(queue.slots[slot as usize].transfer.left, 8192);
        drop(queue);
    }

    #[test]
    fn where_rwf_dsync_is_refused_a_durable_write_takes_two_steps() {
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::FUA);
        assert_eq!(queue.slots[slot as usize].step, Step::Write { durable: true, dsync: true });
        assert!(matches!(queue.complete(slot, -libc::EOPNOTSUPP), Outcome::Continue));
        queue.push_step(slot);
        assert_eq!(queue.slots[slot as usize].step, Step::Write { durable: true, dsync: false });
        assert!(matches!(queue.complete(slot, 8192), Outcome::Continue), "written, not durable");
        assert_eq!(queue.slots[slot as usize].step, Step::Sync);
        assert!(matches!(queue.complete(slot, 0), Outcome::Ended(Ok(()))));
        queue.reap_all(2);
        drop(queue);
    }

    #[test]
    fn a_failed_sync_and_a_failed_durable_write_end_all_writing_a_plain_one_does_not() {
        for (flags, fails) in [(RequestFlags::NONE, false), (RequestFlags::FUA, true)] {
            let Some((mut queue, mut memory)) = queue("writeback") else { return };
            let slot = write(&mut queue, &mut memory, flags);
            assert!(matches!(queue.complete(slot, -libc::EIO), Outcome::Ended(Err(libc::EIO))));
            assert_eq!(queue.file.writable().is_err(), fails);
            drop(queue);
        }
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::NONE);
        queue.slots[slot as usize].step = Step::Sync;
        assert!(matches!(queue.complete(slot, -libc::ENOSPC), Outcome::Ended(Err(libc::ENOSPC))));
        assert_eq!(queue.file.writable(), Err(libc::ENOSPC));
        drop(queue);
    }

    #[test]
    fn a_step_that_moves_nothing_is_an_error() {
        let Some((mut queue, mut memory)) = queue("writeback") else { return };
        let slot = write(&mut queue, &mut memory, RequestFlags::NONE);
        assert!(matches!(queue.complete(slot, 0), Outcome::Ended(Err(libc::EIO))));
        drop(queue);
    }

    impl UringQueue<KernelRing> {
        /// Lets the kernel have `n` entries that tests have left in the ring, so that none of them is in the way of the
        /// queue's end.
        fn reap_all(&mut self, n: usize) {
            self.enter(n as u32);
            let mut entries = [const { MaybeUninit::uninit() }; REAP];
            let mut left = n;
            while left > 0 {
                left -= self.ring.reap(&mut entries);
            }
            self.free = (0..self.slots.len() as u32).collect();
        }
    }
}
