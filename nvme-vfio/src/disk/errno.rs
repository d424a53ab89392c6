//! What a command's status means to whoever asked for data.

use nvme_spec::Status;

/// The errno of a request of which a command failed.
#[cold]
pub(super) fn errno(status: Status) -> i32 {
    let any = |statuses: &[Status]| statuses.iter().any(|other| status.is(*other));
    if any(&[Status::CAPACITY_EXCEEDED, Status::NAMESPACE_INSUFFICIENT_CAPACITY]) {
        libc::ENOSPC
    } else if any(&[Status::NAMESPACE_WRITE_PROTECTED, Status::ATTEMPTED_WRITE_TO_READ_ONLY_RANGE]) {
        libc::EROFS
    } else if status.is(Status::LBA_OUT_OF_RANGE) {
        libc::EINVAL
    } else if any(&[Status::INVALID_OPCODE, Status::COMMAND_SIZE_LIMIT_EXCEEDED]) {
        libc::EOPNOTSUPP
    } else if status.is(Status::RESERVATION_CONFLICT) {
        libc::EBUSY
    } else if status.is(Status::ACCESS_DENIED) {
        libc::EACCES
    } else if status.is(Status::DATA_TRANSFER_ERROR) {
        // The memory was not reachable for the controller.
        libc::EFAULT
    } else if status.is(Status::INVALID_NAMESPACE) {
        // Deleted or detached since.
        libc::ENXIO
    } else {
        libc::EIO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_have_an_errno_of_their_own_get_it_whatever_their_other_bits_say() {
        for (status, expected) in [
            (Status::CAPACITY_EXCEEDED, libc::ENOSPC),
            (Status::NAMESPACE_WRITE_PROTECTED.with_dnr(), libc::EROFS),
            (Status::LBA_OUT_OF_RANGE.with_dnr().with_more(), libc::EINVAL),
            (Status::INVALID_OPCODE, libc::EOPNOTSUPP),
            (Status::INVALID_NAMESPACE, libc::ENXIO),
            (Status::UNRECOVERED_READ_ERROR, libc::EIO),
            (Status::INTERNAL_ERROR, libc::EIO),
            (Status::HOST_PATHING_ERROR, libc::EIO),
        ] {
            assert_eq!(errno(status), expected, "{status}");
        }
    }
}
