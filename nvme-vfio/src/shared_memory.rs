//! Pages of this process that others can map too, in one place of the machine's memory where that matters.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::iova::HUGE_PAGE;
use crate::transport::DmaMemory;

/// Pages backed by a memfd, so that a controller in another process can map them too.
pub(crate) struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// `len` zeroed bytes, whole pages of that size; from 2 MiB on, huge pages.
    pub(crate) fn new(len: u64, page_size: u64) -> io::Result<Self> {
        let memory = Self::unsealed(len, page_size >= HUGE_PAGE)?;
        memory.seal()?;
        Ok(memory)
    }

    /// `len` zeroed bytes of huge pages that lie one after the other, in the order of where `address` says that each is.
    /// (The backing file has them in another order.)
    pub(crate) fn in_one_place(
        len: u64,
        address: impl Fn(&DmaMemory<'_>) -> io::Result<u64>,
    ) -> io::Result<Self> {
        let pages = len / HUGE_PAGE;
        let mut memory = Self::unsealed(len, true)?;
        if pages > 1 {
            memory = memory.put_in_one_place(pages, address)?;
        }
        memory.seal()?;
        Ok(memory)
    }

    fn put_in_one_place(
        mut self,
        pages: u64,
        address: impl Fn(&DmaMemory<'_>) -> io::Result<u64>,
    ) -> io::Result<Self> {
        let mut more = pages;
        loop {
            if let Some(run) = run(&self.addresses(&address)?, pages as usize) {
                return self.select(&run);
            }
            // Other pages may lie better. Those that are not needed are given back in the end.
            match self.grow(more * HUGE_PAGE) {
                Ok(grown) => self = grown,
                Err(error) if error.kind() != io::ErrorKind::OutOfMemory => return Err(error),
                Err(_) if more > 1 => more /= 2,
                Err(_) => return Err(scattered(pages)),
            }
        }
    }

    fn unsealed(len: u64, huge: bool) -> io::Result<Self> {
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if huge {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let no_memory = |error: io::Error| if huge { too_few(error) } else { error };
        let file =
            rustix::fs::memfd_create(c"ringpair-dma", flags).map_err(|errno| no_memory(errno.into()))?;
        Self::map_whole(file, len).map_err(no_memory)
    }

    /// Maps a file, made so long.
    fn map_whole(file: OwnedFd, len: u64) -> io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        rustix::fs::ftruncate(&file, len)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, &file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        let this = Self { base, len: size, file };
        this.populate()?;
        Ok(this)
    }

    /// Takes the pages now, so that the data path takes no page faults; transparent huge pages where the machine has
    /// them for shared memory, so that it misses the TLB less often.
    fn populate(&self) -> rustix::io::Result<()> {
        let (base, len) = (self.base.as_ptr().cast::<c_void>(), self.len);
        // SAFETY: advice on our own mapping; refused is as good.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxHugepage) };
        // SAFETY: as above; it changes nothing that is in the pages.
        match unsafe { rustix::mm::madvise(base, len, Advice::LinuxPopulateWrite) } {
            // Older than Linux 5.14.
            Err(Errno::INVAL) => {
                for page in (0..len).step_by(rustix::param::page_size()) {
                    // SAFETY: inside the mapping, which nobody else has seen yet.
                    unsafe {
                        let byte = self.base.add(page);
                        byte.write_volatile(byte.read_volatile());
                    }
                }
                Ok(())
            }
            populated => populated,
        }
    }

    /// A server that gets this descriptor must not be able to truncate it under our feet (SIGBUS).
    fn seal(&self) -> io::Result<()> {
        Ok(rustix::fs::fcntl_add_seals(&self.file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
    }

    /// The same pages, and so many bytes of further ones.
    fn grow(&self, more: u64) -> io::Result<Self> {
        let len = self.len as u64;
        Self::map_whole(self.file.try_clone()?, len + more).map_err(|error| {
            // What is not mapped takes no pages; but the file is not to end behind them.
            match rustix::fs::ftruncate(&self.file, len) {
                Ok(()) => too_few(error),
                Err(errno) => errno.into(),
            }
        })
    }

    /// Where each huge page is.
    fn addresses(&self, address: impl Fn(&DmaMemory<'_>) -> io::Result<u64>) -> io::Result<Vec<u64>> {
        let pages = (0..self.len).step_by(HUGE_PAGE as usize);
        pages
            .map(|offset| {
                // SAFETY: inside the mapping.
                let base = unsafe { self.base.add(offset) };
                address(&DmaMemory {
                    base,
                    len: HUGE_PAGE,
                    backing: Some((self.file.as_fd(), offset as u64)),
                })
            })
            .collect()
    }

    /// The huge pages with these numbers in this order; the others are given back.
    fn select(self, pages: &[usize]) -> io::Result<Self> {
        let huge_page = HUGE_PAGE as usize;
        // A range of addresses as a mapping of huge pages needs it; which of them are there at first does not matter.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let (protection, len) = (ProtFlags::READ | ProtFlags::WRITE, pages.len() * huge_page);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &self.file, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let selected = Self { base, len, file: self.file.try_clone()? };
        for (place, page) in pages.iter().enumerate() {
            let flags = MapFlags::SHARED | MapFlags::POPULATE | MapFlags::FIXED;
            let offset = *page as u64 * HUGE_PAGE;
            // SAFETY: it replaces a part of the mapping made above, to which nobody has pointers.
            unsafe {
                let at = selected.base.add(place * huge_page).as_ptr().cast::<c_void>();
                rustix::mm::mmap(at, huge_page, protection, flags, &selected.file, offset)?;
            }
        }
        let all = self.len / huge_page;
        // Its mapping keeps the pages in use.
        drop(self);
        for page in (0..all).filter(|page| !pages.contains(page)) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&selected.file, flags, page as u64 * HUGE_PAGE, HUGE_PAGE)?;
        }
        Ok(selected)
    }

    /// Its first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The memory behind it.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this type, is unmapped once, and its owner has given up all pointers to it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// The numbers of `count` huge pages whose addresses follow each other, in the order of these; `None`: there are no such.
fn run(addresses: &[u64], count: usize) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..addresses.len()).collect();
    order.sort_unstable_by_key(|page| addresses[*page]);
    let follows = |pair: &[usize]| addresses[pair[0]].checked_add(HUGE_PAGE) == Some(addresses[pair[1]]);
    order.windows(count).find(|run| run.windows(2).all(follows)).map(<[usize]>::to_vec)
}

fn too_few(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(ENOMEM) => io::Error::new(
            io::ErrorKind::OutOfMemory,
            "too few huge pages are free: as root, `sysctl vm.nr_hugepages=N` with a larger N",
        ),
        _ => error,
    }
}

