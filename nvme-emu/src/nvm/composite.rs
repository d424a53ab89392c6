//! Commands that take several requests, or a buffer of ours: Dataset Management, Flush of all namespaces, Compare,
//! Verify. Not the path that has to be fast, but what it needs is reused from command to command all the same.

use super::{Context, Prepared};
use crate::memory::{Access, RegionMask};
use crate::transfer::SegmentList;
use block_core::{Operation, RequestFlags, Segment};
use nvme_spec::nvm_command::{Compare, DatasetManagement, DatasetManagementRange, Verify};
use nvme_spec::{Status, SubmissionQueueEntry};
use zerocopy::IntoBytes;

/// Ranges of a Dataset Management command (NR is 8 bits, 0's based).
const MAX_RANGES: usize = 256;

/// A buffer up to this size is kept for the next command.
const KEPT_BUFFER: usize = 64 << 10;

/// What to do when all requests have succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Finish {
    #[default]
    Nothing,
    /// Compare the buffer with the guest's memory.
    Compare,
}

/// A command in several requests.
#[derive(Debug, Default)]
pub(crate) struct Composite {
    /// Where its submission queue is among the shard's.
    pub(crate) sq: usize,
    /// That queue's identifier.
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) nsid: u32,
    pub(crate) slba: u64,
    /// The shard's map when it was started.
    pub(crate) epoch: u32,
    parts: Vec<Prepared>,
    /// The first part that was not submitted.
    next: usize,
    in_flight: usize,
    /// The first error.
    error: Option<Status>,
    /// Where reads go.
    buffer: Vec<u8>,
    /// The guest's memory to compare with.
    guest: SegmentList,
    finish: Finish,
}

impl Composite {
    /// The regions of guest memory that it will touch.
    pub(crate) fn regions(&self) -> RegionMask {
        self.guest.regions()
    }

    /// What its requests do: all the same.
    pub(crate) fn operation(&self) -> Operation {
        self.parts.first().map_or(Operation::Flush, |part| part.operation)
    }

