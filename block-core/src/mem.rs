//! `mem:SIZE`: a disk in memory, gone when it is closed.

use crate::disk::{Disk, DiskInfo, Unmapped};
use crate::queue::{Queue, Submission};
use crate::registry::OpenError;
use crate::request::{Completion, Operation, Request, RequestResult};
use crate::segments;
use crate::spec::{DiskSpec, SIZE, parse_size};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::param::page_size;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// A disk in anonymous memory, zeroes at first.
///
/// Memory is taken page by page (huge ones, where the system has them) when it is first written, and given back by discards and by write zeroes that may
/// unmap. Every request is done in [`Queue::submit`]. Nothing outlives the process, so there is no volatile cache to
/// flush.
///
/// Queues on several threads copy without a lock between them: of overlapping requests, any byte may come from any
/// one of them (`request_alignment` is 1).
///
/// Options: `readonly=on|off` (default off).
pub struct MemDisk {
    memory: Arc<Mapping>,
    read_only: bool,
}

/// The location of `mem:` and `null:`, a size.
pub(crate) fn take_capacity(spec: &DiskSpec) -> Result<u64, OpenError> {
    match parse_size(spec.location()) {
        Some(0) | None => Err(OpenError::Unusable {
            location: spec.to_string(),
            reason: format!("`{}` is not {SIZE}, and more than 0", spec.location()),
        }),
        Some(capacity) => Ok(capacity),
    }
}

impl MemDisk {
    /// A disk of `capacity` bytes, more than 0.
    ///
    /// # Errors
    ///
    /// There is no address space for it.
    pub fn with_capacity(capacity: u64) -> io::Result<Self> {
        Ok(Self { memory: Arc::new(Mapping::new(capacity)?), read_only: false })
    }

    /// The disk that `mem:SIZE[,option=value…]` names.
    ///
    /// # Errors
    ///
    /// A size or an option that is wrong, or more than there is address space.
    pub fn open(mut spec: DiskSpec) -> Result<Self, OpenError> {
        let capacity = take_capacity(&spec)?;
        let read_only = spec.take_switch("readonly")?.unwrap_or(false);
        spec.finish()?;
        let disk = Self::with_capacity(capacity).map_err(|source| OpenError::Host {
            location: spec.to_string(),
            action: "cannot reserve that much memory",
            source,
        })?;
        Ok(Self { read_only, ..disk })
    }
}

impl Disk for MemDisk {
    fn info(&self) -> DiskInfo {
        let page = page_size() as u32;
        DiskInfo {
            capacity: self.memory.capacity,
            logical_block_size: 512,
            physical_block_size: page,
            request_alignment: 1,
            memory_alignment: 1,
            max_transfer: u32::MAX,
            volatile_cache: false,
            read_only: self.read_only,
            unmapped: Unmapped::Zeroes,
            discard_granularity: page,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: 512,
        }
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(MemQueue {
            memory: self.memory.clone(),
            read_only: self.read_only,
            page: page_size(),
            outgrows_caches: self.memory.capacity > CACHEABLE,
        }))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The memory itself.
struct Mapping {
    base: NonNull<u8>,
    capacity: u64,
}

// SAFETY: the mapping is only reached through raw pointers, by copies that tolerate others' writes: see `MemDisk`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(capacity: u64) -> io::Result<Self> {
        let len = usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // Random blocks out of a large memory miss the TLB each time with small pages. Refused is as good.
        // SAFETY: advice on the mapping just made.
        let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, capacity })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no queue has it any more. It cannot fail for such a range.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.capacity as usize) };
    }
}

/// The largest disk whose blocks are likely to be in a cache when they are used again. What is written to a larger one
/// goes past the caches: to write a block into them, its lines would first be fetched from memory, for nothing.
const CACHEABLE: u64 = 64 << 20;

/// How much of a range that is expected is fetched ahead; from there on the CPU's own prefetching has caught up.
const FETCH_AHEAD: u64 = 4096;

/// Bytes that are fetched at a time.
const CACHE_LINE: usize = 64;

/// Asks the CPU for the cache line of an address, which need not be valid. Into the second level: the first has too
/// few places for lines on their way to hold a block's, and the present copy would wait for one.
#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of an address where nothing is mapped does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; it changes neither memory nor flags.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

struct MemQueue {
    memory: Arc<Mapping>,
    read_only: bool,
    page: usize,
    outgrows_caches: bool,
}

impl MemQueue {
    /// Makes a range, which is inside the disk, read as zeroes. Whole pages of it go back to the system if they may.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> RequestResult {
        let base = self.memory.base.as_ptr().wrapping_add(offset as usize);
        let len = len as usize;
        let head = base.align_offset(self.page).min(len);
        let pages = if unmap { (len - head) / self.page * self.page } else { 0 };
        let tail = len - head - pages;
        // SAFETY: the caller has checked the range, and the three parts make it up.
        unsafe {
            std::ptr::write_bytes(base, 0, head);
            std::ptr::write_bytes(base.wrapping_add(head + pages), 0, tail);
        }
        let pages_base = base.wrapping_add(head);
        // SAFETY: whole pages of our own private anonymous mapping, which then read as zeroes.
        if pages > 0 && unsafe { madvise(pages_base.cast(), pages, Advice::LinuxDontNeed) }.is_err() {
            // Locked memory cannot be given back; zeroes can still be written.
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(pages_base, 0, pages) };
        }
        Ok(())
    }
}

impl Queue for MemQueue {
    #[inline]
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        if let Some(result) = request.settled(self.memory.capacity, self.read_only) {
            return Submission::Done(result);
        }
        let Request { operation, offset, len, segments, .. } = request;
        let at = self.memory.base.as_ptr().wrapping_add(offset as usize);
        Submission::Done(match operation {
            Operation::Read => {
                // SAFETY: the range is inside the mapping, the segments are the caller's and add up to its length.
                unsafe { segments::scatter(at, segments, 0, len as usize) };
                Ok(())
            }
            Operation::Write => {
                let gather =
                    if self.outgrows_caches { segments::gather_past_caches } else { segments::gather };
                // SAFETY: as above.
                unsafe { gather(segments, 0, at, len as usize) };
                Ok(())
            }
            Operation::Flush => Ok(()),
            Operation::Discard => self.zero(offset, len, true),
            Operation::WriteZeroes => {
                self.zero(offset, len, request.flags.contains(crate::RequestFlags::MAY_UNMAP))
            }
        })
    }

    #[inline]
    fn hint(&self, operation: Operation, offset: u64, len: u64) {
        if operation == Operation::Write && self.outgrows_caches {
            return;
        }
        // What is ours to fetch, and nothing else of the process's: it could be told from how long that takes.
        let len = len.min(FETCH_AHEAD).min(self.memory.capacity.saturating_sub(offset));
        let at = self.memory.base.as_ptr().wrapping_add(offset as usize);
        (0..len as usize).step_by(CACHE_LINE).for_each(|line| prefetch(at.wrapping_add(line)));
    }

    fn takes_hints(&self) -> bool {
        true
    }

    fn kick(&mut self) {}

    fn poll(&mut self, _completions: &mut Vec<Completion>) -> usize {
        0
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
