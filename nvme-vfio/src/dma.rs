//! Memory that the controller reads and writes.

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::error::Error;
use crate::iova::IovaSpace;
use crate::shared_memory::SharedMemory;
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
    /// There is no IOMMU: addresses are where memory is.
    physical: bool,
    iovas: IovaSpace,
    mappings: Mutex<Mappings>,
    /// [`Mappings::cutting`] has changed.
    cut: Condvar,
}

/// What the controller reaches.
#[derive(Default)]
struct Mappings {
    /// Lengths in bytes, by I/O virtual address.
    mapped: BTreeMap<u64, u64>,
    /// Nothing is to be mapped any more.
    cut_off: bool,
    /// This one is being taken away, and is its owner's only when that has happened.
    cutting: Option<u64>,
}

impl DmaSpace {
    /// The address space behind a transport, for a controller with memory pages of this size.
    pub(crate) fn new(transport: Arc<dyn Transport>, memory_page_size: u64) -> Arc<Self> {
        let limits = transport.dma_limits();
        // Mappings are made of pages of this process, whatever the IOMMU could do in smaller ones; and queues begin
        // at a memory page of the controller's.
        let page_size = limits.page_size.max(rustix::param::page_size() as u64).max(memory_page_size);
        let iovas = transport.shared_iovas().unwrap_or_else(|| IovaSpace::new(&limits));
        let physical = limits.windows.is_empty();
        Arc::new(Self {
            transport,
            page_size,
            physical,
            iovas,
            mappings: Mutex::default(),
            cut: Condvar::new(),
        })
    }

    fn mappings(&self) -> MutexGuard<'_, Mappings> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all memory away from a controller that cannot be stopped otherwise, and gives it none any more.
    pub(crate) fn cut_off(&self) {
        self.mappings().cut_off = true;
        let mut from = 0;
        // One by one, so that what somebody unmaps at the same time is unmapped once.
        while let Some((iova, len)) = self.begin_to_cut(from) {
            let unmapped = self.transport.unmap_dma(iova, len);
            let mut mappings = self.mappings();
            mappings.cutting = None;
            if let Err(error) = unmapped {
                // If the transport is gone for good, so is the controller's way to the memory; who knows. Its owner
                // will be told when it wants the memory back.
                let name = self.transport.name();
                tracing::warn!("{name}: unmapping {len} bytes of DMA memory failed: {error}");
                mappings.mapped.insert(iova, len);
            }
            drop(mappings);
            self.cut.notify_all();
            from = iova.saturating_add(len);
        }
    }

    /// The first mapping from here on, which is about to be taken away.
    fn begin_to_cut(&self, from: u64) -> Option<(u64, u64)> {
        let mut mappings = self.mappings();
        let (iova, len) = mappings.mapped.range(from..).next().map(|(iova, len)| (*iova, *len))?;
        mappings.mapped.remove(&iova);
        mappings.cutting = Some(iova);
        Some((iova, len))
    }

    /// Allocates `len` bytes of zeroed memory, at least one, and maps it.
    pub(crate) fn allocate(self: &Arc<Self>, len: usize) -> Result<DmaBuffer, Error> {
        let failed = |source| self.failed("allocating", len as u64, source);
        let len = len.max(1);
        let bytes = (len as u64).checked_next_multiple_of(self.page_size);
        let bytes = bytes.ok_or_else(|| failed(Errno::NOMEM.into()))?;
        // The controller is given a first address and a length.
        let memory = if self.physical {
            let unknown = || Err(io::ErrorKind::Unsupported.into());
            let address =
                |page: &DmaMemory<'_>| self.transport.physical_address(page).unwrap_or_else(unknown);
            SharedMemory::in_one_place(bytes, address)
        } else {
            SharedMemory::new(bytes, self.page_size)
        };
        let memory = memory.map_err(failed)?;
        let range = DmaMemory { base: memory.base(), len: bytes, backing: Some((memory.file(), 0)) };
        // SAFETY: the memory belongs to the DmaBuffer made below, which unmaps it from the controller before it
        // unmaps it from this process (or leaves it for good if the former fails), and never makes a reference.
        let iova = unsafe { self.map(&range)? };
        Ok(DmaBuffer { space: self.clone(), memory: ManuallyDrop::new(memory), iova, mapped: bytes, len })
    }

