//! What happens to a shard when the control thread asks for it, and how it gets ready to sleep.

use super::completion_queue::{CompletionQueue, CompletionQueueParameters};
use super::disk_queues::DiskQueues;
use super::doorbell::{Doorbell, Shadow};
use super::doorbell_page::{head_index, tail_index};
use super::message::{EnableParameters, ShardRequest, Ticket, Tuning};
use super::shard::{Shard, Until, Waiting, older};
use super::submission_queue::{SubmissionQueue, SubmissionQueueParameters};
use crate::controller::control::Event;
use crate::memory::{Access, MemoryMap, RegionMask};
use crate::nvm::NamespaceView;
use crate::subsystem::Subsystem;
use nvme_spec::{CompletionQueueEntry, Status};
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Shard {
    /// Does what the control thread asks for. `new_fd` is told of disk queues' descriptors to sleep on.
    pub(crate) fn handle(
        &mut self,
        request: ShardRequest,
        ticket: Option<Ticket>,
        disks: &mut DiskQueues,
        new_fd: &mut dyn FnMut(RawFd),
    ) {
        let mut result = Ok(());
        match request {
            ShardRequest::Map { map, removed } => {
                self.use_map(map);
                return self.wait(ticket, Until::RegionsQuiet { removed, epoch: self.epoch });
            }
            ShardRequest::Drain => {
                self.draining = true;
                self.sqs.iter_mut().flatten().for_each(|sq| sq.deleting = true);
                return self.wait(ticket, Until::Drained);
            }
            ShardRequest::DeleteSubmissionQueue(id) => {
                if let Some(index) = self.find_sq(id) {
                    self.sqs[index].iter_mut().for_each(|sq| sq.deleting = true);
                    self.shared.set_owner(tail_index(id), None);
                    return self.wait(ticket, Until::QueueQuiet(index));
                }
            }
            ShardRequest::FlushAll => {
                self.flushes_left = self.context.namespaces.iter().flatten().map(|view| view.disk).collect();
                self.chores = true;
                return self.wait(ticket, Until::Flushed);
            }
            ShardRequest::Vectors(vectors) => {
                self.vectors = vectors;
                self.post_soon();
            }
            ShardRequest::Enable(parameters) => result = self.enable(*parameters, disks, new_fd),
            ShardRequest::AddCompletionQueue(parameters) => result = self.add_cq(parameters),
            ShardRequest::AddSubmissionQueue(parameters) => result = self.add_sq(parameters),
            ShardRequest::DeleteCompletionQueue(id) => self.delete_cq(id),
            ShardRequest::ShadowDoorbells { doorbells, event_indexes } => {
                self.shadow = Some((doorbells, event_indexes));
                self.use_shadows();
            }
            ShardRequest::Tuning { tuning, settle } => {
                self.tune(tuning);
                if settle {
                    self.epoch = self.epoch.wrapping_add(1);
                    return self.wait(ticket, Until::Ended { before: self.epoch });
                }
            }
            ShardRequest::Resized(subsystem) => self.resize(&subsystem),
            ShardRequest::CompleteAdmin { cid, status, dw0 } => {
                self.admin_outstanding = self.admin_outstanding.saturating_sub(1);
                self.complete_admin(cid, status, dw0);
            }
            ShardRequest::CompleteParked { cid, status, dw0 } => self.complete_admin(cid, status, dw0),
            ShardRequest::ParkAdmin => self.admin_outstanding = self.admin_outstanding.saturating_sub(1),
        }
        if let Some(ticket) = ticket {
            self.shared.tell(Event::Done(ticket, result));
        }
    }

    fn wait(&mut self, ticket: Option<Ticket>, until: Until) {
        if let Some(ticket) = ticket {
            self.waiting.push(Waiting { ticket, until });
            self.chores = true;
        }
    }

    /// Acknowledges what has been waited for long enough.
    #[cold]
    pub(super) fn acknowledge(&mut self) {
        // Whoever waits for flushes waits for the same ones.
        let flushed = self.flushes == 0 && self.flushes_left.is_empty();
        let flush_result = if flushed { self.flush_failed.take().map_or(Ok(()), Err) } else { Ok(()) };
        for waiting in std::mem::take(&mut self.waiting) {
            let over = match waiting.until {
                Until::Drained => self.in_flight == 0,
                Until::QueueQuiet(index) => {
                    self.sqs.get(index).is_none_or(|sq| sq.as_ref().is_none_or(|sq| sq.in_flight == 0))
                }
                Until::RegionsQuiet { removed, epoch } => !self.touches(removed, epoch),
                Until::Ended { before } => !self.has_older(before),
                Until::Flushed => flushed,
            };
            if !over {
                self.waiting.push(waiting);
                continue;
            }
            let mut result = Ok(());
            match waiting.until {
                Until::Drained => self.reset(),
                Until::QueueQuiet(index) => drop(self.sqs.get_mut(index).and_then(Option::take)),
                Until::Flushed => result = flush_result,
                Until::RegionsQuiet { .. } | Until::Ended { .. } => {}
            }
            self.shared.tell(Event::Done(waiting.ticket, result));
        }
    }

    /// Whether a command from before `epoch` touches any of these regions.
    fn touches(&self, regions: RegionMask, epoch: u32) -> bool {
        self.commands.iter().any(|c| older(c.epoch, epoch) && c.regions.intersects(regions))
            || self.composites_touch(regions, epoch)
    }

    /// Forgets the queues, and all that a controller level reset resets.
    fn reset(&mut self) {
        for cq in self.cqs.drain(..).flatten() {
            if cq.asserts_pin {
                self.shared.pin.deassert();
            }
            self.shared.set_owner(head_index(cq.parameters.id), None);
        }
        for sq in self.sqs.drain(..).flatten() {
            self.shared.set_owner(tail_index(sq.parameters.id), None);
        }
        self.faults.iter_mut().for_each(|point| point.reset());
        self.shadow = None;
        self.admin_outstanding = 0;
        self.draining = false;
    }

    fn enable(
        &mut self,
        parameters: EnableParameters,
        disks: &mut DiskQueues,
        new_fd: &mut dyn FnMut(RawFd),
    ) -> Result<(), i32> {
        self.context.namespaces.clear();
        self.hints = false;
        for namespace in parameters.subsystem.namespaces() {
            let (disk, fd) = disks.open(namespace.disk()).map_err(|error| {
                tracing::error!("cannot open a queue on namespace {}: {error}", namespace.nsid());
                error.raw_os_error().unwrap_or(libc::EIO)
            })?;
            fd.into_iter().for_each(&mut *new_fd);
            self.hints |= disks.takes_hints(disk);
            // NSIDs are at least 1 and not many.
            let index = namespace.nsid() as usize - 1;
            self.context.namespaces.resize(self.context.namespaces.len().max(index + 1), None);
            self.context.namespaces[index] = Some(NamespaceView::new(namespace, disk));
        }
        self.context.page_size = parameters.page_size;
        self.context.max_transfer = parameters.max_transfer;
        self.tune(parameters.tuning);
        Ok(())
    }

    /// Takes the sizes that the namespaces have now. What is in flight beyond a new end is its disk's to refuse.
    fn resize(&mut self, subsystem: &Subsystem) {
        let namespaces = subsystem.namespaces().iter();
        for namespace in namespaces {
            if let Some(Some(view)) = self.context.namespaces.get_mut(namespace.nsid() as usize - 1) {
                view.capacity_lbas = namespace.capacity_lbas();
            }
        }
    }

    fn tune(&mut self, tuning: Tuning) {
        self.context.write_cache = tuning.write_cache;
        self.tuning = tuning;
    }

    fn use_map(&mut self, map: Arc<MemoryMap>) {
        self.context.map = map;
        self.epoch = self.epoch.wrapping_add(1);
        self.cqs.iter_mut().flatten().for_each(|cq| cq.remap(&self.context.map));
        self.sqs.iter_mut().flatten().for_each(|sq| sq.remap(&self.context.map));
        self.use_shadows();
        self.post_soon();
    }

    /// Where a doorbell's shadow is, if there is one and its memory is mapped.
    fn shadow_of(&self, index: usize) -> Option<Shadow> {
        let (doorbells, event_indexes) = self.shadow?;
        let word = |base: u64| {
            let iova = base.checked_add(index as u64 * 4)?;
            let read = self.context.map.translate(iova, 4, Access::Read, &mut 0).ok()?;
            self.context.map.translate(iova, 4, Access::Write, &mut 0).ok()?;
            // Pages are aligned in both address spaces, so words are.
            NonNull::new(read.base().cast())
        };
        Some(Shadow { value: word(doorbells)?, event_index: word(event_indexes)? })
    }

    /// Points the I/O queues' doorbells into guest memory, or back at the page. The admin queue's stay where they are:
    /// hosts do not shadow them.
    fn use_shadows(&mut self) {
        for i in 0..self.cqs.len() {
            let index = self.cqs[i].as_ref().filter(|cq| cq.parameters.id > 0).map(|cq| cq.doorbell.index());
            let Some(shadow) = index.map(|index| self.shadow_of(index)) else { continue };
            if let Some(cq) = &mut self.cqs[i] {
                // SAFETY: aligned words in the current map, whose memory stays until `use_map` was called with
                // another and this function with it.
                unsafe { cq.doorbell.use_shadow(shadow) };
            }
        }
        for i in 0..self.sqs.len() {
            let index = self.sqs[i].as_ref().filter(|sq| sq.parameters.id > 0).map(|sq| sq.doorbell.index());
            let Some(shadow) = index.map(|index| self.shadow_of(index)) else { continue };
            if let Some(sq) = &mut self.sqs[i] {
                // SAFETY: as above.
                unsafe { sq.doorbell.use_shadow(shadow) };
            }
        }
    }

    /// A doorbell for a new queue, at 0.
    fn doorbell(&self, index: usize, id: u16) -> Result<Doorbell, i32> {
        let mut doorbell = Doorbell::new(self.shared.doorbells.clone(), index).ok_or(libc::EINVAL)?;
        let shadow = (id > 0).then(|| self.shadow_of(index)).flatten();
        // SAFETY: as in `use_shadows`.
        unsafe { doorbell.use_shadow(shadow) };
        doorbell.reset();
        self.shared.set_owner(index, Some(self.reactor));
        Ok(doorbell)
    }

    fn add_cq(&mut self, parameters: CompletionQueueParameters) -> Result<(), i32> {
        let doorbell = self.doorbell(head_index(parameters.id), parameters.id)?;
        put(&mut self.cqs, CompletionQueue::new(parameters, doorbell, &self.context.map));
        Ok(())
    }

    fn add_sq(&mut self, parameters: SubmissionQueueParameters) -> Result<(), i32> {
        let cq = self.find_cq(parameters.cqid).ok_or(libc::ENOENT)?;
        let doorbell = self.doorbell(tail_index(parameters.id), parameters.id)?;
        // So that commands in flight need no allocation later.
        self.commands.reserve(parameters.size as usize);
        put(&mut self.sqs, SubmissionQueue::new(parameters, doorbell, cq, &self.context.map));
        Ok(())
    }

    fn delete_cq(&mut self, id: u16) {
        if let Some(cq) = self.find_cq(id).and_then(|index| self.cqs[index].take()) {
            if cq.asserts_pin {
                self.shared.pin.deassert();
            }
            self.shared.set_owner(head_index(id), None);
        }
    }

    fn find_cq(&self, id: u16) -> Option<usize> {
        self.cqs.iter().position(|cq| cq.as_ref().is_some_and(|cq| cq.parameters.id == id))
    }

    fn find_sq(&self, id: u16) -> Option<usize> {
        self.sqs.iter().position(|sq| sq.as_ref().is_some_and(|sq| sq.parameters.id == id))
    }

    fn complete_admin(&mut self, cid: u16, status: Status, dw0: u32) {
        let Some(sq) = self.find_sq(0).and_then(|index| self.sqs[index].as_ref()) else { return };
        let (cq, head) = (sq.cq(), sq.head());
        let entry = CompletionQueueEntry::new(cid, 0, head, status, false).with_dw0(dw0);
        if self.faults.is_some() && !self.draining {
            self.post_as_scripted(cq, entry);
        } else if let Some(cq) = self.cqs[cq].as_mut().filter(|_| !self.draining) {
            cq.post(entry);
            self.post_soon();
        }
    }

    /// Whether something is under way, whatever the guest does next: a reactor looks at such a shard in every round.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight > 0 || self.is_posting() || self.chores
    }

    /// Whether it has queues to look at.
    pub(crate) fn is_active(&self) -> bool {
        !self.sqs.is_empty()
    }

    /// Whether anything has come in since the last look.
    pub(crate) fn has_work(&self) -> bool {
        self.shared.pin.recheck.load(Ordering::Relaxed)
            || self.sqs.iter().flatten().any(SubmissionQueue::rung)
            || self.cqs.iter().flatten().any(|cq| (cq.waits_for_room() || cq.asserts_pin) && cq.rung())
    }

    /// Asks to be rung by whatever happens next, before the reactor sleeps.
    pub(crate) fn arm(&self) {
        for sq in self.sqs.iter().flatten() {
            sq.doorbell.arm(sq.tail());
        }
        for cq in self.cqs.iter().flatten() {
            if cq.waits_for_room() || cq.asserts_pin {
                cq.doorbell.arm(cq.head());
            } else {
                cq.doorbell.suppress(cq.head(), cq.parameters.size);
            }
        }
    }

    /// Asks not to be rung, after the reactor has slept.
    pub(crate) fn disarm(&self) {
        for sq in self.sqs.iter().flatten() {
            sq.doorbell.suppress(sq.tail(), sq.parameters.size);
        }
    }

    /// When an interrupt that waits for more completions has to fire, or a completion that is late by script is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let time = Duration::from_micros(u64::from(self.tuning.coalescing_time_us));
        let coalesced = self.cqs.iter().flatten().filter_map(|cq| cq.waiting_since).min();
        let late = self.faults.as_ref().and_then(|point| point.deadline());
        coalesced.map(|since| since + time).into_iter().chain(late).min()
    }
}

/// Puts a queue into the first free place.
fn put<T>(queues: &mut Vec<Option<T>>, queue: T) {
    match queues.iter_mut().find(|place| place.is_none()) {
        Some(place) => *place = Some(queue),
        None => queues.push(Some(queue)),
    }
}
