//! A client's shared memory, mapped into this process.

use super::sigbus::{Fault, Guard};
use rustix::fs::{FileType, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Shared memory of a client; unmapped when the last map that holds it is gone.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    len: usize,
    backing: OwnedFd,
    backing_offset: u64,
    /// Always there once `new` has returned.
    guard: Option<Guard>,
}

// SAFETY: a mapping is an address range; what is in it is only touched by copies that expect it to change.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives a reference into the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `backing` from `offset`. Should the memory turn out to have no file behind it, zeroes
    /// take its place and `fault` is set.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an offset that is not page-aligned or a length of 0, or what `mmap` says; `InvalidInput` with a
    /// message for a file that is shorter than that.
    pub fn new(
        backing: OwnedFd,
        offset: u64,
        len: usize,
        read: bool,
        write: bool,
        fault: Arc<Fault>,
    ) -> io::Result<Self> {
        check_file_len(&backing, offset, len)?;
        let mut protection = ProtFlags::empty();
        if read {
            protection |= ProtFlags::READ;
        }
        if write {
            // Writable memory is read too where a page is only partly written by the kernel.
            protection |= ProtFlags::READ | ProtFlags::WRITE;
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &backing,
                offset,
            )?
        };
        let mut this = Self { base: base.cast(), len, backing, backing_offset: offset, guard: None };
        this.guard = Some(Guard::new(this.base as usize, len, fault)?);
        Ok(this)
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The shared memory behind it, and where in it the mapping begins.
    pub fn backing(&self) -> (BorrowedFd<'_>, u64) {
        (self.backing.as_fd(), self.backing_offset)
    }
}

/// Refuses to map past the end of a file. What lies there is not what the client has there: nothing, or on hugetlbfs, whose
/// files grow by being mapped, new memory of nobody's. SPDK's driver names the first of many such files for all of them
/// unless it is told to make a single one.
fn check_file_len(backing: &OwnedFd, offset: u64, len: usize) -> io::Result<()> {
    let stat = fstat(backing)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        // Devices have no length.
        return Ok(());
    }
    let file_len = (stat.st_size as u64).next_multiple_of(page_size() as u64);
    if offset.checked_add(len as u64).is_none_or(|end| end > file_len) {
        let what = format!("{offset:#x}+{len:#x} is not inside its file of {:#x} bytes", stat.st_size);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First the guard: a fault handler must never map over what somebody else has mapped here since.
        self.guard = None;
        // SAFETY: this range was mapped by `new` and only this value names it; the maps and requests that had
        // pointers into it held an `Arc` of it or had ended, so nothing touches it any more.
        let result = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}