    /// Maps memory of somebody else's.
    ///
    /// # Safety
    ///
    /// As [`crate::Controller::map_dma`].
    pub(crate) unsafe fn map_foreign(self: &Arc<Self>, memory: &DmaMemory<'_>) -> Result<DmaMapping, Error> {
        let (base, len) = (memory.base, memory.len);
        let aligned = len > 0 && (base.addr().get() as u64 | len).is_multiple_of(self.page_size);
        if !aligned {
            let what = format!("the memory does not begin and end at multiples of {} bytes", self.page_size);
            return Err(self.failed("mapping", len, io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        // SAFETY: by this function's condition.
        let iova = unsafe { self.map(memory)? };
        Ok(DmaMapping { space: self.clone(), base, len, iova, mapped: true })
    }

    /// Maps whole pages at an address that is free.
    ///
    /// # Safety
    ///
    /// As [`Transport::map_dma`].
    unsafe fn map(&self, memory: &DmaMemory<'_>) -> Result<u64, Error> {
        let failed = |source| self.failed("mapping", memory.len, source);
        let iova = match self.transport.physical_address(memory) {
            Some(address) => address.map_err(failed)?,
            None => {
                let base = memory.base.addr().get() as u64;
                self.iovas.allocate(memory.len, base, self.page_size).ok_or_else(|| {
                    let what = "no range of I/O virtual addresses is left that is so long";
                    failed(io::Error::new(io::ErrorKind::OutOfMemory, what))
                })?
            }
        };
        // SAFETY: by this function's condition.
        if let Err(source) = unsafe { self.transport.map_dma(iova, memory) } {
            self.release(iova, memory.len);
            return Err(failed(source));
        }
        let mut mappings = self.mappings();
        mappings.mapped.insert(iova, memory.len);
        if mappings.cut_off {
            drop(mappings);
            self.unmap(iova, memory.len)?;
            let what = "the controller was given up";
            return Err(failed(io::Error::new(io::ErrorKind::NotConnected, what)));
        }
        Ok(iova)
    }

    /// Unmaps what one [`DmaSpace::map`] has mapped, and frees its address; that stays taken if it fails.
    fn unmap(&self, iova: u64, len: u64) -> Result<(), Error> {
        let is_being_cut = |mappings: &mut Mappings| mappings.cutting == Some(iova);
        let mappings = self.cut.wait_while(self.mappings(), is_being_cut);
        let was_mapped = mappings.unwrap_or_else(PoisonError::into_inner).mapped.remove(&iova).is_some();
        // It may have been taken away already. The lock is not held meanwhile: this may have to wait for I/O.
        if was_mapped && let Err(source) = self.transport.unmap_dma(iova, len) {
            self.mappings().mapped.insert(iova, len);
            return Err(self.failed("unmapping", len, source));
        }
        self.release(iova, len);
        Ok(())
    }

    fn release(&self, iova: u64, len: u64) {
        // A physical address was never ours to give.
        if !self.physical {
            self.iovas.release(iova, len);
        }
    }

    fn failed(&self, doing: &str, len: u64, source: io::Error) -> Error {
        let doing = format!("{doing} {len} bytes of DMA memory");
        Error::Transport { name: self.transport.name().into(), doing, source }
    }
}

impl std::fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaSpace").field("transport", &self.transport.name()).finish_non_exhaustive()
    }
}

/// Somebody else's memory, as a rule a guest's, that the controller reaches. Dropping it takes it away from the
/// controller.
///
/// It gives no access to the bytes: whoever owns them has that.
#[derive(Debug)]
pub struct DmaMapping {
    space: Arc<DmaSpace>,
    base: NonNull<u8>,
    len: u64,
    iova: u64,
    mapped: bool,
}

// SAFETY: it is two numbers; the pointer is never followed.
unsafe impl Send for DmaMapping {}
// SAFETY: as above.
unsafe impl Sync for DmaMapping {}

impl DmaMapping {
    /// Where it begins in this process.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
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

    /// Where the controller finds `len` bytes of this process; `None` if they are not all in here.
    #[inline]
    pub fn translate(&self, base: *const u8, len: u32) -> Option<DmaRange> {
        let offset = (base.addr() as u64).checked_sub(self.base.addr().get() as u64)?;
        let end = offset.checked_add(len.into())?;
        (end <= self.len).then(|| DmaRange { iova: self.iova + offset, len })
    }

    /// Takes the memory away from the controller. Commands into it that are still in flight end with errors.
    ///
    /// # Errors
    ///
    /// The transport could not: the controller may still reach the memory, which then has to stay as it is until the
    /// controller has been closed.
    pub fn unmap(mut self) -> Result<(), Error> {
        self.unmap_once()
    }

    fn unmap_once(&mut self) -> Result<(), Error> {
        if !std::mem::replace(&mut self.mapped, false) {
            return Ok(());
        }
        // An address that may still lead there is never given to anything else.
        self.space.unmap(self.iova, self.len)
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        if let Err(error) = self.unmap_once() {
            tracing::warn!("{error}");
        }
    }
}

/// Memory that both this process and the controller reach. Page-aligned; zeroed when allocated.
///
/// The controller may write it at any time while a command points into it, so it is only ever copied from and to,
/// never referenced. What a command points into is the controller's until that command has ended, and may only then be
/// used for anything else; a command that was given up ends no sooner than the controller has been stopped
/// ([`crate::recovery`], "Memory"). Dropping it takes it away from the controller first: a command still in flight into it then
/// ends with an error (or its data is lost), and nothing else is harmed.
pub struct DmaBuffer {
    space: Arc<DmaSpace>,
    /// Left alone for good if the controller cannot be kept from it.
    memory: ManuallyDrop<SharedMemory>,
    iova: u64,
    /// Length in whole pages.
    mapped: u64,
    len: usize,
}

impl DmaBuffer {
    /// Length in bytes, as it was asked for. (It takes whole pages, which may be huge.)
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one byte.
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
        self.memory.base()
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

/// A buffer that is held for its memory, by several owners perhaps, and reached by what was taken from it before.
pub(crate) struct Held(#[expect(dead_code, reason = "kept until it is dropped")] DmaBuffer);

// SAFETY: there is nothing that can be done with it but to drop it.
unsafe impl Sync for Held {}

impl DmaBuffer {
    /// Makes this one that is only held.
    pub(crate) fn hold(self) -> Arc<Held> {
        Arc::new(Held(self))
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        match self.space.unmap(self.iova, self.mapped) {
            // SAFETY: dropped here and nowhere else, and not used again.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.memory) },
            // The controller may still write there: neither these pages nor this address may ever be used for
            // anything else. Where it cannot be reached any more, that has been said once.
            Err(error) if self.space.transport.lost().is_some() => tracing::debug!("{error}; leaving it"),
            Err(error) => tracing::warn!("{error}; leaving it"),
        }
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaBuffer").field("iova", &self.iova).field("len", &self.len).finish_non_exhaustive()
    }
}
