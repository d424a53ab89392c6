//! Commands of a shard that take several requests, and the flushes that no command asked for: what is seldom, and may find
//! that its disks have no room for all of it.

use super::disk_queues::DiskQueues;
use super::probes;
use super::shard::{Shard, older, slba};
use crate::memory::RegionMask;
use crate::nvm::composite::{Composite, Prepare};
use crate::nvm::errno;
use block_core::{Operation, Request, RequestFlags, RequestResult, Submission};
use nvme_spec::{Status, SubmissionQueueEntry};

/// Composites at a time: each may have a buffer as large as a transfer, and a guest could ask for thousands.
const MAX_COMPOSITES: usize = 32;

/// Marks the tokens of requests that belong to a [`Composite`].
pub(super) const COMPOSITE: u32 = 1 << 31;
/// The token of a flush that no command asked for.
const FLUSH: u32 = u32::MAX;

impl Shard {
    /// Whether there are as many as there may be.
    pub(super) fn has_all_composites(&self) -> bool {
        self.composites.len() - self.free_composites.len() == MAX_COMPOSITES
    }

    /// Starts a command that takes several requests.
    pub(super) fn start_composite(
        &mut self,
        sq: usize,
        sqe: &SubmissionQueueEntry,
        prepare: Prepare,
        token: u64,
        disks: &mut DiskQueues,
    ) {
        let slot = self.free_composites.pop().unwrap_or_else(|| {
            self.composites.push(Composite::default());
            (self.composites.len() - 1) as u32
        });
        let sqid = self.sqid(sq);
        let composite = &mut self.composites[slot as usize];
        (composite.sq, composite.cid, composite.nsid, composite.slba) = (sq, sqe.cid, sqe.nsid, slba(sqe));
        (composite.sqid, composite.epoch) = (sqid, self.epoch);
        match composite.prepare(&mut self.context, sqe, prepare) {
            Ok(()) => self.continue_composite(slot, token, disks),
            Err(status) => {
                composite.fail(status);
                self.end_composite(slot);
            }
        }
    }

    /// Submits what is left of a composite, as far as its disks have room.
    fn continue_composite(&mut self, slot: u32, token: u64, disks: &mut DiskQueues) {
        let composite = &mut self.composites[slot as usize];
        while let Some((part, segment)) = composite.next() {
            let request = Request {
                operation: part.operation,
                offset: part.offset,
                len: part.len,
                segments: segment.as_slice(),
                flags: part.flags,
                token: token | u64::from(slot | COMPOSITE),
            };
            if self.probed {
                probes::submit(self.controller, composite.sqid, composite.cid, part.offset, part.len);
            }
            // SAFETY: the segment is the composite's own buffer, which stays until all its parts have ended.
            match unsafe { disks.submit(part.disk, request) } {
                Submission::Full => {
                    self.unfinished.push_back(slot);
                    self.chores = true;
                    return;
                }
                Submission::Pending => composite.submitted(),
                Submission::Done(result) => {
                    if self.probed {
                        probes::complete(self.controller, composite.sqid, composite.cid, &result);
                    }
                    composite.submitted();
                    composite.ended(result.map_err(|error| errno::status(part.operation, error)));
                }
            }
        }
        self.end_composite(slot);
    }

    /// Goes on with those whose disks had no room.
    #[cold]
    pub(super) fn continue_composites(&mut self, token: u64, disks: &mut DiskQueues) {
        for _ in 0..self.unfinished.len() {
            if let Some(slot) = self.unfinished.pop_front() {
                self.continue_composite(slot, token, disks);
            }
        }
    }

    /// A request of a composite has ended, or a flush.
    pub(super) fn complete_part(&mut self, slot: u32, result: RequestResult) {
        if slot == FLUSH {
            self.flushes -= 1;
            return self.flushed(result);
        }
        let slot = slot & !COMPOSITE;
        let composite = &mut self.composites[slot as usize];
        if self.probed {
            probes::complete(self.controller, composite.sqid, composite.cid, &result);
        }
        let operation = composite.operation();
        composite.ended(result.map_err(|error| errno::status(operation, error)));
        if !self.unfinished.contains(&slot) {
            self.end_composite(slot);
        }
    }

    /// Completes a composite's command, if nothing of it is left to do.
    fn end_composite(&mut self, slot: u32) {
        let composite = &mut self.composites[slot as usize];
        let Some(status) = composite.outcome() else { return };
        let (sq, cid, nsid, slba) = (composite.sq, composite.cid, composite.nsid, composite.slba);
        self.counters.other_commands.add(1);
        self.counters.compares.add(u64::from(composite.is_compare()));
        self.counters.bytes_compared.add(composite.bytes_read());
        composite.rest();
        self.free_composites.push(slot);
        let outcome = if status == Status::SUCCESS { Ok(()) } else { Err((status, nsid, slba)) };
        self.finish(sq, cid, outcome);
    }

    /// Whether a composite from before `epoch` touches any of these regions.
    pub(super) fn composites_touch(&self, regions: RegionMask, epoch: u32) -> bool {
        self.composites.iter().any(|c| older(c.epoch, epoch) && c.regions().intersects(regions))
    }

    /// Submits the flushes that are left to do, as far as their disks have room.
    pub(super) fn continue_flushes(&mut self, token: u64, disks: &mut DiskQueues) {
        while let Some(&disk) = self.flushes_left.last() {
            let request = Request {
                operation: Operation::Flush,
                offset: 0,
                len: 0,
                segments: &[],
                flags: RequestFlags::NONE,
                token: token | u64::from(FLUSH),
            };
            // SAFETY: there are no segments.
            match unsafe { disks.submit(disk, request) } {
                Submission::Full => return,
                Submission::Pending => self.flushes += 1,
                Submission::Done(result) => self.flushed(result),
            }
            self.flushes_left.pop();
        }
    }

    fn flushed(&mut self, result: RequestResult) {
        if let Err(error) = result {
            tracing::error!(controller = self.shared.index, "flush failed: {error}");
            self.flush_failed.get_or_insert(error.errno);
        }
    }
}
