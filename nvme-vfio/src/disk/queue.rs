//! The data path: requests in, commands out.
//!
//! What nearly all requests are, whole blocks and registered memory, becomes one command that is sent in
//! [`Queue::submit`]. Everything else is a request in several steps: `Work::advance` sends what can be sent now, and is
//! called again when commands have ended (they lead on) or room has come back (the stalled ones, in their order).

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use block_core::write_ranges::Lane;
use block_core::{Completion, Operation, Queue, Request, RequestFlags, RequestResult, Segment, Submission};
use nvme_spec::Status;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::bounce::BouncePages;
use super::counters::QueueCounters;
use super::discard::Discards;
use super::drive::Drive;
use super::errno::errno;
use super::limits::Limits;
use super::memory::{View, into_io};
use super::namespace::DiskNamespace;
use super::request::{Hold, Part, Refusal, Slot, State, of_token, token};
use crate::dma::{DmaBuffer, DmaRange};
use crate::error::Fault;
use crate::queue_pair::{QueuePair, SubmitError};

/// Bounce memory of a queue, unless its blocks are so large that it takes more: 16 of the largest bounced commands.
const BOUNCE_LEN: usize = 2 << 20;
/// Pieces of memory that a command is described by at most; more of them bounce.
const MAX_PIECES: usize = 1024;
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

/// A queue without its queue pair.
pub(super) struct Work {
    drive: Arc<Drive>,
    disk: Arc<DiskNamespace>,
    read_only: bool,
    pub(super) limits: Limits,
    pub(super) slots: Box<[Slot]>,
    free: Vec<u32>,
    parts: Box<[Part]>,
    free_parts: Vec<u32>,
    pub(super) bounce: BouncePages,
    /// A page of them, where the controller has no command for zeroes.
    zeroes: Option<DmaBuffer>,
    view: View,
    lane: Arc<Lane>,
    discards: Option<Discards>,
    /// Requests that could not go on, in their order.
    stalled: VecDeque<u32>,
    /// Ends of commands that lead on to something; empty between calls.
    ended: Vec<(u64, i32)>,
    /// Requests that ended outside of `poll`.
    ready: Vec<Completion>,
    /// The data of the command at hand.
    pub(super) ranges: Vec<DmaRange>,
    /// Ranges of discards were kicked off, and there was no room for their command.
    discards_are_late: bool,
    /// Commands were sent since the last kick.
    sent: bool,
    /// The queue pair has failed for good.
    fault: Option<Fault>,
    counters: Arc<QueueCounters>,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All its commands are sent.
    Sent,
    /// It goes on when commands in flight have ended.
    Waits,
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
        let limits = disk.limits;
        // A request is one command as a rule: more of them than commands would only wait.
        let depth = usize::from(depth.min(pair.depth()).max(1));
        let page = drive.controller().memory_page_size() as usize;
        let bounce = BOUNCE_LEN.max(4 * limits.max_bounce as usize);
        let bounce = BouncePages::new(drive.controller().alloc_dma(bounce).map_err(into_io)?, page);
        let zeroes = (limits.write_zeroes == 0).then(|| drive.controller().alloc_dma(page)).transpose();
        let zeroes = zeroes.map_err(into_io)?;
        let parts = usize::from(pair.depth());
        let work = Work {
            view: View::new(drive.memory()),
            lane: disk.ranges.lane(depth),
            read_only,
            limits,
            slots: (0..depth).map(|_| Slot::free()).collect(),
            free: (0..depth as u32).rev().collect(),
            parts: (0..parts).map(|_| Part::Free).collect(),
            free_parts: (0..parts as u32).rev().collect(),
            bounce,
            zeroes,
            discards: limits.discard.map(Discards::new),
            stalled: VecDeque::with_capacity(depth),
            ended: Vec::with_capacity(parts),
            ready: Vec::with_capacity(depth),
            ranges: Vec::with_capacity(MAX_PIECES),
            discards_are_late: false,
            sent: false,
            fault: None,
            counters,
            drive,
            disk,
        };
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

impl Work {
    #[inline]
    fn submit(&mut self, pair: &mut QueuePair, request: &Request<'_>) -> Submission {
        let capacity = self.disk.capacity();
        if let Some(result) = request.settled(capacity, self.read_only) {
            return Submission::Done(if capacity == 0 { request.fail(libc::ENXIO) } else { result });
        }
        let request = match request.operation {
            Operation::Read | Operation::Write => *request,
            _ => match self.control_request(request) {
                Ok(request) => request,
                Err(result) => return Submission::Done(result),
            },
        };
        if self.fault.is_some() {
            return Submission::Done(request.fail(libc::EIO));
        }
        let Some(index) = self.free.pop() else { return Submission::Full };
        let index = index as usize;
        self.view.refresh(self.drive.memory());
        self.slots[index].begin(&request, self.limits.block() - 1);
        self.advance(pair, index, request.segments);
        let slot = &mut self.slots[index];
        if slot.is_over() {
            let result = slot.result();
            self.let_go(index);
            return Submission::Done(result);
        }
        if slot.state != State::Sent || slot.bounced {
            slot.segments.extend_from_slice(request.segments);
        }
        Submission::Pending
    }

