//! A controller's share of a reactor: its queues there, the commands in flight from them, and what those need.
//!
//! This file is the data path: fetch, submit, complete, post, interrupt. `shard_control.rs` is what happens to the
//! shard when the control thread asks for it, `shard_composites.rs` what takes several requests.

use super::completion_queue::CompletionQueue;
use super::disk_queues::DiskQueues;
use super::message::{Ticket, Tuning};
use super::probes;
use super::shard_composites::COMPOSITE;
use super::stages::{SAMPLED, StageSampler, Stamps};
use super::submission_queue::SubmissionQueue;
use crate::controller::control::Event;
use crate::controller::counters::ReactorCounters;
use crate::controller::interrupts::Vectors;
use crate::controller::shared::{FailedCommand, Finding, Shared};
use crate::faults::FaultPoint;
use crate::memory::RegionMask;
use crate::memory::sigbus::Fault;
use crate::nvm::composite::Composite;
use crate::nvm::{self, Context, Plan, Prepared, errno};
use block_core::{Operation, Request, RequestResult, Submission};
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::{CompletionQueueEntry, NvmOpcode, Status, SubmissionQueueEntry};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A command in flight as one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    sq: u32,
    cid: u16,
    pub(super) epoch: u32,
    /// Guest memory that it touches; none: the slot is free.
    pub(super) regions: RegionMask,
    operation: Operation,
    nsid: u32,
    bytes: u32,
    slba: u64,
}

/// Something that waits for commands to end.
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) until: Until,
}

/// When it has waited long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Nothing is in flight; the shard is then reset.
    Drained,
    /// Nothing from before this epoch touches these regions.
    RegionsQuiet { removed: RegionMask, epoch: u32 },
    /// Nothing from before this epoch is in flight.
    Ended { before: u32 },
    /// Nothing of this submission queue is in flight; it then goes.
    QueueQuiet(usize),
    /// The flushes are through.
    Flushed,
}

/// Whether epoch `a` is before `b`.
pub(super) fn older(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 <= -1
}

/// In the order in which it is used: a round looks at the first lines of every shard that it looks at, and with many
/// controllers none of them is in the innermost cache any more.
#[repr(C, align(64))]
pub(crate) struct Shard {
    // What a look takes.
    pub(super) sqs: Vec<Option<SubmissionQueue>>,
    pub(super) cqs: Vec<Option<CompletionQueue>>,
    pub(super) in_flight: usize,
    /// Its index, for probes.
    pub(super) controller: u16,
    /// Whether somebody listens to probes, as of the last look.
    pub(super) probed: bool,
    /// There may be something in `unfinished`, `flushes`, `flushes_left`, `waiting` or `faults`.
    pub(super) chores: bool,
    /// Something was posted since interrupts were last looked at, to a queue that has them or a backlog.
    posted: bool,
    /// Commands were fetched since the time was last accounted for.
    worked: bool,
    pub(super) draining: bool,
    /// Whether one of the namespaces' disks wants to know of commands in advance.
    pub(super) hints: bool,

    // What a command takes.
    pub(super) shared: Arc<Shared>,
    /// Its client's memory turned out to have nothing behind it.
    fault: Arc<Fault>,
    pub(super) counters: Arc<ReactorCounters>,
    pub(super) context: Context,
    /// What it does wrong by script.
    pub(super) faults: Option<Box<FaultPoint>>,
    free_commands: Vec<u32>,
    pub(super) commands: Vec<Command>,
    /// Takes the time of some commands, if somebody wants to know.
    sampler: Option<Box<StageSampler>>,
    /// Counts the maps, and other changes after which commands from before have to be told from those that follow.
    pub(super) epoch: u32,
    pub(super) tuning: Tuning,

    // What few of them take.
    pub(super) vectors: Arc<Vectors>,
    pub(super) composites: Vec<Composite>,
    pub(super) free_composites: Vec<u32>,
    /// Composites with requests that their disk had no room for.
    pub(super) unfinished: VecDeque<u32>,
    /// Flushes in flight that no command asked for, and the disks that are still to be flushed.
    pub(super) flushes: usize,
    pub(super) flushes_left: Vec<usize>,
    /// The errno of the first of those that failed, until somebody has been told.
    pub(super) flush_failed: Option<i32>,
    pub(super) waiting: Vec<Waiting>,
    /// Admin commands that the control thread has not answered.
    pub(super) admin_outstanding: u32,
    /// I/O virtual addresses of shadow doorbells and EventIdx entries.
    pub(super) shadow: Option<(u64, u64)>,
    /// Index of its reactor.
    pub(super) reactor: usize,
}

