//! A controller's doorbell registers (NVMe over PCIe Transport Specification, "Doorbell registers"), as memory.

use crate::sync::AtomicU32;
use nvme_spec::registers::DOORBELL_BASE;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Where a queue's doorbell is, in words from the first one: CAP.DSTRD is 0.
#[inline]
pub(crate) const fn tail_index(sqid: u16) -> usize {
    sqid as usize * 2
}

/// As [`tail_index`], for a completion queue.
#[inline]
pub(crate) const fn head_index(cqid: u16) -> usize {
    cqid as usize * 2 + 1
}

/// A controller's doorbell registers, as memory that can be shared with the client.
#[derive(Debug)]
pub(crate) struct DoorbellPage {
    base: NonNull<AtomicU32>,
    words: usize,
    fd: OwnedFd,
}

// SAFETY: the memory is only accessed as atomics.
unsafe impl Send for DoorbellPage {}
// SAFETY: as above.
unsafe impl Sync for DoorbellPage {}

impl DoorbellPage {
    /// One page: 512 queue pairs, which is more than anybody has.
    pub(crate) const LEN: usize = 4096;

    /// Where it is in the file: where it is in BAR0, since clients map an area of a region at its own offset.
    pub(crate) const FILE_OFFSET: u64 = DOORBELL_BASE;

    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let fd = memfd_create("nvme-doorbells", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, Self::FILE_OFFSET + Self::LEN as u64)?;
        // The client gets this descriptor: it must not be able to take the memory away from under us.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), Self::LEN, protection, MapFlags::SHARED, &fd, Self::FILE_OFFSET)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(Self { base, words: Self::LEN / 4, fd }))
    }

    /// The word with that index, if there is one.
    #[inline]
    pub(crate) fn word(&self, index: usize) -> Option<&AtomicU32> {
        // SAFETY: inside the mapping, which is page-aligned, lives as long as `self` and is only accessed as atomics
        // (by the client too, as far as the hardware goes).
        (index < self.words).then(|| unsafe { self.base.add(index).as_ref() })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for DoorbellPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; every doorbell into it holds an `Arc` of `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), Self::LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn words_past_the_page_do_not_exist() {
        let page = DoorbellPage::new().unwrap();
        assert!(page.word(1023).is_some() && page.word(1024).is_none());
    }

    #[test]
    fn the_page_is_in_its_file_where_it_is_in_bar0() {
        let page = DoorbellPage::new().unwrap();
        rustix::io::pwrite(page.fd(), &7_u32.to_ne_bytes(), 0x1004).unwrap();
        assert_eq!(page.word(1).unwrap().load(Ordering::Relaxed), 7);
    }

    #[test]
    fn the_client_cannot_shrink_the_page() {
        let page = DoorbellPage::new().unwrap();
        assert!(ftruncate(page.fd(), 0).is_err());
    }
}