    /// What is left to do of a flush, a discard, or write zeroes; or how it ends at once.
    fn control_request<'a>(&self, request: &Request<'a>) -> Result<Request<'a>, RequestResult> {
        match request.operation {
            Operation::Flush if !self.limits.volatile_cache => Err(Ok(())),
            Operation::WriteZeroes
                if self.limits.write_zeroes == 0 && request.flags.contains(RequestFlags::NO_FALLBACK) =>
            {
                Err(request.fail(libc::EOPNOTSUPP))
            }
            Operation::Discard => {
                // Whole blocks only: a discard is advice.
                let block = self.limits.block();
                let start = request.offset.next_multiple_of(block);
                let end = (request.offset + request.len) / block * block;
                if self.discards.is_none() || start >= end {
                    return Err(Ok(()));
                }
                Ok(Request { offset: start, len: end - start, ..*request })
            }
            _ => Ok(*request),
        }
    }

    /// Sends what can be sent now of a request, and notes where that leaves it.
    #[inline]
    fn advance(&mut self, pair: &mut QueuePair, index: usize, segments: &[Segment]) {
        let state = match self.try_advance(pair, index, segments) {
            Ok(Progress::Sent) => State::Sent,
            Ok(Progress::Waits) => State::Going,
            Err(Refusal::NoRoom) => {
                self.stalled.push_back(index as u32);
                State::Stalled
            }
            Err(Refusal::Failed(errno)) => {
                self.slots[index].errno = errno;
                State::Sent
            }
        };
        self.slots[index].state = state;
    }

    #[inline]
    fn try_advance(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<Progress, Refusal> {
        if self.slots[index].errno != 0 {
            // The rest need not be tried.
            return Ok(Progress::Sent);
        }
        if self.slots[index].hold != Hold::None && !self.take_hold(index) {
            return Err(Refusal::NoRoom);
        }
        if self.slots[index].hold == Hold::Exclusive {
            return self.advance_exclusive(pair, index, segments);
        }
        let operation = self.slots[index].operation;
        if operation == Operation::Flush {
            self.command(index, pair.flush(&self.disk.namespace, token(index, None)))?;
            return Ok(Progress::Sent);
        }
        while self.slots[index].done < self.slots[index].len {
            match operation {
                Operation::Read | Operation::Write => self.send_piece(pair, index, segments)?,
                Operation::WriteZeroes => self.send_zeroes(pair, index)?,
                _ => self.collect_discard(pair, index)?,
            }
        }
        Ok(Progress::Sent)
    }

    /// Takes a write's place among others; false: not yet.
    #[inline]
    fn take_hold(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        let (ranges, offset, len) = (&self.disk.ranges, slot.offset, slot.len);
        if slot.hold == Hold::WantsPlain && ranges.enter(&self.lane, index, offset, len) {
            slot.hold = Hold::Plain;
        }
        if slot.hold == Hold::WantsExclusive && ranges.claim(offset, len) {
            slot.hold = Hold::Claimed;
        }
        if slot.hold == Hold::Claimed && ranges.alone(offset, len) {
            slot.hold = Hold::Exclusive;
        }
        !slot.hold.is_waiting()
    }

    /// Sends the next read or write of a request, from or to its own memory if that can be.
    #[inline]
    fn send_piece(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (at, done, left) = (slot.offset + slot.done, slot.done, slot.len - slot.done);
        let operation = slot.operation;
        let block_mask = self.limits.block() - 1;
        let whole = left & !block_mask;
        if at & block_mask == 0 && whole > 0 {
            let len = self.limits.split(at, whole) as usize;
            if self.describe(segments, done as usize, len) {
                match self.transfer(pair, index, operation, (at, len), None) {
                    Err(SubmitError::Data(_)) => {}
                    sent => {
                        self.command(index, sent)?;
                        self.slots[index].done += len as u64;
                        self.counters.bytes_direct.add(len as u64);
                        return Ok(());
                    }
                }
            }
        }
        self.bounce_piece(pair, index, segments)
    }

    /// Finds the memory of bytes `skip..skip + len` of the segments for the controller; false: it cannot be pointed to.
    #[inline]
    fn describe(&mut self, segments: &[Segment], skip: usize, len: usize) -> bool {
        let Self { ranges, view, .. } = self;
        ranges.clear();
        let mut found = true;
        block_core::segments::pieces(segments, skip, len, |base, n| {
            let iova = if found { view.translate(base, n) } else { None };
            let room = ranges.len() < MAX_PIECES;
            match (iova, ranges.last_mut()) {
                (Some(iova), Some(last)) if last.iova + u64::from(last.len) == iova => last.len += n as u32,
                (Some(iova), _) if room => ranges.push(DmaRange { iova, len: n as u32 }),
                _ => found = false,
            }
        });
        found
    }

    /// Sends the next read or write of a request through bounce pages.
    #[cold]
    fn bounce_piece(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (operation, skip) = (slot.operation, slot.done as usize);
        let (at, left) = (slot.offset + slot.done, slot.len - slot.done);
        let block = self.limits.block();
        let start = at & !(block - 1);
        // Whole blocks around what is left, which are inside the disk.
        let around = (at + left).next_multiple_of(block) - start;
        let len = self.limits.split(start, around).min(self.limits.max_bounce) as usize;
        let lead = (at - start) as usize;
        let bytes = (len - lead).min(left as usize);
        let chain = self.bounce.take(len).ok_or(Refusal::NoRoom)?;
        if operation == Operation::Write {
            // SAFETY: whoever submitted the request promises that its segments are valid until it ends.
            unsafe { self.bounce.fill(&chain, 0, segments, skip, bytes) };
        }
        self.ranges.clear();
        self.bounce.describe(&chain, 0, len, &mut self.ranges);
        let part = match operation {
            Operation::Read => Part::Read { chain, lead, skip, len: bytes },
            _ => Part::Write { chain },
        };
        if let Err((refusal, part)) = self.send_with_part(pair, index, operation, (start, len), part) {
            self.give_back(part);
            return Err(refusal);
        }
        let slot = &mut self.slots[index];
        slot.bounced = true;
        slot.done += bytes as u64;
        self.counters.bytes_bounced.add(bytes as u64);
        Ok(())
    }

    /// Sends a read or a write of the blocks at a place, with a part; the part comes back if that fails.
    pub(super) fn send_with_part(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        operation: Operation,
        place: (u64, usize),
        part: Part,
    ) -> Result<(), (Refusal, Part)> {
        // There are as many parts as commands.
        let Some(&number) = self.free_parts.last() else { return Err((Refusal::NoRoom, part)) };
        let sent = self.transfer(pair, index, operation, place, Some(number as usize));
        if let Err(refusal) = self.command(index, sent) {
            return Err((refusal, part));
        }
        self.free_parts.pop();
        self.parts[number as usize] = part;
        Ok(())
    }

    /// Sends a read or a write of `ranges`.
    #[inline]
    fn transfer(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        operation: Operation,
        (at, len): (u64, usize),
        part: Option<usize>,
    ) -> Result<(), SubmitError> {
        let (namespace, shift) = (&self.disk.namespace, self.limits.block_shift);
        let (slba, blocks, token) = (at >> shift, (len >> shift) as u32, token(index, part));
        if operation == Operation::Read {
            pair.read(namespace, slba, blocks, &self.ranges, token)
        } else {
            pair.write(namespace, slba, blocks, &self.ranges, self.fua(index), token)
        }
    }

    /// Sends the next Write Zeroes of a request; or a write of zeroes, where the controller has no such command.
    pub(super) fn send_zeroes(&mut self, pair: &mut QueuePair, index: usize) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (at, left) = (slot.offset + slot.done, slot.len - slot.done);
        let whole = left & !(self.limits.block() - 1);
        let (sent, len);
        if self.limits.write_zeroes > 0 {
            len = whole.min(self.limits.write_zeroes);
            let deallocate = self.limits.deallocating_zeroes && slot.flags.contains(RequestFlags::MAY_UNMAP);
            let shift = self.limits.block_shift;
            let (slba, blocks) = (at >> shift, (len >> shift) as u32);
            let fua = self.fua(index);
            sent = pair.write_zeroes(&self.disk.namespace, slba, blocks, deallocate, fua, token(index, None));
        } else {
            len = self.limits.split(at, whole).into();
            let Some(zeroes) = &self.zeroes else { return Err(Refusal::Failed(libc::EOPNOTSUPP)) };
            self.ranges.clear();
            let mut left = len as usize;
            while left > 0 {
                // The same page over and over: the controller only reads it.
                let n = left.min(zeroes.len());
                self.ranges.push(zeroes.range(0..n));
                left -= n;
            }
            sent = self.transfer(pair, index, Operation::Write, (at, len as usize), None);
        }
        self.command(index, sent)?;
        self.slots[index].done += len;
        Ok(())
    }

    /// Puts the next range of a discard to the others that wait for the kick.
    fn collect_discard(&mut self, pair: &mut QueuePair, index: usize) -> Result<(), Refusal> {
        if self.discards.as_ref().is_some_and(|discards| discards.room() == 0) {
            self.send_discards(pair)?;
        }
        let Some(discards) = &mut self.discards else { return Err(Refusal::Failed(libc::EOPNOTSUPP)) };
        let slot = &mut self.slots[index];
        let shift = self.limits.block_shift;
        let lbas = ((slot.len - slot.done) >> shift).min(discards.room());
        discards.add(index, (slot.offset + slot.done) >> shift, lbas);
        slot.done += lbas << shift;
        slot.outstanding += 1;
        Ok(())
    }

    /// Sends the ranges that wait; what does not go out now does with one of the next polls.
    fn kick_discards(&mut self, pair: &mut QueuePair) {
        self.discards_are_late = self.send_discards(pair).is_err();
    }

    /// Sends the ranges that wait, if there are any.
    fn send_discards(&mut self, pair: &mut QueuePair) -> Result<(), Refusal> {
        let Some(discards) = self.discards.as_mut().filter(|discards| !discards.is_empty()) else {
            return Ok(());
        };
        let (Some(batch), Some(&number)) = (discards.free_batch(), self.free_parts.last()) else {
            return Err(Refusal::NoRoom);
        };
        let sent = discards.send(batch, pair, &self.disk.namespace, token(0, Some(number as usize)));
        self.note_sent(sent)?;
        self.free_parts.pop();
        self.parts[number as usize] = Part::Discard { batch };
        Ok(())
    }

    /// Notes that a command of a request was sent, or not.
    #[inline]
    fn command(&mut self, index: usize, sent: Result<(), SubmitError>) -> Result<(), Refusal> {
        self.note_sent(sent)?;
        self.slots[index].outstanding += 1;
        Ok(())
    }

    #[inline]
    fn note_sent(&mut self, sent: Result<(), SubmitError>) -> Result<(), Refusal> {
        match sent {
            Ok(()) => {
                self.sent = true;
                self.counters.commands.add(1);
                Ok(())
            }
            Err(SubmitError::Full) => Err(Refusal::NoRoom),
            Err(error) => Err(self.refused(error)),
        }
    }

    #[cold]
    fn refused(&self, error: SubmitError) -> Refusal {
        if !matches!(error, SubmitError::Fault(_)) {
            tracing::error!("{}: {error}", self.drive.controller().name());
        }
        Refusal::Failed(libc::EIO)
    }

    /// A command has ended. What that leads on to is left for `lead_on`.
    #[inline]
    fn command_ended(&mut self, token: u64, result: Result<(), Status>, out: &mut Vec<Completion>) {
        let (index, part) = of_token(token);
        let slot = &mut self.slots[index];
        if result.is_ok() && part.is_none() && slot.state == State::Sent && slot.outstanding == 1 {
            out.push(Completion { token: slot.token, result: slot.result() });
            self.let_go(index);
            return;
        }
        // One at most for each command.
        self.ended.push((token, result.map_or_else(errno, |()| 0)));
    }

    /// Goes on after the ends of commands.
    fn lead_on(&mut self, pair: &mut QueuePair, out: &mut Vec<Completion>) {
        let mut ended = std::mem::take(&mut self.ended);
        for (token, errno) in ended.drain(..) {
            let (index, part) = of_token(token);
            let Some(number) = part else {
                self.go_on(pair, index, errno, out);
                continue;
            };
            self.free_parts.push(number as u32);
            match std::mem::replace(&mut self.parts[number], Part::Free) {
                Part::Read { chain, lead, skip, len } => {
                    if errno == 0 {
                        let segments = &self.slots[index].segments;
                        // SAFETY: the request's segments, valid until it ends.
                        unsafe { self.bounce.drain(&chain, lead, segments, skip, len) };
                    }
                    self.bounce.give_back(chain);
                    self.go_on(pair, index, errno, out);
                }
                Part::Discard { batch } => self.batch_ended(pair, batch, errno, out),
                part => {
                    if let (Part::Window, Some(window)) = (&part, &mut self.slots[index].window) {
                        window.pending -= 1;
                    }
                    self.give_back(part);
                    self.go_on(pair, index, errno, out);
                }
            }
        }
        self.ended = ended;
    }

    fn batch_ended(&mut self, pair: &mut QueuePair, batch: usize, errno: i32, out: &mut Vec<Completion>) {
        let Some(slots) = self.discards.as_mut().map(|discards| discards.take(batch)) else { return };
        for &index in &slots {
            self.go_on(pair, index as usize, errno, out);
        }
        if let Some(discards) = &mut self.discards {
            discards.give_back(batch, slots);
        }
    }

    /// Goes on with a request of which a command has ended.
    fn go_on(&mut self, pair: &mut QueuePair, index: usize, errno: i32, out: &mut Vec<Completion>) {
        let slot = &mut self.slots[index];
        slot.outstanding -= 1;
        if slot.errno == 0 {
            slot.errno = errno;
        }
        if slot.state == State::Going {
            self.advance_kept(pair, index);
        }
        self.end_if_over(index, out);
    }

    /// [`Work::advance`] with the segments that were kept.
    fn advance_kept(&mut self, pair: &mut QueuePair, index: usize) {
        let segments = std::mem::take(&mut self.slots[index].segments);
        self.advance(pair, index, &segments);
        self.slots[index].segments = segments;
    }

    fn end_if_over(&mut self, index: usize, out: &mut Vec<Completion>) {
        let slot = &self.slots[index];
        if slot.is_over() {
            out.push(Completion { token: slot.token, result: slot.result() });
            self.let_go(index);
        }
    }

    /// Tries all stalled requests once more, in their order.
    #[cold]
    fn retry(&mut self, pair: &mut QueuePair, out: &mut Vec<Completion>) {
        for _ in 0..self.stalled.len() {
            let Some(index) = self.stalled.pop_front() else { return };
            self.advance_kept(pair, index as usize);
            self.end_if_over(index as usize, out);
        }
        // Ranges that were collected after the kick.
        self.discards_are_late = true;
    }

    /// Frees the slot of a request that has ended.
    #[inline]
    fn let_go(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Free;
        slot.segments.clear();
        let ranges = &self.disk.ranges;
        match slot.hold {
            Hold::Plain => ranges.leave(&self.lane, index),
            Hold::Claimed | Hold::Exclusive => ranges.release(slot.offset, slot.len),
            Hold::None | Hold::WantsPlain | Hold::WantsExclusive => {}
        }
        if let Some(window) = slot.window.take() {
            self.bounce.give_back(window.chain);
        }
        self.free.push(index as u32);
    }

    fn give_back(&mut self, part: Part) {
        if let Part::Read { chain, .. } | Part::Write { chain } = part {
            self.bounce.give_back(chain);
        }
    }

    /// Ends everything: the queue pair has failed, and nothing is in flight in it any more.
    #[cold]
    fn fail(&mut self, fault: Fault, out: &mut Vec<Completion>) {
        if self.fault.is_none() {
            tracing::error!("{}: {fault}", self.drive.controller().name());
        }
        self.fault = Some(fault);
        for number in 0..self.parts.len() {
            let part = std::mem::replace(&mut self.parts[number], Part::Free);
            self.give_back(part);
        }
        self.free_parts = (0..self.parts.len() as u32).rev().collect();
        self.stalled.clear();
        self.discards.iter_mut().for_each(Discards::clear);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.state != State::Free {
                slot.errno = libc::EIO;
                out.push(Completion { token: slot.token, result: slot.result() });
                self.let_go(index);
            }
        }
    }

    /// Whether nothing is pending.
    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether a request waits for writes that may be other queues', whose end does not wake this one's thread.
    fn waits_for_others(&self) -> bool {
        self.stalled.iter().any(|index| self.slots[*index as usize].hold.is_waiting())
    }

    #[inline]
    pub(super) fn counters(&self) -> &QueueCounters {
        &self.counters
    }
}
