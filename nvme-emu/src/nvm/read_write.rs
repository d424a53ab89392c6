//! Read, Write, Write Zeroes: one request each.

use super::{Context, Prepared};
use crate::memory::Access;
use block_core::{Operation, RequestFlags};
use nvme_spec::nvm_command::{ReadWrite, WriteZeroes};
use nvme_spec::{Status, SubmissionQueueEntry};

/// Read and Write (NVM Command Set Specification 1.0, 3.2.4 and 3.2.6).
#[inline]
pub(super) fn read_write(
    context: &mut Context,
    sqe: &SubmissionQueueEntry,
    operation: Operation,
) -> Result<Prepared, Status> {
    let view = context.namespace(sqe.nsid)?;
    let command: ReadWrite = sqe.dwords();
    let (offset, len) = view.range(command.slba(), u64::from(command.number_of_logical_blocks()))?;
    if len > u64::from(context.max_transfer) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let mut flags = RequestFlags::NONE;
    let access = if operation == Operation::Write {
        if view.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
        }
        if command.fua() || context.write_through(&view) {
            flags = RequestFlags::FUA;
        }
        Access::Read
    } else {
        Access::Write
    };
    // At most `max_transfer`.
    context.walker().walk(sqe, len as usize, access)?;
    Ok(Prepared { disk: view.disk, operation, offset, len, flags })
}

/// Write Zeroes (NVM Command Set Specification 1.0, 3.2.8). DEAC lets the range be deallocated: it reads as zeroes
/// afterwards all the same.
pub(super) fn write_zeroes(context: &mut Context, sqe: &SubmissionQueueEntry) -> Result<Prepared, Status> {
    let view = context.namespace(sqe.nsid)?;
    let command: WriteZeroes = sqe.dwords();
    let (offset, len) = view.range(command.slba(), u64::from(command.number_of_logical_blocks()))?;
    if view.read_only {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let mut flags = RequestFlags::NONE;
    if command.fua() || context.write_through(&view) {
        flags = flags.with(RequestFlags::FUA);
    }
    if command.deac() {
        flags = flags.with(RequestFlags::MAY_UNMAP);
    }
    Ok(Prepared { disk: view.disk, operation: Operation::WriteZeroes, offset, len, flags })
}
