//! The locks that QEMU and qemu-img put on an image, so that we see each other.
//!
//! Byte 100 + n of the file stands for "somebody uses permission n", byte 200 + n for "somebody does not share
//! permission n" (`RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE` in QEMU's `block/file-posix.c`, `BLK_PERM_*` in its
//! `include/block/block-common.h`). Both are shared OFD locks, so many can hold them; whoever comes looks whether
//! the opposite byte is locked.

use rustix::fd::BorrowedFd;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const PERMISSION_BASE: u64 = 100;
const UNSHARED_BASE: u64 = 200;

const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// How the file is in the way of somebody else.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Somebody writes to it.
    Written,
    /// Somebody relies on nobody else writing to it.
    InUse,
    /// The host failed.
    Host(io::Error),
}

/// What we do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
    /// Read and write it, and make it longer.
    WriteAndResize,
}

/// How long a lock may be in the way that is about to go: who is killed lets go of files a little after its end, when its
/// io_uring has been taken down, and a child that has not got to its exec holds its parent's.
const PATIENCE: Duration = Duration::from_millis(100);

/// Locks a file as QEMU does for a guest's disk: we use it as `access` says, and want nobody else to write or resize it.
/// Ends with [`unlock`], or when the last descriptor of this open file is closed.
///
/// A file system without such locks is no error: then nobody can see anybody.
pub(crate) fn lock(file: BorrowedFd<'_>, access: Access) -> Result<(), LockError> {
    let began = Instant::now();
    loop {
        match lock_at_once(file, access) {
            Err(error @ (LockError::Written | LockError::InUse)) => {
                // Not in anybody's way meanwhile, nor afterwards.
                unlock(file);
                if began.elapsed() >= PATIENCE {
                    return Err(error);
                }
                std::thread::sleep(PATIENCE / 20);
            }
            result => return result,
        }
    }
}

fn lock_at_once(file: BorrowedFd<'_>, access: Access) -> Result<(), LockError> {
    let used: &[u64] = match access {
        Access::Read => &[CONSISTENT_READ],
        Access::Write => &[CONSISTENT_READ, WRITE],
        Access::WriteAndResize => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    let unshared = [WRITE, RESIZE];
    let bytes = used.iter().map(|p| PERMISSION_BASE + p).chain(unshared.map(|p| UNSHARED_BASE + p));
    for byte in bytes {
        match ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(error) if no_locks(&error) => {
                tracing::warn!(%error, "the file system has no OFD locks: nothing keeps a second writer away");
                return Ok(());
            }
            Err(error) if would_block(&error) => return Err(LockError::InUse),
            Err(error) => return Err(LockError::Host(error)),
        }
    }
    for permission in used {
        if held_by_others(file, UNSHARED_BASE + permission)? {
            return Err(LockError::InUse);
        }
    }
    for permission in unshared {
        if held_by_others(file, PERMISSION_BASE + permission)? {
            return Err(LockError::Written);
        }
    }
    Ok(())
}

/// Lets go of the locks, even where a child process that has not got to its exec still has the file open.
pub(super) fn unlock(file: BorrowedFd<'_>) {
    for byte in [CONSISTENT_READ, WRITE, RESIZE].map(|p| PERMISSION_BASE + p) {
        let _ = ofd(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte);
    }
    for byte in [WRITE, RESIZE].map(|p| UNSHARED_BASE + p) {
        let _ = ofd(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte);
    }
}

fn held_by_others(file: BorrowedFd<'_>, byte: u64) -> Result<bool, LockError> {
    ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)
        .map(|found| found != libc::F_UNLCK)
        .map_err(LockError::Host)
}

/// One OFD lock operation on one byte; gives the lock type that the kernel left in the structure.
fn ofd(file: BorrowedFd<'_>, command: libc::c_int, kind: libc::c_int, byte: u64) -> io::Result<libc::c_int> {
    // SAFETY: all-zero bytes are a valid `struct flock` (and `l_pid` must be 0 for OFD locks).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte as libc::off_t;
    lock.l_len = 1;
    // SAFETY: a `struct flock` is what these commands read and write.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(libc::c_int::from(lock.l_type)),
    }
}

fn no_locks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY)
    )
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_lock_that_goes_in_a_moment_is_waited_for_and_another_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (one, other) = (open(), open());
        lock(one.as_fd(), Access::Write).unwrap();
        assert!(matches!(lock(other.as_fd(), Access::Write), Err(LockError::InUse | LockError::Written)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(PATIENCE / 4);
                drop(one);
            });
            lock(other.as_fd(), Access::Write).unwrap();
        });
    }
}
