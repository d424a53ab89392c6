//! How the driver reaches a controller: registers, DMA, interrupts.
//!
//! The driver is written once, against [`Transport`]. Implementations: [`vfio`] (a controller of this machine, through
//! the kernel), [`vfio_user`] (a client of any vfio-user NVMe server), and `loopback` (a controller in the same
//! process; crate `nvme-loopback`).

mod capability;
pub mod pci;
pub mod vfio;
pub mod vfio_user;

pub use crate::iova::IovaSpace;
pub use vfio::Vfio;
pub use vfio_user::VfioUser;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// Where the doorbells begin in BAR0 (PCIe Transport specification, "Controller Properties").
pub const DOORBELLS_OFFSET: u64 = 0x1000;

/// Access to one NVMe controller's PCI function, already open: memory space and bus mastering are enabled before
/// the first register is read.
///
/// Dropping it undoes everything: interrupts are disconnected, memory is unmapped, the function is given back. The
/// driver has shut the controller down by then.
pub trait Transport: Send + Sync {
    /// What to call the controller in messages to a person: `vfio-user:/run/disk.sock`, `0000:01:00.0`.
    fn name(&self) -> &str;

    /// Reads a 32-bit register at this offset of BAR0. A controller that is gone reads as all ones, or is an error.
    ///
    /// # Errors
    ///
    /// The other side cannot be reached, or refused.
    fn read32(&self, offset: u64) -> io::Result<u32>;

    /// Reads a 64-bit register.
    ///
    /// # Errors
    ///
    /// As [`Transport::read32`].
    fn read64(&self, offset: u64) -> io::Result<u64>;

    /// Writes a 32-bit register; when this returns, the write is on its way and cannot be overtaken by later ones.
    ///
    /// # Errors
    ///
    /// As [`Transport::read32`].
    fn write32(&self, offset: u64, value: u32) -> io::Result<()>;

    /// Writes a 64-bit register.
    ///
    /// # Errors
    ///
    /// As [`Transport::read32`].
    fn write64(&self, offset: u64, value: u64) -> io::Result<()>;

    /// Writes a doorbell that is not in [`Transport::doorbells`]. Any thread may be in here at the same time as
    /// others use the registers; nobody waits for an answer.
    ///
    /// # Errors
    ///
    /// As [`Transport::read32`]; an error may also only come out in a later call.
    fn ring(&self, offset: u64, value: u32) -> io::Result<()> {
        self.write32(offset, value)
    }

    /// The doorbells as memory, if the controller or its server has them so; if not, each write is trapped and goes
    /// through [`Transport::ring`].
    fn doorbells(&self) -> Option<DoorbellMemory>;

    /// What I/O virtual addresses there are.
    fn dma_limits(&self) -> DmaLimits;

    /// Where the device has its address space together with others: what has been handed out of it. `None`: it has one of
    /// its own, with all of [`Transport::dma_limits`].
    fn shared_iovas(&self) -> Option<IovaSpace> {
        None
    }

    /// Lets the controller read and write memory at I/O virtual addresses from `iova`. Address, length and `iova`
    /// are multiples of [`DmaLimits::page_size`], and the range is inside one of its windows.
    ///
    /// # Errors
    ///
    /// What the IOMMU or the server said; nothing is mapped then.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped into this process until [`Transport::unmap_dma`] for it has returned `Ok`, or the
    /// transport has been dropped; and nobody may hold Rust references to it, for the controller writes it at any
    /// time.
    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()>;

    /// Without an IOMMU: the one address at which [`Transport::map_dma`] takes this memory, which is where it really is.
    /// `None`: there is an IOMMU, or what does its work, and the caller chooses.
    fn physical_address(&self, memory: &DmaMemory<'_>) -> Option<io::Result<u64>> {
        let _ = memory;
        None
    }

    /// Takes back exactly what one [`Transport::map_dma`] gave. When this returns `Ok`, the controller can no longer
    /// reach the memory.
    ///
    /// # Errors
    ///
    /// What the IOMMU or the server said; the memory has then to be regarded as still reachable.
    fn unmap_dma(&self, iova: u64, len: u64) -> io::Result<()>;

    /// How many MSI-X vectors there are (or MSI vectors where there is no MSI-X). 0: the controller can only be polled.
    fn interrupt_vectors(&self) -> u32;

    /// Connects vectors, from `start` on, to eventfds; `None` disconnects one.
    ///
    /// # Errors
    ///
    /// There are no such vectors, or the other side refused.
    fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()>;

    /// Resets the function (function-level reset or what comes closest). DMA mappings and interrupts stay.
    ///
    /// # Errors
    ///
    /// `Unsupported` where there is no such reset; or what the other side said.
    fn reset(&self) -> io::Result<()>;

    /// Keeps the function from reading and writing memory, whatever it is doing, by switching its bus mastering off: for
    /// a controller that does not let itself be disabled, and is not to be used again.
    ///
    /// # Errors
    ///
    /// `Unsupported` where that cannot be done; or what the other side said.
    fn stop_dma(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Why the way to the function is gone for good, if it is: whatever is asked of this transport fails from now on, and no
    /// reset helps. A server of another process has ended, for example.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Whether whoever lent the function wants it back: its driver is being unbound from it, or it is to be unplugged.
    /// Asked now and then, at no great cost.
    fn is_wanted_back(&self) -> bool {
        false
    }

    /// Gives the function back although this transport goes on existing: from now on it behaves as if the function had been
    /// pulled out. Registers read as all ones, writes go nowhere (through [`Transport::doorbells`] as well), no memory is
    /// mapped, and mapping is an error. The driver has shut the controller down by then.
    fn give_back(&self) {}
}

/// Doorbells that can be written without anybody's help.
#[derive(Clone, Copy, Debug)]
pub struct DoorbellMemory {
    /// The doorbell at BAR0 offset [`DOORBELLS_OFFSET`]. Valid as long as the transport is.
    pub base: NonNull<u32>,
    /// Length in bytes. Doorbells past it are trapped.
    pub len: u64,
    /// For all that this side can tell, somebody may catch each write and act on it, as a hypervisor does that emulates
    /// the controller: if the controller offers shadow doorbells, they are worth their fence.
    pub may_trap: bool,
}

/// Memory that the controller shall reach.
#[derive(Clone, Copy, Debug)]
pub struct DmaMemory<'a> {
    /// Its first byte in this process.
    pub base: NonNull<u8>,
    /// Its length in bytes.
    pub len: u64,
    /// The shared memory behind it and where in that it begins. A controller in another process needs it; the
    /// kernel's VFIO and the loopback do not.
    pub backing: Option<(BorrowedFd<'a>, u64)>,
}

/// What a transport's I/O virtual addresses are like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmaLimits {
    /// Usable ranges of addresses, in order, apart from each other: an IOMMU's width less what it has reserved. None
    /// where there is no IOMMU: see [`Transport::physical_address`].
    pub windows: Vec<RangeInclusive<u64>>,
    /// Mappings begin and end at multiples of this.
    pub page_size: u64,
}