const ENOMEM: i32 = Errno::NOMEM.raw_os_error();

fn scattered(pages: u64) -> io::Error {
    let what = format!(
        "no {pages} free huge pages lie side by side: reserve more, best when the machine starts (hugepages=N on the \
         kernel's command line)"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(pages: &[u64]) -> Vec<u64> {
        pages.iter().map(|page| page * HUGE_PAGE).collect()
    }

    #[test]
    fn pages_side_by_side_are_found_in_whatever_order_they_come() {
        assert_eq!(run(&at(&[7, 6, 5]), 3), Some(vec![2, 1, 0]));
        assert_eq!(run(&at(&[9, 1, 4, 3, 12]), 2), Some(vec![3, 2]));
        assert_eq!(run(&at(&[3]), 1), Some(vec![0]));
    }

    #[test]
    fn pages_apart_are_not() {
        assert_eq!(run(&at(&[1, 3, 5, 7]), 2), None);
        assert_eq!(run(&at(&[1, 2]), 3), None);
        assert_eq!(run(&[], 1), None);
    }

    #[test]
    fn memory_is_zeroed_and_of_the_length_asked_for() {
        let memory = SharedMemory::new(8192, 4096).unwrap();
        // SAFETY: it is as long as that, and nobody writes to it.
        let bytes = unsafe { std::slice::from_raw_parts(memory.base().as_ptr(), 8192) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(rustix::fs::fstat(memory.file()).unwrap().st_size, 8192);
        let error = rustix::fs::ftruncate(memory.file(), 0).unwrap_err();
        assert_eq!(error, Errno::PERM, "sealed");
    }

    proptest! {
        #[test]
        fn what_is_found_lies_side_by_side(mut pages in proptest::collection::vec(0..30u64, 0..20), count in 1..5usize) {
            pages.sort_unstable();
            pages.dedup();
            let there = pages.iter().any(|first| (0..count as u64).all(|next| pages.contains(&(first + next))));
            // In an order that is not theirs.
            pages.reverse();
            let addresses = at(&pages);
            let found = run(&addresses, count);
            prop_assert_eq!(found.is_some(), there);
            if let Some(found) = found {
                let first = addresses[found[0]];
                let expected: Vec<_> = (0..count as u64).map(|page| first + page * HUGE_PAGE).collect();
                prop_assert_eq!(found.iter().map(|page| addresses[*page]).collect::<Vec<_>>(), expected);
            }
        }
    }
}
