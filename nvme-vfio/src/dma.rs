//! Memory that the controller reads and writes.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::Error;
use crate::iova::IovaAllocator;
use crate::transport::{DmaMemory, Transport};

/// A piece of the controller's address space, for it to read data from or write data to.
///
/// Plain numbers: the controller reaches only what was mapped for it, which is memory that this process accesses by
/// copying alone. A wrong range therefore ends in a wrong status or wrong data, and never in undefined behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRange {
    /// I/O virtual address of the first byte.
    pub iova: u64,
    /// Length in bytes.
    pub len: u32,
}

/// One range is a list of one.
impl AsRef<[DmaRange]> for DmaRange {
    #[inline]
    fn as_ref(&self) -> &[DmaRange] {
        std::slice::from_ref(self)
    }
}

/// A transport's address space: who is where in it.
pub(crate) struct DmaSpace {
    transport: Arc<dyn Transport>,
    page_size: u64,
    iovas: Mutex<IovaAllocator>,
}

impl DmaSpace {
    /// The address space behind a transport, for a controller with memory pages of this size.
    pub(crate) fn new(transport: Arc<dyn Transport>, memory_page_size: u64) -> Arc<Self> {
        let limits = transport.dma_limits();
        // Mappings are made of pages of this process, whatever the IOMMU could do in smaller ones; and queues begin
        // at a memory page of the controller's.
        let page_size = limits.page_size.max(rustix::param::page_size() as u64).max(memory_page_size);
        let iovas = Mutex::new(IovaAllocator::new(&limits, page_size));
        Arc::new(Self { transport, page_size, iovas })
    }

    /// Allocates zeroed memory, of at least `len` bytes, and maps it.
    pub(crate) fn allocate(self: &Arc<Self>, len: usize) -> Result<DmaBuffer, Error> {
        let failed = |doing| {
            move |source: std::io::Error| Error::Transport {
                name: self.transport.name().into(),
                doing: format!("{doing} {len} bytes of DMA memory"),
                source,
            }
        };
        let out_of_range = || failed("allocating")(rustix::io::Errno::NOMEM.into());
        let bytes = (len.max(1) as u64).checked_next_multiple_of(self.page_size).ok_or_else(out_of_range)?;
        let memory = SharedMemory::new(bytes).map_err(|errno| failed("allocating")(errno.into()))?;

        let iova = self.iovas.lock().unwrap_or_else(PoisonError::into_inner).allocate(bytes);
        let iova = iova.ok_or_else(out_of_range)?;
        let range = DmaMemory { base: memory.base, len: bytes, backing: Some((memory.file.as_fd(), 0)) };
        // SAFETY: the memory belongs to the DmaBuffer made below, which unmaps it from the controller before it
        // unmaps it from this process (or leaves it for good if the former fails), and never makes a reference.
        if let Err(source) = unsafe { self.transport.map_dma(iova, &range) } {
            self.iovas.lock().unwrap_or_else(PoisonError::into_inner).release(iova, bytes);
            return Err(failed("mapping")(source));
        }
        Ok(DmaBuffer { space: self.clone(), memory: ManuallyDrop::new(memory), iova, len: bytes as usize })
    }
}

/// Pages backed by a memfd, so that a controller in another process can map them too.
struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    file: std::os::fd::OwnedFd,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    fn new(len: u64) -> rustix::io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| rustix::io::Errno::NOMEM)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"ringpair-dma", flags)?;
        rustix::fs::ftruncate(&file, len)?;
        // A server that gets this descriptor must not be able to truncate it under our feet (SIGBUS).
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Populated: the data path takes no page faults.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, protection, flags, &file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { base, len: size, file })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is unmapped once, and its owner has given up all pointers to it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// Memory that both this process and the controller reach. Page-aligned; zeroed when allocated.
///
/// The controller may write it at any time while a command points into it, so it is only ever copied from and to,
/// never referenced. Dropping it takes it away from the controller first: a command still in flight into it then
/// ends with an error (or its data is lost), and nothing else is harmed.
pub struct DmaBuffer {
    space: Arc<DmaSpace>,
    /// Left alone for good if the controller cannot be kept from it.
    memory: ManuallyDrop<SharedMemory>,
    iova: u64,
    len: usize,
}

impl DmaBuffer {
    /// Length in bytes: what was asked for, rounded up to whole pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one page.
    #[inline]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// I/O virtual address of its first byte.
    #[inline]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Its first byte. The controller may be writing behind it.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base().as_ptr()
    }

    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.memory.base
    }

    /// A part of it, to be given to a command.
    ///
    /// # Panics
    ///
    /// The range is not inside the buffer, or longer than 4 GiB - 1.
    #[inline]
    pub fn range(&self, bytes: Range<usize>) -> DmaRange {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len, "{bytes:?} is outside {} bytes", self.len);
        let len = u32::try_from(bytes.end - bytes.start).expect("a command's data is shorter than 4 GiB");
        DmaRange { iova: self.iova + bytes.start as u64, len }
    }

    /// Copies out of it, from `offset` on.
    ///
    /// # Panics
    ///
    /// The range is not inside the buffer.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: the source was checked to be inside the mapping, which `to`, being a reference, cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr().add(offset), to.as_mut_ptr(), to.len()) };
    }

    /// Copies into it, from `offset` on.
    ///
    /// # Panics
    ///
    /// The range is not inside the buffer.
    pub fn write_at(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: the destination was checked to be inside the mapping, which `from`, being a reference, cannot
        // overlap; nobody has a reference into the mapping, and `&self` is not shared between threads.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.as_ptr().add(offset), from.len()) };
    }

    /// Fills a part of it with one byte.
    ///
    /// # Panics
    ///
    /// The range is not inside the buffer.
    pub fn fill(&self, bytes: Range<usize>, value: u8) {
        let len = bytes.end.saturating_sub(bytes.start);
        self.check(bytes.start, len);
        // SAFETY: as in `write_at`.
        unsafe { std::ptr::write_bytes(self.as_ptr().add(bytes.start), value, len) };
    }

    fn check(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "bytes {offset}+{len} are outside a buffer of {} bytes", self.len);
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        let len = self.len as u64;
        match self.space.transport.unmap_dma(self.iova, len) {
            Ok(()) => {
                self.space.iovas.lock().unwrap_or_else(PoisonError::into_inner).release(self.iova, len);
                // SAFETY: dropped here and nowhere else, and not used again.
                unsafe { ManuallyDrop::drop(&mut self.memory) };
            }
            Err(error) => {
                // The controller may still write there: neither these pages nor this address may ever be used for
                // anything else.
                let name = self.space.transport.name();
                tracing::warn!("{name}: unmapping {len} bytes of DMA memory failed, leaving them: {error}");
            }
        }
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaBuffer").field("iova", &self.iova).field("len", &self.len).finish_non_exhaustive()
    }
}
