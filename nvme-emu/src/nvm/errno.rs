//! What a host's errno means to a guest.

use block_core::{Operation, RequestError};
use nvme_spec::Status;

/// The status of a command whose request failed.
#[cold]
pub(crate) fn status(operation: Operation, error: RequestError) -> Status {
    match error.errno {
        libc::ENOSPC | libc::EDQUOT => Status::CAPACITY_EXCEEDED,
        libc::EROFS => Status::NAMESPACE_WRITE_PROTECTED,
        libc::ENOMEM | libc::EAGAIN | libc::EOPNOTSUPP => Status::INTERNAL_ERROR,
        // The client took memory away that it had shared.
        libc::EFAULT => Status::DATA_TRANSFER_ERROR,
        _ => match operation {
            Operation::Read => Status::UNRECOVERED_READ_ERROR,
            Operation::Write | Operation::Flush | Operation::Discard | Operation::WriteZeroes => {
                Status::WRITE_FAULT
            }
        },
    }
}