impl Shard {
    pub(crate) fn new(reactor: usize, shared: Arc<Shared>, vectors: Arc<Vectors>) -> Self {
        Self {
            reactor,
            // Probes of more than so many cannot tell them apart.
            controller: shared.index as u16,
            probed: false,
            counters: shared.shard_counters[reactor].clone(),
            fault: shared.fault.clone(),
            chores: shared.faults.is_some(),
            faults: shared.faults.clone().map(|faults| Box::new(FaultPoint::new(faults))),
            sampler: shared.explain.then(|| Box::new(StageSampler::new())),
            shared,
            context: Context::new(),
            epoch: 0,
            vectors,
            hints: false,
            tuning: Tuning::default(),
            shadow: None,
            cqs: Vec::new(),
            sqs: Vec::new(),
            commands: Vec::new(),
            free_commands: Vec::new(),
            composites: Vec::new(),
            free_composites: Vec::new(),
            unfinished: VecDeque::new(),
            in_flight: 0,
            flushes: 0,
            flushes_left: Vec::new(),
            flush_failed: None,
            draining: false,
            waiting: Vec::new(),
            admin_outstanding: 0,
            worked: false,
            posted: false,
        }
    }

    /// Fetches and starts what the guest has submitted. Says how many commands that were.
    #[inline]
    pub(crate) fn poll(&mut self, token: u64, disks: &mut DiskQueues) -> usize {
        let mut fetched = 0;
        self.probed = probes::are_listened_to();
        for sq in 0..self.sqs.len() {
            fetched += self.poll_queue(sq, token, disks);
        }
        if self.chores {
            self.continue_composites(token, disks);
            self.continue_flushes(token, disks);
            self.post_late();
        }
        if fetched > 0 {
            self.worked = true;
            if self.fault.is_set() {
                self.shared.found(Finding::MissingMemory);
            }
        }
        fetched
    }

    #[inline]
    fn poll_queue(&mut self, index: usize, token: u64, disks: &mut DiskQueues) -> usize {
        let Some(sq) = &mut self.sqs[index] else { return 0 };
        let waiting = match sq.look() {
            Ok(waiting) => waiting,
            Err(_) => {
                self.shared.found(Finding::InvalidDoorbellValue);
                return 0;
            }
        };
        if waiting == 0 {
            return 0;
        }
        if self.probed {
            probes::doorbell(self.controller, sq.parameters.id, sq.tail(), waiting);
        }
        if sq.parameters.id == 0 {
            return self.fetch_admin(index);
        }
        let most = waiting.min(self.tuning.burst);
        self.sampler.iter_mut().for_each(|sampler| sampler.doorbell(most));
        if self.hints {
            self.hint(index, SubmissionQueue::peek, disks);
        }
        if self.sampler.is_some() {
            return self.start_sampled(index, most, token, disks);
        }
        let mut started = 0;
        while started < most && self.start_next(index, token, disks, &mut ()) {
            started += 1;
        }
        started as usize
    }

    /// Starts up to `most` commands of a queue, and takes the time of those that the sampler picks.
    #[cold]
    fn start_sampled(&mut self, index: usize, most: u32, token: u64, disks: &mut DiskQueues) -> usize {
        let Some(mut sampler) = self.sampler.take() else { return 0 };
        let mut started = 0;
        while started < most
            && if sampler.picks_next() {
                self.start_next(index, token, disks, &mut *sampler)
            } else {
                self.start_next(index, token, disks, &mut ())
            }
        {
            sampler.passed();
            started += 1;
        }
        self.sampler = Some(sampler);
        started as usize
    }