    /// Bytes that it reads for Compare or Verify.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.parts.iter().filter(|part| part.operation == Operation::Read).map(|part| part.len).sum()
    }

    /// Whether it is a Compare.
    pub(crate) fn is_compare(&self) -> bool {
        self.finish == Finish::Compare
    }

    /// It cannot be done.
    pub(crate) fn fail(&mut self, status: Status) {
        self.error = Some(status);
    }

    /// It has been completed: it touches nothing, and waits for the next command.
    pub(crate) fn rest(&mut self) {
        self.guest.clear();
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// The next request to submit and the memory that it reads into.
    pub(crate) fn next(&mut self) -> Option<(Prepared, Option<Segment>)> {
        // After an error the rest need not be tried.
        let part = *self.parts.get(self.next).filter(|_| self.error.is_none())?;
        // `prepare` made the buffer at least as long as the longest part.
        let segment = Segment { base: self.buffer.as_mut_ptr(), len: part.len as usize };
        let segment = (part.operation == Operation::Read).then_some(segment);
        Some((part, segment))
    }

    /// The next request has been submitted.
    pub(crate) fn submitted(&mut self) {
        self.next += 1;
        self.in_flight += 1;
    }

    /// A submitted request has ended.
    pub(crate) fn ended(&mut self, result: Result<(), Status>) {
        self.in_flight -= 1;
        if let Err(status) = result {
            self.error.get_or_insert(status);
        }
    }

    /// The command's status, once nothing of it is left to do.
    pub(crate) fn outcome(&mut self) -> Option<Status> {
        let all_submitted = self.next == self.parts.len() || self.error.is_some();
        if self.in_flight > 0 || !all_submitted {
            return None;
        }
        Some(match (self.error, self.finish) {
            (Some(status), _) => status,
            (None, Finish::Nothing) => Status::SUCCESS,
            (None, Finish::Compare) if self.matches() => Status::SUCCESS,
            (None, Finish::Compare) => Status::COMPARE_FAILURE,
        })
    }

    /// Whether the guest's memory, copied once, is what was read.
    fn matches(&self) -> bool {
        let mut guest = vec![0; self.buffer.len()];
        self.guest.read(&mut guest);
        guest == self.buffer
    }

    /// Takes on a command.
    pub(crate) fn prepare(
        &mut self,
        context: &mut Context,
        sqe: &SubmissionQueueEntry,
        prepare: Prepare,
    ) -> Result<(), Status> {
        self.parts.clear();
        self.guest.clear();
        self.buffer.clear();
        (self.next, self.in_flight, self.error, self.finish) = (0, 0, None, Finish::Nothing);
        prepare(self, context, sqe)
    }

    /// Flush with NSID FFFFFFFFh: every attached namespace (NVM Express Base Specification 2.0, 7.1).
    pub(super) fn flush_all(
        &mut self,
        context: &mut Context,
        _sqe: &SubmissionQueueEntry,
    ) -> Result<(), Status> {
        self.parts.extend(context.namespaces.iter().flatten().map(|view| Prepared::flush(view.disk)));
        Ok(())
    }

    /// Dataset Management (NVM Command Set Specification 1.0, 3.2.3): every range is checked before any is touched.
    pub(super) fn dataset_management(
        &mut self,
        context: &mut Context,
        sqe: &SubmissionQueueEntry,
    ) -> Result<(), Status> {
        let view = context.namespace(sqe.nsid)?;
        let command: DatasetManagement = sqe.dwords();
        let mut ranges = [DatasetManagementRange::default(); MAX_RANGES];
        let ranges = &mut ranges[..command.number_of_ranges() as usize];
        context.walker().walk(sqe, size_of_val(ranges), Access::Read)?;
        context.list.read(ranges.as_mut_bytes());
        if command.ad() && view.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
        }
        for range in ranges.iter() {
            let (offset, len) = view.range(range.slba, u64::from(range.length_lbas))?;
            // The other attributes are hints about access that no disk of ours can use.
            if command.ad() && len > 0 {
                // Without a cache to flush, what is gone must not come back.
                let durable = context.write_through(&view);
                let flags = if durable { RequestFlags::FUA } else { RequestFlags::NONE };
                self.parts.push(Prepared {
                    disk: view.disk,
                    operation: Operation::Discard,
                    offset,
                    len,
                    flags,
                });
            }
        }
        Ok(())
    }

    /// Compare (NVM Command Set Specification 1.0, 3.2.1).
    pub(super) fn compare(
        &mut self,
        context: &mut Context,
        sqe: &SubmissionQueueEntry,
    ) -> Result<(), Status> {
        let view = context.namespace(sqe.nsid)?;
        let command: Compare = sqe.dwords();
        let (offset, len) = view.range(command.slba(), u64::from(command.number_of_logical_blocks()))?;
        if len > u64::from(context.max_transfer) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        context.walker_into(&mut self.guest).walk(sqe, len as usize, Access::Read)?;
        self.buffer.resize(len as usize, 0);
        self.parts.push(Prepared::read(view.disk, offset, len));
        self.finish = Finish::Compare;
        Ok(())
    }

    /// Verify (NVM Command Set Specification 1.0, 3.2.5): reads the blocks and transfers nothing, so that errors of
    /// the medium show. Its length is not bounded by MDTS, so it goes piece by piece.
    pub(super) fn verify(&mut self, context: &mut Context, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let view = context.namespace(sqe.nsid)?;
        let command: Verify = sqe.dwords();
        let (offset, len) = view.range(command.slba(), u64::from(command.number_of_logical_blocks()))?;
        let step = u64::from(context.max_transfer);
        self.buffer.resize(len.min(step) as usize, 0);
        for at in (0..len).step_by(step as usize) {
            self.parts.push(Prepared::read(view.disk, offset + at, step.min(len - at)));
        }
        Ok(())
    }
}

/// One of the commands above.
pub(crate) type Prepare = fn(&mut Composite, &mut Context, &SubmissionQueueEntry) -> Result<(), Status>;
