//! BAR0: the controller's registers, as memory.

use std::io;
use std::ptr::NonNull;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::VFIO_PCI_BAR0_REGION_INDEX;

use super::super::capability::SparseArea;
use super::super::{DOORBELLS_OFFSET, DoorbellMemory};
use super::device::Device;
use super::loan::Loan;

/// BAR0. What of it the kernel does not map (it may keep the page of the MSI-X table to itself) is reached by read
/// and write.
pub(super) struct Bar {
    size: u64,
    /// Where it begins in the device's file.
    offset: u64,
    areas: Vec<MappedArea>,
}

impl Bar {
    pub(super) fn map(device: &Device) -> io::Result<Self> {
        let region = device.region(VFIO_PCI_BAR0_REGION_INDEX)?;
        if region.size <= DOORBELLS_OFFSET {
            let what =
                format!("BAR0 has {:#x} bytes: no room for an NVMe controller's registers", region.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let map = |area: &SparseArea| MappedArea::new(device, region.offset, *area);
        let areas = region.areas.iter().filter(|area| area.size > 0).map(map).collect::<io::Result<_>>()?;
        Ok(Self { size: region.size, offset: region.offset, areas })
    }

    /// The doorbells, if they are mapped.
    pub(super) fn doorbells(&self) -> Option<DoorbellMemory> {
        let (base, len) = self.areas.iter().find_map(|area| area.from(DOORBELLS_OFFSET))?;
        Some(DoorbellMemory { base: base.cast(), len, may_trap: true })
    }

    /// Where a 32-bit register is mapped.
    fn register(&self, offset: u64) -> io::Result<Option<NonNull<u32>>> {
        if !offset.is_multiple_of(4) || offset.checked_add(4).is_none_or(|end| end > self.size) {
            let what = format!("there is no register at {offset:#x} of BAR0");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let found = self.areas.iter().find_map(|area| area.from(offset).filter(|(_, len)| *len >= 4));
        Ok(found.map(|(base, _)| base.cast()))
    }

    pub(super) fn read32(&self, loan: &Loan, offset: u64) -> io::Result<u32> {
        match self.register(offset)? {
            // SAFETY: `register` found these four bytes in a mapping, aligned, and it lives as long as this.
            Some(register) => Ok(u32::from_le(unsafe { register.read_volatile() })),
            None => {
                let mut data = [0; 4];
                loan.device(|device| device.read_at(&mut data, self.offset + offset))?;
                Ok(u32::from_le_bytes(data))
            }
        }
    }

    pub(super) fn write32(&self, loan: &Loan, offset: u64, value: u32) -> io::Result<()> {
        match self.register(offset)? {
            Some(register) => {
                // SAFETY: as in `read32`.
                unsafe { register.write_volatile(value.to_le()) };
                Ok(())
            }
            None => loan.device(|device| device.write_at(&value.to_le_bytes(), self.offset + offset)),
        }
    }

    /// Lets go of the device: what was mapped reads as all ones from now on, as if there were none, and can be written to
    /// no effect. Others may be using it meanwhile.
    pub(super) fn disconnect(&self) -> io::Result<()> {
        self.areas.iter().try_for_each(MappedArea::disconnect)
    }
}

/// A part of the BAR that is mapped.
struct MappedArea {
    area: SparseArea,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for MappedArea {}
// SAFETY: `&MappedArea` gives out pointers, through which registers are accessed whole and volatile.
unsafe impl Sync for MappedArea {}

impl MappedArea {
    fn new(device: &Device, region_offset: u64, area: SparseArea) -> io::Result<Self> {
        let out_of_range = || io::Error::new(io::ErrorKind::InvalidData, "BAR0 is too large to be mapped");
        let at = region_offset.checked_add(area.offset).ok_or_else(out_of_range)?;
        let len = usize::try_from(area.size).map_err(|_| out_of_range())?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, device.as_fd(), at)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { area, base, len })
    }

    fn disconnect(&self) -> io::Result<()> {
        let nothing = rustix::fs::memfd_create(c"ringpair-bar", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&nothing, self.len as u64)?;
        // The registers that are read are in the first page. What nobody writes to takes no memory.
        let ones = [0xff; DOORBELLS_OFFSET as usize];
        rustix::io::pwrite(&nothing, &ones[..self.len.min(ones.len())], 0)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: it replaces this mapping, in one step, by memory of the same length; pointers into it stay valid.
        unsafe { rustix::mm::mmap(self.base.as_ptr().cast(), self.len, protection, flags, &nothing, 0)? };
        Ok(())
    }

    /// Where the byte at this offset of the BAR is, and how many there are from there.
    fn from(&self, offset: u64) -> Option<(NonNull<u8>, u64)> {
        let skip = offset.checked_sub(self.area.offset).filter(|skip| *skip < self.area.size)?;
        // SAFETY: `skip` is inside the mapping, which is as long as the area.
        Some((unsafe { self.base.add(skip as usize) }, self.area.size - skip))
    }
}

impl Drop for MappedArea {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is unmapped once, and pointers into it were only valid as long as it
        // was.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
