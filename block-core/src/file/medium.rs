//! What an open file asks of the kernel by system calls, one call each; what it asks by a ring is in [`super::ring`].
//! Nothing else reaches the file once it is open.
//!
//! With the feature `contract` a simulation can take the kernel's place: see [`super::simulated`].

use super::open_file::last_errno;
#[cfg(feature = "contract")]
use super::simulated::Descriptor;
use crate::request::Segment;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FallocateFlags, SeekFrom, fstat, ftruncate, seek, stat};
use std::path::Path;

/// `BLKDISCARD` of Linux's `include/uapi/linux/fs.h`: `_IO(0x12, 119)`, an array of start and length.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Where an open file's data is.
pub(super) enum Medium {
    /// In a file or block device of the host.
    Host(OwnedFd),
    /// In a simulated file.
    #[cfg(feature = "contract")]
    Simulated(Descriptor),
}

/// The errno of a call that gave a negative number, or the number.
fn moved(n: isize) -> Result<usize, i32> {
    usize::try_from(n).map_err(|_| last_errno())
}

/// The errno of a call that gave -1.
fn done(result: libc::c_int) -> Result<(), i32> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

impl Medium {
    /// `preadv`: how many bytes it moved, 0 at the end of the file. Fails with an errno.
    ///
    /// # Safety
    ///
    /// The segments are valid for writes.
    pub unsafe fn read(&self, segments: &[Segment], offset: u64) -> Result<usize, i32> {
        match self {
            Self::Host(fd) => {
                let (list, count) = (segments.as_ptr().cast(), segments.len() as libc::c_int);
                // SAFETY: `Segment` is laid out as `iovec`, and the caller's segments are valid.
                moved(unsafe { libc::preadv(fd.as_raw_fd(), list, count, offset as libc::off_t) })
            }
            #[cfg(feature = "contract")]
            // SAFETY: handed on from the caller.
            Self::Simulated(file) => unsafe { file.read(segments, offset) },
        }
    }

    /// `pwritev2`, with `RWF_DSYNC` if so asked: how many bytes it moved. Fails with an errno.
    ///
    /// # Safety
    ///
    /// The segments are valid for reads.
    pub unsafe fn write(&self, segments: &[Segment], offset: u64, dsync: bool) -> Result<usize, i32> {
        match self {
            Self::Host(fd) => {
                let (list, count) = (segments.as_ptr().cast(), segments.len() as libc::c_int);
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                // SAFETY: `Segment` is laid out as `iovec`, and the caller's segments are valid.
                moved(unsafe { libc::pwritev2(fd.as_raw_fd(), list, count, offset as libc::off_t, flags) })
            }
            #[cfg(feature = "contract")]
            // SAFETY: handed on from the caller.
            Self::Simulated(file) => unsafe { file.write(segments, offset, dsync) },
        }
    }

    /// `fdatasync`. Fails with an errno.
    pub fn sync(&self) -> Result<(), i32> {
        match self {
            // SAFETY: a plain system call on our own descriptor.
            Self::Host(fd) => done(unsafe { libc::fdatasync(fd.as_raw_fd()) }),
            #[cfg(feature = "contract")]
            Self::Simulated(file) => file.sync(),
        }
    }

    /// `fallocate`. Fails with an errno.
    pub fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), i32> {
        match self {
            Self::Host(fd) => {
                rustix::fs::fallocate(fd, mode, offset, len).map_err(|errno| errno.raw_os_error())
            }
            #[cfg(feature = "contract")]
            Self::Simulated(file) => file.allocate(mode, offset, len),
        }
    }

    /// `BLKDISCARD`, which block devices have. Fails with an errno.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), i32> {
        match self {
            Self::Host(fd) => {
                let range = [offset, len];
                // SAFETY: `BLKDISCARD` reads two 64-bit numbers.
                done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) })
            }
            // It is a regular file.
            #[cfg(feature = "contract")]
            Self::Simulated(_) => Err(libc::ENOTTY),
        }
    }

    /// Its length in bytes. Fails with an errno.
    pub fn size(&self) -> Result<u64, i32> {
        match self {
            Self::Host(fd) => seek(fd, SeekFrom::End(0)).map_err(|errno| errno.raw_os_error()),
            #[cfg(feature = "contract")]
            Self::Simulated(file) => Ok(file.size()),
        }
    }

    /// `ftruncate`. Fails with an errno.
    pub fn set_len(&self, len: u64) -> Result<(), i32> {
        match self {
            Self::Host(fd) => ftruncate(fd, len).map_err(|errno| errno.raw_os_error()),
            #[cfg(feature = "contract")]
            Self::Simulated(file) => file.set_len(len),
        }
    }

    /// What tells it from every other file of the host: device and inode. Fails with an errno.
    pub fn identity(&self) -> Result<(u64, u64), i32> {
        match self {
            Self::Host(fd) => {
                fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).map_err(|errno| errno.raw_os_error())
            }
            #[cfg(feature = "contract")]
            Self::Simulated(file) => Ok(file.identity()),
        }
    }

    /// The same of the file that has this name where this one is. Fails with an errno.
    pub fn identity_of(&self, path: &Path) -> Result<(u64, u64), i32> {
        match self {
            Self::Host(_) => {
                stat(path).map(|stat| (stat.st_dev, stat.st_ino)).map_err(|errno| errno.raw_os_error())
            }
            #[cfg(feature = "contract")]
            Self::Simulated(file) => file.identity_of(path),
        }
    }
}