    /// Starts the command at the head of a queue. False: there is no room for it now, it stays there.
    #[inline]
    fn start_next(
        &mut self,
        index: usize,
        token: u64,
        disks: &mut DiskQueues,
        stamps: &mut impl Stamps,
    ) -> bool {
        let Some(sq) = &mut self.sqs[index] else { return false };
        let cq_index = sq.cq();
        let Some(cq) = &mut self.cqs[cq_index] else { return false };
        match cq.reserve() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => {
                self.shared.found(Finding::InvalidDoorbellValue);
                return false;
            }
        }
        let Some(sqe) = sq.peek() else {
            cq.release();
            return false;
        };
        if self.probed {
            probes::sqe(self.controller, sq.parameters.id, &sqe);
        }
        if self.faults.is_some() && self.misbehaves(index, &sqe) {
            return true;
        }
        stamps.fetched();
        let planned = nvm::plan(&mut self.context, &sqe);
        if !matches!(planned, Ok(Plan::One(_))) {
            stamps.forget();
        }
        if self.hints {
            self.hint(index, SubmissionQueue::peek_behind, disks);
        }
        match planned {
            Ok(Plan::One(prepared)) => self.start_one(index, &sqe, prepared, token, disks, stamps),
            Ok(Plan::Several(_)) if self.has_all_composites() => {
                self.cqs[cq_index].as_mut().map(CompletionQueue::release);
                false
            }
            Ok(Plan::Several(prepare)) => {
                self.advance(index);
                self.start_composite(index, &sqe, prepare, token, disks);
                true
            }
            Err(status) => {
                self.advance(index);
                self.finish(index, sqe.cid, Err((status, sqe.nsid, slba(&sqe))));
                self.counters.other_commands.add(1);
                true
            }
        }
    }

    /// Lets the disk know of a command that waits, so that what it touches is on its way: of the first of a batch while
    /// that is validated, of each of the others while the one before it is worked on. Most disks do not want to know, and
    /// are spared having this in their way.
    #[inline(never)]
    fn hint(
        &self,
        index: usize,
        peek: impl Fn(&SubmissionQueue) -> Option<SubmissionQueueEntry>,
        disks: &DiskQueues,
    ) {
        let Some(sqe) = self.sqs[index].as_ref().and_then(peek) else { return };
        let operation = match NvmOpcode(sqe.opcode) {
            NvmOpcode::READ => Operation::Read,
            NvmOpcode::WRITE => Operation::Write,
            _ => return,
        };
        if let Some(Some(view)) = self.context.namespaces.get((sqe.nsid as usize).wrapping_sub(1)) {
            let blocks = sqe.dwords::<ReadWrite>().number_of_logical_blocks();
            disks.hint(view.disk, operation, slba(&sqe) << view.shift, u64::from(blocks) << view.shift);
        }
    }

    #[inline]
    pub(super) fn advance(&mut self, sq: usize) {
        if let Some(sq) = &mut self.sqs[sq] {
            sq.advance();
            sq.in_flight += 1;
        }
        self.in_flight += 1;
    }

    #[inline]
    fn start_one<S: Stamps>(
        &mut self,
        sq: usize,
        sqe: &SubmissionQueueEntry,
        prepared: Prepared,
        token: u64,
        disks: &mut DiskQueues,
        stamps: &mut S,
    ) -> bool {
        let slot = self.free_commands.last().copied().unwrap_or(self.commands.len() as u32);
        let request = Request {
            operation: prepared.operation,
            offset: prepared.offset,
            len: prepared.len,
            segments: self.context.list.as_slice(),
            flags: prepared.flags,
            token: token | u64::from(slot | S::MARK),
        };
        stamps.submitting();
        if self.probed {
            probes::submit(self.controller, self.sqid(sq), sqe.cid, prepared.offset, prepared.len);
        }
        // SAFETY: the segments are checked ranges of the current map. The map's mappings stay until the control
        // thread has removed them, for which it waits until no command of this epoch touches them any more.
        let submission = unsafe { disks.submit(prepared.disk, request) };
        stamps.submitted(submission);
        if submission == Submission::Full {
            if let Some(cq) = self.sqs[sq].as_ref().map(|sq| sq.cq()) {
                self.cqs[cq].as_mut().map(CompletionQueue::release);
            }
            return false;
        }
        self.advance(sq);
        let command = Command {
            sq: sq as u32,
            cid: sqe.cid,
            epoch: self.epoch,
            regions: self.context.list.regions(),
            operation: prepared.operation,
            nsid: sqe.nsid,
            bytes: prepared.len as u32,
            slba: prepared.offset,
        };
        if let Submission::Done(result) = submission {
            self.end(command, result);
            stamps.posted(&self.counters);
        } else if self.free_commands.pop().is_some() {
            self.commands[slot as usize] = command;
        } else {
            self.commands.push(command);
        }
        true
    }

    /// A command's request has ended.
    #[inline]
    fn end(&mut self, command: Command, result: RequestResult) {
        if self.probed {
            probes::complete(self.controller, self.sqid(command.sq as usize), command.cid, &result);
        }
        match command.operation {
            Operation::Read => {
                self.counters.reads.add(1);
                self.counters.bytes_read.add(u64::from(command.bytes));
            }
            Operation::Write => {
                self.counters.writes.add(1);
                self.counters.bytes_written.add(u64::from(command.bytes));
            }
            _ => self.counters.other_commands.add(1),
        }
        let outcome = result.map_err(|error| {
            (errno::status(command.operation, error), command.nsid, self.lba(command.nsid, command.slba))
        });
        self.finish(command.sq as usize, command.cid, outcome);
    }

    /// The identifier of the submission queue at this place.
    pub(super) fn sqid(&self, sq: usize) -> u16 {
        self.sqs[sq].as_ref().map_or(0, |sq| sq.parameters.id)
    }

    #[cold]
    fn lba(&self, nsid: u32, offset: u64) -> u64 {
        let view = self.context.namespaces.get((nsid as usize).wrapping_sub(1));
        view.copied().flatten().map_or(0, |view| offset >> view.shift)
    }

    /// Completes a command of an I/O queue: its status, or its failure with NSID and LBA for the error log.
    #[inline]
    pub(super) fn finish(&mut self, index: usize, cid: u16, outcome: Result<(), (Status, u32, u64)>) {
        self.in_flight -= 1;
        let Some(sq) = &mut self.sqs[index] else { return };
        sq.in_flight -= 1;
        let (sqid, head) = (sq.parameters.id, sq.head());
        let Some(cq) = &mut self.cqs[sq.cq()] else { return };
        if self.draining {
            self.counters.late_completions.add(1);
            return;
        }
        let status = match outcome {
            Ok(()) => Status::SUCCESS,
            Err((status, nsid, lba)) => {
                self.counters.errors.add(1);
                // There is more about it in the error log.
                let status = status.with_more();
                self.shared.failed(FailedCommand { sqid, cid, status, nsid, lba });
                status
            }
        };
        if self.probed {
            probes::cqe(self.controller, sqid, cid, status);
        }
        let entry = CompletionQueueEntry::new(cid, sqid, head, status, false);
        if self.faults.is_some() {
            self.posted = true;
            cq.release();
            let cq = sq.cq();
            return self.post_as_scripted(cq, entry);
        }
        // A queue without interrupts is done with it.
        self.posted |= cq.post_reserved(entry);
    }

    /// A request of this shard has ended.
    #[inline]
    pub(crate) fn complete(&mut self, slot: u32, result: RequestResult) {
        if slot & (COMPOSITE | SAMPLED) != 0 {
            return self.complete_marked(slot, result);
        }
        self.complete_one(slot, result);
    }

    #[cold]
    fn complete_marked(&mut self, slot: u32, result: RequestResult) {
        if slot & COMPOSITE != 0 {
            return self.complete_part(slot, result);
        }
        self.sampler.iter_mut().for_each(|sampler| sampler.done());
        self.complete_one(slot & !SAMPLED, result);
        self.sampler.iter_mut().for_each(|sampler| sampler.posted(&self.counters));
    }

    #[inline]
    fn complete_one(&mut self, slot: u32, result: RequestResult) {
        let command = &mut self.commands[slot as usize];
        let ended = *command;
        command.regions = RegionMask::NONE;
        self.free_commands.push(slot);
        self.end(ended, result);
    }

    /// Whether a command from before `epoch` is in flight. Looks at all of them: not for every turn.
    pub(super) fn has_older(&self, epoch: u32) -> bool {
        let any = |free: &[u32], epochs: &mut dyn Iterator<Item = u32>| {
            let mut in_flight: Vec<bool> = epochs.map(|of| older(of, epoch)).collect();
            free.iter().for_each(|&slot| in_flight[slot as usize] = false);
            in_flight.contains(&true)
        };
        any(&self.free_commands, &mut self.commands.iter().map(|c| c.epoch))
            || any(&self.free_composites, &mut self.composites.iter().map(|c| c.epoch))
    }

    /// Hands admin commands to the control thread, as many as there is room for answers to.
    #[cold]
    fn fetch_admin(&mut self, index: usize) -> usize {
        let Some(sq) = &mut self.sqs[index] else { return 0 };
        let Some(cq) = &mut self.cqs[sq.cq()] else { return 0 };
        let room = cq.parameters.size as usize - 1;
        let mut fetched = 0;
        while sq.waiting() > 0 && self.admin_outstanding as usize + cq.backlog_len() < room {
            let Some(sqe) = sq.peek() else { break };
            sq.advance();
            self.admin_outstanding += 1;
            fetched += 1;
            self.shared.tell(Event::Admin(self.shared.index, Box::new(sqe)));
        }
        fetched
    }

    /// Bytes that its commands have moved so far.
    #[inline]
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.counters.bytes_read.get().wrapping_add(self.counters.bytes_written.get())
    }

    /// Accounts for time that the reactor was awake, and for time that it slept: busy while commands were outstanding.
    pub(crate) fn account(&mut self, awake: Duration, asleep: Duration) {
        let mut busy = Duration::ZERO;
        if std::mem::take(&mut self.worked) || self.in_flight > 0 {
            busy += awake;
        }
        if self.in_flight > 0 {
            busy += asleep;
        }
        self.counters.busy_ns.add(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Ends a batch: posts what had no room, interrupts, and acknowledges what has been waited for long enough.
    #[inline]
    pub(crate) fn finish_batch(&mut self) {
        if self.posted || self.shared.pin.recheck.load(Ordering::Relaxed) {
            self.interrupt();
        }
        if self.chores {
            self.acknowledge();
            self.chores = self.has_chores();
        }
    }

    fn has_chores(&self) -> bool {
        !self.unfinished.is_empty()
            || self.flushes > 0
            || !self.flushes_left.is_empty()
            || !self.waiting.is_empty()
            || self.faults.is_some()
    }

    /// Something is to be posted from a backlog.
    pub(super) fn post_soon(&mut self) {
        self.posted = true;
    }

    /// Something waits for a place, or for more completions to share its interrupt with.
    #[inline]
    pub(super) fn is_posting(&self) -> bool {
        self.posted
    }

    fn interrupt(&mut self) {
        self.posted = false;
        let recheck = &self.shared.pin.recheck;
        if recheck.load(Ordering::Relaxed) {
            // Before what it is about is looked at.
            recheck.swap(false, Ordering::AcqRel);
        }
        let uses_msix = self.vectors.uses_msix();
        let mut fired = 0;
        for cq in self.cqs.iter_mut().flatten() {
            if cq.backlog_len() > 0 {
                match cq.post_backlog() {
                    // What is left waits for the guest to take entries: look again.
                    Ok(_) => self.posted |= cq.backlog_len() > 0,
                    Err(_) => self.shared.found(Finding::InvalidDoorbellValue),
                }
            }
            if cq.uninterrupted == 0 || !uses_msix {
                continue;
            }
            let vector = cq.parameters.vector;
            if let Some((threshold, time_us)) = self.tuning.coalescing(vector)
                && cq.uninterrupted < threshold
                && cq.parameters.id != 0
            {
                let since = *cq.waiting_since.get_or_insert_with(Instant::now);
                if since.elapsed().as_micros() < u128::from(time_us) {
                    self.posted = true;
                    continue;
                }
            }
            (cq.uninterrupted, cq.waiting_since) = (0, None);
            probes::interrupt(self.controller, vector);
            fired += u64::from(self.vectors.fire_msix(vector));
        }
        if !uses_msix {
            fired += self.update_pin();
        }
        if fired > 0 {
            self.counters.interrupts.add(fired);
        }
    }

    /// Works out anew which of the queues assert the pin, and fires it where that is due.
    #[cold]
    fn update_pin(&mut self) -> u64 {
        let pin = &self.shared.pin;
        let mut any = false;
        for cq in self.cqs.iter_mut().flatten() {
            cq.uninterrupted = 0;
            if cq.look().is_err() {
                self.shared.found(Finding::InvalidDoorbellValue);
            }
            let asserts = cq.parameters.interrupts && cq.has_entries();
            if asserts != cq.asserts_pin {
                cq.asserts_pin = asserts;
                if asserts { pin.assert() } else { pin.deassert() }
            }
            any |= asserts;
        }
        // The level can only fall when the guest takes entries, so that has to be looked for.
        self.posted |= any;
        u64::from(pin.update(&self.vectors))
    }
}

pub(super) fn slba(sqe: &SubmissionQueueEntry) -> u64 {
    u64::from(sqe.cdw11) << 32 | u64::from(sqe.cdw10)
}
