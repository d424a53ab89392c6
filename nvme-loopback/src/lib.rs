//! Joins `nvme-emu` and `nvme-vfio` in one process: the emulated PCI function as a driver's transport.
//!
//! For tests of either half, and for people who test their own NVMe code. What a vfio-user client says in messages,
//! [`Loopback`] says in function calls; memory is still handed over with its descriptor, and the controller still runs
//! on threads of its own.
//!
//! What it does not do: make the controller. [`nvme_emu::Engine`] does, and gives out the function.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::mpsc;

use nvme_emu::pci::{Call, DmaMapping, InterruptKind, PciFunction};
use nvme_vfio::transport::pci::{self, ConfigSpace};
use nvme_vfio::transport::{DOORBELLS_OFFSET, DmaLimits, DmaMemory, DoorbellMemory, Transport};
use rustix::mm::{MapFlags, ProtFlags};

/// An emulated PCI function, as a driver's transport. The function's only client, as long as it lives.
pub struct Loopback {
    name: String,
    function: PciFunction,
    doorbells: Option<DoorbellMapping>,
}

impl Loopback {
    /// Attaches to a function, under this name in messages.
    ///
    /// # Errors
    ///
    /// Its doorbells cannot be mapped.
    pub fn new(name: impl Into<String>, function: PciFunction) -> io::Result<Self> {
        let doorbells = DoorbellMapping::new(&function)?;
        let this = Self { name: name.into(), function, doorbells };
        pci::enable(&this)?;
        Ok(this)
    }

    /// Hands a call to the controller and waits for its answer.
    fn call(&self, call: Call) -> io::Result<()> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let answer = move |result| {
            // Fails only if nobody waits any more.
            let _ = sender.send(result);
        };
        self.function.call(call, Box::new(answer));
        match receiver.recv() {
            Ok(result) => result.map_err(io::Error::from_raw_os_error),
            Err(mpsc::RecvError) => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the controller has gone"))
            }
        }
    }
}

impl ConfigSpace for Loopback {
    fn read_config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.function.read_config(offset, data);
        Ok(())
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.function.write_config(offset, data);
        Ok(())
    }
}

impl Transport for Loopback {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        let mut data = [0; 4];
        self.function.read_bar0(offset, &mut data);
        Ok(u32::from_le_bytes(data))
    }

    fn read64(&self, offset: u64) -> io::Result<u64> {
        let mut data = [0; 8];
        self.function.read_bar0(offset, &mut data);
        Ok(u64::from_le_bytes(data))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.function.write_bar0(offset, &value.to_le_bytes());
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        self.function.write_bar0(offset, &value.to_le_bytes());
        Ok(())
    }

    fn doorbells(&self) -> Option<DoorbellMemory> {
        let mapping = self.doorbells.as_ref()?;
        Some(DoorbellMemory { base: mapping.base, len: mapping.len as u64, may_trap: false })
    }

    fn dma_limits(&self) -> DmaLimits {
        DmaLimits { windows: vec![0x10_0000..=(1 << 47) - 1], page_size: 4096 }
    }

    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        // The controller maps the memory a second time, as it would that of another process.
        let backing = match memory.backing {
            Some((fd, offset)) => Some((fd.try_clone_to_owned()?, offset)),
            None => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "only shared memory can be mapped"));
            }
        };
        self.call(Call::MapDma(DmaMapping { iova, len: memory.len, read: true, write: true, backing }))
    }

    fn unmap_dma(&self, iova: u64, len: u64) -> io::Result<()> {
        self.call(Call::UnmapDma { iova, len })
    }

    fn interrupt_vectors(&self) -> u32 {
        self.function.interrupt_vectors(InterruptKind::Msix)
    }

    fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let owned = |eventfd: &Option<BorrowedFd<'_>>| eventfd.map(|fd| fd.try_clone_to_owned()).transpose();
        let eventfds = eventfds.iter().map(owned).collect::<io::Result<_>>()?;
        self.call(Call::SetInterrupts { kind: InterruptKind::Msix, start, eventfds })?;
        pci::enable_msix(self)
    }

    fn reset(&self) -> io::Result<()> {
        self.call(Call::Reset)?;
        pci::enable(self)
    }

    fn stop_dma(&self) -> io::Result<()> {
        pci::stop_bus_mastering(self)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        // Nothing is left to be done about an error.
        let _ = self.call(Call::Disconnect);
    }
}

/// The doorbell page, mapped once more.
struct DoorbellMapping {
    base: NonNull<u32>,
    len: usize,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for DoorbellMapping {}
// SAFETY: `&DoorbellMapping` gives out a pointer and accesses nothing.
unsafe impl Sync for DoorbellMapping {}

impl DoorbellMapping {
    fn new(function: &PciFunction) -> io::Result<Option<Self>> {
        let Some(page) = function.doorbell_page() else { return Ok(None) };
        debug_assert_eq!(page.bar_offset, DOORBELLS_OFFSET);
        let len = usize::try_from(page.len).map_err(|_| io::ErrorKind::InvalidData)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                page.fd,
                page.bar_offset,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Self { base, len }))
    }
}

impl Drop for DoorbellMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is unmapped once, and its pointer was only valid as long as it was.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
