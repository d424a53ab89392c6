//! The disk half of the contract.

use crate::queue::Queue;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Weak;

/// What a discarded range reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Zeroes.
    Zeroes,
    /// Zeroes where the disk has freed blocks for it. It may leave any of them as they were: a drive takes a discard
    /// as advice.
    ZeroesIfFreed,
    /// Anything that this range held before, or zeroes.
    Unspecified,
    /// Discard is accepted and does nothing.
    Ignored,
}

/// What a disk is like. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size of the disk; changes only with a resize.
    pub capacity: u64,
    /// Smallest unit in which the disk itself addresses its data (a drive's LBA, 512 for files).
    pub logical_block_size: u32,
    /// Unit that the medium writes without reading (a file system's block, a drive's physical sector).
    pub physical_block_size: u32,
    /// Requests whose offset and length are multiples of this are taken as they are; others are bounced or
    /// read-modified-written.
    pub request_alignment: u32,
    /// Segments whose address and length are multiples of this are used in place; others bounce.
    pub memory_alignment: u32,
    /// Largest read or write that is not split.
    pub max_transfer: u32,
    /// Whether a completed write may still be lost until a flush (NVMe's VWC, SCSI's WCE).
    pub volatile_cache: bool,
    /// Whether writes are refused (with `EROFS`).
    pub read_only: bool,
    /// What a discard leaves behind.
    pub unmapped: Unmapped,
    /// Smallest range that a discard frees.
    pub discard_granularity: u32,
    /// Whether write zeroes takes less than writing the zeroes would.
    pub fast_write_zeroes: bool,
    /// Optimal I/O size, or 0 if there is none.
    pub optimal_io: u32,
    /// Largest write that is there as a whole or not at all after a loss of power, if it begins at a multiple of
    /// `logical_block_size`. That much, one block, is what any medium is believed of.
    pub atomic_write: u32,
}

/// Memory that a disk will be asked to read into and write from: guest RAM, a driver's buffers.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion<'a> {
    /// First byte, page-aligned.
    pub base: *mut u8,
    /// Length in bytes, a multiple of the page size.
    pub len: usize,
    /// The shared memory behind it, if there is one, and where in it the region begins.
    pub backing: Option<(BorrowedFd<'a>, u64)>,
}

// SAFETY: a region names memory, it does not access it.
unsafe impl Send for MemoryRegion<'_> {}

/// Who wants to know when a disk's capacity has changed.
pub type CapacityWatcher = dyn Fn() + Send + Sync;

/// An open disk, shared by all threads.
pub trait Disk: Send + Sync {
    /// What the disk is like now.
    fn info(&self) -> DiskInfo;

    /// What tells its data from all other, wherever it is found: for a drive, what that says of itself. `None`: nothing
    /// does, but where it is.
    fn unique_identifier(&self) -> Option<String> {
        None
    }

    /// Has `changed` called, on any thread, each time that [`DiskInfo::capacity`] has become another (a resize where the
    /// data is), for as long as it lives. It must not wait for anything. By default a disk keeps its size.
    fn watch_capacity(&self, changed: Weak<CapacityWatcher>) {
        let _ = changed;
    }

    /// Says how many queues will be open at a time, before they are; what was said before counts no more. A disk that has
    /// not so many says so now, and not in the middle of a guest's start.
    ///
    /// # Errors
    ///
    /// There are not so many.
    fn expect_queues(&self, count: usize) -> io::Result<()> {
        let _ = count;
        Ok(())
    }

    /// Opens a queue in which up to `depth` requests can be pending, for the calling thread. One per reactor and
    /// disk is the intended use, whatever shares the disk.
    ///
    /// # Errors
    ///
    /// What the host says when it has no room for another one.
    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>>;

    /// Announces memory so that requests into it cost less (IOMMU mappings: no copies). Requests into other memory
    /// work all the same. Memory announced again is announced until it has been taken back as often.
    ///
    /// # Errors
    ///
    /// The disk could not prepare that memory; it then treats it as unannounced.
    ///
    /// # Safety
    ///
    /// The region must stay mapped until [`Disk::unregister_memory`] has returned.
    unsafe fn register_memory(&self, region: MemoryRegion<'_>) -> io::Result<()> {
        let _ = region;
        Ok(())
    }

    /// Takes an announcement back: exactly what one [`Disk::register_memory`] was given. The caller has seen every
    /// request into the region complete. When this returns, nothing that the disk is in charge of reaches the memory.
    fn unregister_memory(&self, base: *mut u8, len: usize) {
        let _ = (base, len);
    }

    /// What it has counted, for a person who looks at how it is doing: names and values of its own choice.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Makes every completed write durable, blocking: for shutdown, not for the data path.
    ///
    /// # Errors
    ///
    /// What the medium said. A failed flush is never retried into success.
    fn flush(&self) -> io::Result<()>;
}
