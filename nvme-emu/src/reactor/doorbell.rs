//! Doorbells, three ways, one code path behind them.
//!
//! A doorbell is a 32-bit word that a reactor looks at. Trapped writes and client-mapped doorbells end up in the
//! controller's [`DoorbellPage`]; shadow doorbells (Doorbell Buffer Config) are in the guest's own memory, and come
//! with an EventIdx word through which the controller says when it wants to be rung as well (NVM Express Base
//! Specification 2.0, "Doorbell Buffer Config command" and the annex on updating doorbell properties).

use nvme_spec::registers::DOORBELL_BASE;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// A shadow doorbell and its EventIdx, in guest memory that has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shadow {
    pub(crate) value: NonNull<AtomicU32>,
    pub(crate) event_index: NonNull<AtomicU32>,
}

/// One queue's doorbell, as its reactor sees it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    page: Arc<DoorbellPage>,
    index: usize,
    /// Where to look: the page's word, or the shadow's.
    value: NonNull<AtomicU32>,
    event_index: Option<NonNull<AtomicU32>>,
}

impl Doorbell {
    /// The doorbell at `index` of the page.
    pub(crate) fn new(page: Arc<DoorbellPage>, index: usize) -> Option<Self> {
        let value = NonNull::from(page.word(index)?);
        Some(Self { page, index, value, event_index: None })
    }

    /// Where it is in the page.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Starts anew at 0, in guest memory too: a queue of this identifier may have been here before.
    pub(crate) fn reset(&self) {
        if let Some(word) = self.page.word(self.index) {
            word.store(0, Ordering::Relaxed);
        }
        if let Some(event_index) = self.event_index {
            // SAFETY: see `use_shadow`.
            unsafe {
                self.value.as_ref().store(0, Ordering::Relaxed);
                event_index.as_ref().store(0, Ordering::Relaxed);
            }
        }
    }

    /// Looks into guest memory from now on, or at the page again.
    ///
    /// # Safety
    ///
    /// The shadow's words are aligned and stay mapped until this is called again or the doorbell is gone.
    pub(crate) unsafe fn use_shadow(&mut self, shadow: Option<Shadow>) {
        match shadow {
            Some(shadow) => {
                self.value = shadow.value;
                self.event_index = Some(shadow.event_index);
            }
            None => {
                if let Some(word) = self.page.word(self.index) {
                    // What was rung last was only rung in memory: what the page has may be from before there were
                    // shadows, and would look like a ring of commands that have long been executed.
                    if self.event_index.is_some() {
                        word.store(self.load(), Ordering::Release);
                    }
                    self.value = NonNull::from(word);
                }
                self.event_index = None;
            }
        }
    }

    /// What was rung last. Acquire: what the guest wrote before it rang is seen.
    #[inline]
    pub(crate) fn load(&self) -> u32 {
        // SAFETY: a word of the page, which `self` holds, or of guest memory, see `use_shadow`.
        unsafe { self.value.as_ref() }.load(Ordering::Acquire)
    }

    /// Whether the guest reads an EventIdx before it rings.
    #[inline]
    pub(crate) fn has_event_index(&self) -> bool {
        self.event_index.is_some()
    }

    /// Puts EventIdx where the guest does not pass by soon, given the value last seen: right behind it. It moves with
    /// every look, and a guest cannot go round the whole queue between two looks that see nothing consumed.
    #[inline]
    pub(crate) fn suppress(&self, seen: u32, size: u32) {
        let behind = if seen == 0 { size - 1 } else { seen - 1 };
        self.set_event_index(behind);
    }

    /// Puts EventIdx where the guest passes by with its next change. The caller fences and looks once more before it
    /// relies on that.
    pub(crate) fn arm(&self, seen: u32) {
        self.set_event_index(seen);
    }

    #[inline]
    fn set_event_index(&self, value: u32) {
        if let Some(event_index) = self.event_index {
            // SAFETY: see `use_shadow`.
            unsafe { event_index.as_ref() }.store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a driver does after moving a shadow doorbell (the specification's annex; Linux's
    /// `nvme_dbbuf_need_event`).
    fn guest_rings(event_index: u32, old: u32, new: u32) -> bool {
        let (event, old, new) = (event_index as u16, old as u16, new as u16);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn shadowed(page: &Arc<DoorbellPage>, words: &[AtomicU32; 2]) -> Doorbell {
        let mut doorbell = Doorbell::new(page.clone(), tail_index(1)).unwrap();
        let shadow = Shadow { value: NonNull::from(&words[0]), event_index: NonNull::from(&words[1]) };
        // SAFETY: the words outlive the doorbell.
        unsafe { doorbell.use_shadow(Some(shadow)) };
        doorbell
    }

    #[test]
    fn an_armed_doorbell_is_rung_by_the_next_change_wherever_it_is() {
        let page = DoorbellPage::new().unwrap();
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let doorbell = shadowed(&page, &words);
        for size in [2, 3, 64, 1024] {
            for seen in 0..size {
                doorbell.arm(seen);
                for step in 1..size {
                    let new = (seen + step) % size;
                    assert!(guest_rings(words[1].load(Ordering::Relaxed), seen, new), "{size} {seen} {new}");
                }
            }
        }
    }

    #[test]
    fn a_suppressed_doorbell_is_not_rung_while_the_queue_is_looked_at() {
        let page = DoorbellPage::new().unwrap();
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let doorbell = shadowed(&page, &words);
        let size = 64;
        let mut rings = 0;
        for seen in (0..size).chain(0..size) {
            doorbell.suppress(seen, size);
            let new = (seen + 1) % size;
            rings += u32::from(guest_rings(words[1].load(Ordering::Relaxed), seen, new));
        }
        assert_eq!(rings, 0);
    }

    #[test]
    fn a_doorbell_whose_shadow_goes_keeps_what_was_rung_last() {
        let page = DoorbellPage::new().unwrap();
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let mut doorbell = shadowed(&page, &words);
        page.word(tail_index(1)).unwrap().store(3, Ordering::Relaxed);
        words[0].store(7, Ordering::Relaxed);
        // SAFETY: there is no shadow.
        unsafe { doorbell.use_shadow(None) };
        assert_eq!(doorbell.load(), 7);
        // SAFETY: as above.
        unsafe { doorbell.use_shadow(None) };
        page.word(tail_index(1)).unwrap().store(8, Ordering::Relaxed);
        assert_eq!(doorbell.load(), 8, "and is rung in the page from then on");
    }

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
