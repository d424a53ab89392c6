//! The way of device files: /dev/vfio/devices/vfioN, with an address space of iommufd's
//! (the kernel's `Documentation/driver-api/vfio.rst`, "VFIO device cdev").

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use iommufd_bindings::{
    iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd};

use super::super::{DmaLimits, DmaMemory, IovaSpace};
use super::group::open_file;
use super::ioctl::{
    self, IOMMU_IOAS_ALLOC, IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP,
    VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD,
};
use super::iova::{self, IovaRange};
use super::mappings::{Limited, Mappings};
use super::open_error::OpenError;
use super::shared_space::{SharedSpace, SharedSpaces};
use super::sysfs::{IommuGroup, PciAddress, PciDevice};

/// The file that makes IOMMU contexts.
const IOMMU: &str = "/dev/iommu";

/// An I/O address space of iommufd's.
pub(super) struct Ioas {
    iommufd: OwnedFd,
    id: u32,
    /// Known when the first device has it.
    iovas: OnceLock<IovaSpace>,
    mappings: Mappings,
}

static SPACES: SharedSpaces<Ioas> = SharedSpaces::new();

/// The device's file, if the kernel makes one and has iommufd.
pub(super) fn path(device: &PciDevice) -> Option<String> {
    let path = format!("/dev/vfio/devices/{}", device.vfio_cdev()?);
    let there = |path: &str| std::path::Path::new(path).exists();
    (there(IOMMU) && there(&path)).then_some(path)
}

/// Whether the device's file and iommufd can be opened; the device is not taken by it.
pub(super) fn is_permitted(path: &str) -> bool {
    let may = |path: &str| {
        rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok()
    };
    may(IOMMU) && may(path)
}

/// Opens the device through its file: its address space, and its descriptor.
pub(super) fn open(
    device: &PciDevice,
    group: &IommuGroup,
    path: &str,
) -> Result<(Arc<SharedSpace<Ioas>>, OwnedFd), OpenError> {
    let address = device.address();
    let take = |ioas: &Ioas| {
        let device = open_file(address, path)?;
        bind(address, &device, &ioas.iommufd)?;
        attach(address, &device, ioas.id)?;
        // Only now is it known what the device's IOMMU reaches.
        let limits = ioas.limits().map_err(OpenError::io(address, "asking about its IOMMU"))?;
        ioas.iovas.get_or_init(|| IovaSpace::new(&limits));
        Ok(device)
    };
    SPACES.join(group.number(), || make(address), take)
}

fn make(address: PciAddress) -> Result<Ioas, OpenError> {
    let iommufd = open_file(address, IOMMU)?;
    let size = size_of::<iommu_ioas_alloc>() as u32;
    let mut ioas = iommu_ioas_alloc { size, flags: 0, out_ioas_id: 0 };
    // SAFETY: the structure is this request's, and has its size in it.
    unsafe { ioctl::with_struct(&iommufd, IOMMU_IOAS_ALLOC, &mut ioas) }
        .map_err(OpenError::io(address, "making an I/O address space"))?;
    Ok(Ioas {
        iommufd,
        id: ioas.out_ioas_id,
        iovas: OnceLock::new(),
        mappings: Mappings::new(None, Limited::User),
    })
}

/// Gives the device to an IOMMU context, which makes this process its owner.
fn bind(address: PciAddress, device: &OwnedFd, iommufd: &OwnedFd) -> Result<(), OpenError> {
    let mut bind = vfio_device_bind_iommufd {
        // Up to `out_devid`, which is what the first kernels have.
        argsz: std::mem::offset_of!(vfio_device_bind_iommufd, token_uuid_ptr) as u32,
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the structure is this request's, and has its size in it.
    match unsafe { ioctl::with_struct(device, VFIO_DEVICE_BIND_IOMMUFD, &mut bind) } {
        Ok(_) => Ok(()),
        // EINVAL is what a device answers that is bound already; EBUSY, one whose group is open.
        Err(Errno::INVAL | Errno::BUSY) => Err(OpenError::InUse { address, other: "" }),
        Err(errno) => Err(OpenError::io(address, "giving it to an IOMMU context")(errno)),
    }
}

fn attach(address: PciAddress, device: &OwnedFd, ioas: u32) -> Result<(), OpenError> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: std::mem::offset_of!(vfio_device_attach_iommufd_pt, pasid) as u32,
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the structure is this request's, and has its size in it.
    match unsafe { ioctl::with_struct(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach) } {
        Ok(_) => Ok(()),
        Err(Errno::PERM) => Err(OpenError::Missing { address, what: super::UNSAFE_INTERRUPTS.into() }),
        // Devices of a group have one address space, and another of them has one already.
        Err(Errno::BUSY) => {
            Err(OpenError::InUse { address, other: " (or another device of its IOMMU group is)" })
        }
        Err(errno) => Err(OpenError::io(address, "giving it an IOMMU address space")(errno)),
    }
}

/// What addresses an address space has.
fn limits(iommufd: &OwnedFd, id: u32) -> io::Result<DmaLimits> {
    let mut ranges = vec![IovaRange { first: 0, last: 0 }; 16];
    // There may be more from one question to the next.
    for _ in 0..4 {
        let mut ask = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: id,
            num_iovas: ranges.len() as u32,
            __reserved: 0,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the structure is this request's, and `ranges` has as many as it says.
        let answer = unsafe { ioctl::with_struct(iommufd, IOMMU_IOAS_IOVA_RANGES, &mut ask) };
        let count = ask.num_iovas as usize;
        match answer {
            Ok(_) => {
                let windows = iova::windows(ranges.get(..count).unwrap_or(&ranges));
                return Ok(DmaLimits { windows, page_size: ask.out_iova_alignment.max(1) });
            }
            Err(Errno::MSGSIZE) if count <= 1 << 16 => ranges.resize(count, IovaRange { first: 0, last: 0 }),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::MSGSIZE.into())
}

impl Ioas {
    pub(super) fn limits(&self) -> io::Result<DmaLimits> {
        limits(&self.iommufd, self.id)
    }

    pub(super) fn iovas(&self) -> Option<IovaSpace> {
        self.iovas.get().cloned()
    }

    /// As [`super::super::Transport::map_dma`].
    pub(super) unsafe fn map(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        let mut map = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: FIXED_IOVA | READABLE | WRITEABLE,
            ioas_id: self.id,
            __reserved: 0,
            user_va: memory.base.as_ptr().expose_provenance() as u64,
            length: memory.len,
            iova,
        };
        self.mappings.map(memory.len, || {
            // SAFETY: the structure is this request's; the memory is handed over by this function's condition.
            unsafe { ioctl::with_struct(&self.iommufd, IOMMU_IOAS_MAP, &mut map) }.map(drop)
        })
    }

    /// As [`super::super::Transport::unmap_dma`].
    pub(super) fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let size = size_of::<iommu_ioas_unmap>() as u32;
        let mut unmap = iommu_ioas_unmap { size, ioas_id: self.id, iova, length: len };
        self.mappings.unmap(len, || {
            // SAFETY: the structure is this request's.
            unsafe { ioctl::with_struct(&self.iommufd, IOMMU_IOAS_UNMAP, &mut unmap) }.map(drop)
        })
    }
}
