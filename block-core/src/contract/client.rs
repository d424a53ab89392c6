//! What the tests do requests with.

use crate::{Completion, Disk, Operation, Queue, Request, RequestFlags, RequestResult, Segment, Submission};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use std::os::fd::BorrowedFd;

/// Longer than any request of these tests can take.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Memory at an address of a chosen alignment, for segments.
pub struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Memory {
    /// `len` bytes of `fill`, at an address that is `skew` more than a multiple of 64 KiB.
    pub fn new(len: usize, skew: usize, fill: u8) -> Self {
        const ALIGNMENT: usize = 64 << 10;
        let bytes = vec![fill; len + skew + ALIGNMENT].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(ALIGNMENT) + skew;
        Self { bytes, start, len }
    }

    /// The same, with these contents.
    pub fn holding(contents: &[u8], skew: usize) -> Self {
        let mut memory = Self::new(contents.len(), skew, 0);
        memory.bytes[memory.start..memory.start + contents.len()].copy_from_slice(contents);
        memory
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// All of it as one segment.
    pub fn segment(&mut self) -> Segment {
        Segment { base: self.bytes[self.start..].as_mut_ptr(), len: self.len }
    }

    /// All of it as segments of these lengths, over and over.
    pub fn segments(&mut self, lens: &[usize]) -> Vec<Segment> {
        cut_up(self.segment().base, self.len, lens)
    }
}

/// Memory as segments of these lengths, over and over.
pub(super) fn cut_up(mut base: *mut u8, mut left: usize, lens: &[usize]) -> Vec<Segment> {
    let mut segments = Vec::new();
    for &len in lens.iter().cycle() {
        let len = len.min(left);
        segments.push(Segment { base, len });
        base = base.wrapping_add(len);
        left -= len;
        if left == 0 {
            break;
        }
    }
    segments
}

/// Bytes that tell where they belong and which write put them there.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let x = (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
        (x ^ (x >> 29)).to_le_bytes()[(at % 8) as usize]
    };
    (offset..offset + len as u64).map(byte).collect()
}

/// A queue and what has completed on it.
pub struct Client {
    queue: Box<dyn Queue>,
    next_token: u64,
    completed: Vec<Completion>,
}

impl Client {
    /// A queue on `disk`.
    pub fn new(disk: &dyn Disk, depth: u16) -> Self {
        let queue = disk.open_queue(depth).expect("a queue");
        Self { queue, next_token: 0x1000_0000_0000_0000, completed: Vec::new() }
    }

    /// Submits one request; its token comes with it.
    ///
    /// # Safety
    ///
    /// As [`Queue::submit`].
    pub unsafe fn submit(
        &mut self,
        operation: Operation,
        (offset, len): (u64, u64),
        segments: &[Segment],
        flags: RequestFlags,
    ) -> (u64, Submission) {
        self.next_token += 1;
        let token = self.next_token;
        let request = Request { operation, offset, len, segments, flags, token };
        // SAFETY: handed on from the caller.
        (token, unsafe { self.queue.submit(request) })
    }

    /// Gets what was submitted under way.
    pub fn kick(&mut self) {
        self.queue.kick();
    }

    /// Takes what has completed.
    pub fn poll(&mut self) -> Vec<Completion> {
        let n = self.queue.poll(&mut self.completed);
        assert_eq!(n, self.completed.len(), "poll says how many it appended");
        std::mem::take(&mut self.completed)
    }

    /// The queue's descriptor to wait on.
    pub fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wait_fd()
    }

    /// Whether the queue lets its thread sleep.
    pub fn may_sleep(&mut self) -> bool {
        self.queue.may_sleep()
    }

    /// Whether there may be something to poll within `patience`: the queue says so, or its descriptor becomes readable.
    pub fn readable(&mut self, patience: Timespec) -> bool {
        if !self.queue.may_sleep() {
            return true;
        }
        let fd =
            self.queue.wait_fd().expect("a queue whose thread may sleep with requests pending has a wait_fd");
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, Some(&patience))).expect("poll") > 0
    }

    /// Sleeps until something has completed, and takes it.
    pub fn wait(&mut self) -> Vec<Completion> {
        loop {
            let completed = self.poll();
            if !completed.is_empty() {
                return completed;
            }
            assert!(self.readable(PATIENCE), "nothing completes, or wait_fd does not say so");
        }
    }

    /// Waits for all that is pending on several queues, so many requests on each. They are polled together, as the
    /// contract has it: a request on one may wait for one on another.
    pub fn wait_for_all_of(clients: &mut [Self], mut pending: Vec<usize>) -> Vec<Completion> {
        let mut all = Vec::new();
        while pending.iter().any(|left| *left > 0) {
            let before = all.len();
            for (client, left) in clients.iter_mut().zip(&mut pending) {
                let completed = client.poll();
                *left -= completed.len();
                all.extend(completed);
            }
            if all.len() == before && clients.iter_mut().all(Self::may_sleep) {
                let mut fds: Vec<PollFd<'_>> = clients
                    .iter()
                    .filter_map(Self::wait_fd)
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                    .collect();
                // It may be interrupted: then it ends early.
                assert!(poll(&mut fds, Some(&PATIENCE)) != Ok(0), "nothing completes, or no wait_fd says so");
            }
        }
        all
    }

    /// Waits for one request, the only one that is pending.
    pub fn finish(&mut self, (token, submission): (u64, Submission)) -> RequestResult {
        match submission {
            Submission::Done(result) => result,
            Submission::Full => panic!("an empty queue is full"),
            Submission::Pending => {
                self.kick();
                let completed = self.wait();
                assert_eq!(completed.len(), 1, "one request, one completion");
                assert_eq!(completed[0].token, token);
                completed[0].result
            }
        }
    }

    /// Reads, into memory of a chosen alignment and cut.
    pub fn read_into(&mut self, offset: u64, memory: &mut Memory, cut: &[usize]) -> RequestResult {
        let segments = memory.segments(cut);
        let range = (offset, memory.len as u64);
        // SAFETY: the segments are `memory`'s, which is borrowed until the request has ended.
        let submitted = unsafe { self.submit(Operation::Read, range, &segments, RequestFlags::NONE) };
        self.finish(submitted)
    }

    /// Reads `len` bytes.
    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut memory = Memory::new(len, 0, 0xee);
        let cut = [len];
        assert_eq!(self.read_into(offset, &mut memory, &cut), Ok(()), "read {offset}+{len}");
        memory.bytes().to_vec()
    }

    /// Writes from memory of a chosen alignment and cut.
    pub fn write_from(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        cut: &[usize],
        flags: RequestFlags,
    ) -> RequestResult {
        let segments = memory.segments(cut);
        let range = (offset, memory.len as u64);
        // SAFETY: as in `read_into`.
        let submitted = unsafe { self.submit(Operation::Write, range, &segments, flags) };
        self.finish(submitted)
    }

    /// Writes `data`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut memory = Memory::holding(data, 0);
        let cut = [data.len()];
        let result = self.write_from(offset, &mut memory, &cut, RequestFlags::NONE);
        assert_eq!(result, Ok(()), "write {offset}+{}", data.len());
    }

    /// Does a request without segments.
    pub fn run(&mut self, operation: Operation, range: (u64, u64), flags: RequestFlags) -> RequestResult {
        // SAFETY: there are no segments.
        let submitted = unsafe { self.submit(operation, range, &[], flags) };
        self.finish(submitted)
    }
}
