//! What is pending in a queue, and how it goes on.
//!
//! A request begins in `Work::submit`, goes on in `Work::advance` as far as there is room, and ends when the last of its
//! commands has. [`super::send`] makes the commands.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use block_core::write_ranges::Lane;
use block_core::{Completion, Operation, Request, RequestFlags, RequestResult, Segment, Submission};
use nvme_spec::Status;

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
use crate::queue_pair::QueuePair;

/// Bounce memory of a queue, unless its blocks are so large that it takes more: 16 of the largest bounced commands.
const BOUNCE_LEN: usize = 2 << 20;
/// Pieces of memory that a command is described by at most; more of them bounce.
pub(super) const MAX_PIECES: usize = 1024;

/// A queue without its queue pair.
pub(super) struct Work {
    pub(super) drive: Arc<Drive>,
    pub(super) disk: Arc<DiskNamespace>,
    pub(super) read_only: bool,
    pub(super) limits: Limits,
    pub(super) slots: Box<[Slot]>,
    free: Vec<u32>,
    pub(super) parts: Box<[Part]>,
    pub(super) free_parts: Vec<u32>,
    pub(super) bounce: BouncePages,
    /// A page of them, where the controller has no command for zeroes.
    pub(super) zeroes: Option<DmaBuffer>,
    pub(super) view: View,
    pub(super) lane: Arc<Lane>,
    pub(super) discards: Option<Discards>,
    /// Requests that could not go on, in their order.
    pub(super) stalled: VecDeque<u32>,
    /// Ends of commands that lead on to something; empty between calls.
    pub(super) ended: Vec<(u64, i32)>,
    /// Requests that ended outside of `poll`.
    pub(super) ready: Vec<Completion>,
    /// The data of the command at hand.
    pub(super) ranges: Vec<DmaRange>,
    /// Ranges of discards were kicked off, and there was no room for their command.
    pub(super) discards_are_late: bool,
    /// Commands were sent since the last kick.
    pub(super) sent: bool,
    /// The queue pair has failed for good.
    fault: Option<Fault>,
    pub(super) counters: Arc<QueueCounters>,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All its commands are sent.
    Sent,
    /// It goes on when commands in flight have ended.
    Waits,
}

/// How much of it: for four of the largest bounced commands at least, in whole pages.
fn bounce_len(max_bounce: u32, page: usize) -> usize {
    BOUNCE_LEN.max(4 * (max_bounce as usize).next_multiple_of(page))
}

impl Work {
    /// For `depth` requests, and as many commands as the queue pair holds.
    pub(super) fn new(
        drive: Arc<Drive>,
        disk: Arc<DiskNamespace>,
        (depth, commands): (u16, u16),
        read_only: bool,
        counters: Arc<QueueCounters>,
    ) -> io::Result<Self> {
        let limits = disk.limits;
        let (depth, parts) = (usize::from(depth), usize::from(commands));
        let page = drive.controller().memory_page_size() as usize;
        let bounce = bounce_len(limits.max_bounce, page);
        let bounce = BouncePages::new(drive.controller().alloc_dma(bounce).map_err(into_io)?, page);
        let zeroes = (limits.write_zeroes == 0).then(|| drive.controller().alloc_dma(page)).transpose();
        let zeroes = zeroes.map_err(into_io)?;
        Ok(Self {
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
        })
    }

    #[inline]
    pub(super) fn submit(&mut self, pair: &mut QueuePair, request: &Request<'_>) -> Submission {
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

    /// A command has ended. What that leads on to is left for `lead_on`.
    #[inline]
    pub(super) fn command_ended(
        &mut self,
        token: u64,
        result: Result<(), Status>,
        out: &mut Vec<Completion>,
    ) {
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
    pub(super) fn lead_on(&mut self, pair: &mut QueuePair, out: &mut Vec<Completion>) {
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
    pub(super) fn retry(&mut self, pair: &mut QueuePair, out: &mut Vec<Completion>) {
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

    pub(super) fn give_back(&mut self, part: Part) {
        if let Part::Read { chain, .. } | Part::Write { chain } = part {
            self.bounce.give_back(chain);
        }
    }

    /// Ends everything: the queue pair has failed, and nothing is in flight in it any more.
    #[cold]
    pub(super) fn fail(&mut self, fault: Fault, out: &mut Vec<Completion>) {
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
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether a request waits for writes that may be other queues', whose end does not wake this one's thread.
    pub(super) fn waits_for_others(&self) -> bool {
        self.stalled.iter().any(|index| self.slots[*index as usize].hold.is_waiting())
    }

    #[inline]
    pub(super) fn counters(&self) -> &QueueCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_bounce_memory_whatever_the_size_of_blocks_and_pages() {
        assert_eq!(bounce_len(128 << 10, 4096), 2 << 20);
        assert_eq!(bounce_len(1 << 20, 4096), 4 << 20);
        assert_eq!(bounce_len(128 << 10, 4 << 20), 16 << 20, "pages larger than all of it");
    }
}
