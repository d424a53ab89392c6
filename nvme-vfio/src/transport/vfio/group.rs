//! The way of IOMMU groups: a container with the type1v2 IOMMU, the group in it, the device out of it
//! (the kernel's `Documentation/driver-api/vfio.rst`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_NOIOMMU_IOMMU, VFIO_TYPE1v2_IOMMU, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};

use super::super::{DmaLimits, DmaMemory, IovaSpace};
use super::ioctl::{
    self, VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA, VFIO_SET_IOMMU,
};
use super::iova;
use super::mappings::{Limited, Mappings};
use super::open_error::OpenError;
use super::shared_space::{SharedSpace, SharedSpaces};
use super::sysfs::{IommuGroup, PciAddress, PciDevice};

/// The file that makes containers.
pub(super) const CONTAINER: &str = "/dev/vfio/vfio";

/// A container with one group in it.
pub(super) struct Container {
    container: OwnedFd,
    /// In the container as long as it is open.
    group: OwnedFd,
    limits: DmaLimits,
    iovas: IovaSpace,
    mappings: Mappings,
}

static CONTAINERS: SharedSpaces<Container> = SharedSpaces::new();

/// Opens the device through its group: its address space, and its descriptor.
pub(super) fn open(
    device: &PciDevice,
    group: &IommuGroup,
) -> Result<(Arc<SharedSpace<Container>>, OwnedFd), OpenError> {
    let address = device.address();
    let take = |container: &Container| device_descriptor(address, &container.group);
    CONTAINERS.join(group.number(), || open_with_group(address, group), take)
}

fn open_with_group(address: PciAddress, group: &IommuGroup) -> Result<Container, OpenError> {
    let container = open_container(address)?;
    let group_fd = open_group(address, group, &format!("/dev/vfio/{}", group.number()))?;

    let mut container_fd = container.as_raw_fd();
    // SAFETY: the request takes a pointer to a descriptor's number.
    unsafe { ioctl::with_struct(&group_fd, VFIO_GROUP_SET_CONTAINER, &mut container_fd) }
        .map_err(OpenError::io(address, "putting its IOMMU group into a container"))?;
    set_iommu(address, &container, VFIO_TYPE1v2_IOMMU)?;

    let info = vfio_iommu_type1_info { argsz: 0, flags: 0, iova_pgsizes: 0, cap_offset: 0, pad: 0 };
    // SAFETY: the structure is this request's.
    let info = unsafe { ioctl::query(&container, VFIO_IOMMU_GET_INFO, info) };
    let (limits, left) = info
        .map_err(io::Error::from)
        .and_then(|(info, answer)| iova::type1(&info, &answer))
        .map_err(OpenError::io(address, "asking about its IOMMU"))?;

    let (iovas, mappings) = (IovaSpace::new(&limits), Mappings::new(left, Limited::Process));
    Ok(Container { container, group: group_fd, limits, iovas, mappings })
}

/// Opens a file of VFIO's.
pub(super) fn open_file(address: PciAddress, path: &str) -> Result<OwnedFd, OpenError> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::ACCESS => OpenError::Permission { address, path: path.into() },
        errno => OpenError::io(address, &format!("opening {path}"))(errno),
    })
}

/// Opens a container, of a kernel that speaks our VFIO.
pub(super) fn open_container(address: PciAddress) -> Result<OwnedFd, OpenError> {
    let missing = |what: &str| OpenError::Missing { address, what: what.into() };
    let container = open_file(address, CONTAINER).map_err(|error| match error {
        OpenError::Io { source, .. } if matches!(source.raw_os_error(), Some(ENOENT | ENODEV)) => {
            missing("the kernel's VFIO is not there: as root, `modprobe vfio-pci`")
        }
        error => error,
    })?;
    // SAFETY: the request has no argument.
    let version = unsafe { ioctl::with_value(&container, VFIO_GET_API_VERSION, 0) }
        .map_err(OpenError::io(address, "asking for the version of VFIO"))?;
    if version != VFIO_API_VERSION as i32 {
        return Err(missing(&format!("the kernel has version {version} of VFIO, not {VFIO_API_VERSION}")));
    }
    Ok(container)
}

const ENOENT: i32 = Errno::NOENT.raw_os_error();
const ENODEV: i32 = Errno::NODEV.raw_os_error();

/// Opens a group, all of whose devices can be had.
pub(super) fn open_group(address: PciAddress, group: &IommuGroup, path: &str) -> Result<OwnedFd, OpenError> {
    let fd = open_file(address, path).map_err(|error| match error {
        OpenError::Io { source, .. } if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            // Whoever has one device of a group has the group.
            let others = group.devices().len() > 1;
            let other = if others { " (or another device of its IOMMU group is)" } else { "" };
            OpenError::InUse { address, other }
        }
        error => error,
    })?;
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: the structure is this request's, and has its size in it.
    unsafe { ioctl::with_struct(&fd, VFIO_GROUP_GET_STATUS, &mut status) }
        .map_err(OpenError::io(address, "asking about its IOMMU group"))?;
    if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
        return Err(OpenError::SharedGroup {
            address,
            group: group.number(),
            others: in_the_way(address, group),
        });
    }
    Ok(fd)
}

/// The devices of the group for which VFIO gives none of it to programs: `0000:00:1f.0 (e1000e), …`.
fn in_the_way(address: PciAddress, group: &IommuGroup) -> String {
    let others = group.devices().into_iter().filter(|other| *other != address).filter_map(PciDevice::find);
    let others: Vec<_> = others
        .filter(PciDevice::is_in_the_way)
        .filter_map(|other| Some(format!("{} ({})", other.address(), other.driver()?)))
        .collect();
    if others.is_empty() { "other devices".into() } else { others.join(", ") }
}

/// Gives the container its kind of IOMMU.
pub(super) fn set_iommu(address: PciAddress, container: &OwnedFd, kind: u32) -> Result<(), OpenError> {
    // SAFETY: the request takes a number.
    let known = unsafe { ioctl::with_value(container, VFIO_CHECK_EXTENSION, kind as usize) };
    if known.unwrap_or(0) == 0 {
        let what = match kind {
            VFIO_NOIOMMU_IOMMU => "the kernel's VFIO does not do without an IOMMU",
            _ => "the kernel's VFIO has no type1 IOMMU: as root, `modprobe vfio_iommu_type1`",
        };
        let what = what.into();
        return Err(OpenError::Missing { address, what });
    }
    // SAFETY: the request takes a number.
    match unsafe { ioctl::with_value(container, VFIO_SET_IOMMU, kind as usize) } {
        Ok(_) => Ok(()),
        Err(Errno::PERM) => Err(OpenError::Missing { address, what: super::UNSAFE_INTERRUPTS.into() }),
        Err(errno) => Err(OpenError::io(address, "giving it an IOMMU address space")(errno)),
    }
}

/// Takes the device out of its group.
pub(super) fn device_descriptor(address: PciAddress, group: &OwnedFd) -> Result<OwnedFd, OpenError> {
    let failed = || OpenError::io(address, "taking it out of its IOMMU group");
    let name = CString::new(address.to_string()).map_err(|_| failed()(Errno::INVAL))?;
    // SAFETY: the request takes a string and makes a descriptor, which is used here only.
    let made = unsafe {
        ioctl::with_value(group, VFIO_GROUP_GET_DEVICE_FD, name.as_ptr().expose_provenance())
            .and_then(|number| ioctl::new_descriptor(number))
    };
    made.map_err(failed())
}

impl Container {
    pub(super) fn limits(&self) -> DmaLimits {
        self.limits.clone()
    }

    pub(super) fn iovas(&self) -> IovaSpace {
        self.iovas.clone()
    }

    /// As [`super::super::Transport::map_dma`].
    pub(super) unsafe fn map(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.base.as_ptr().expose_provenance() as u64,
            iova,
            size: memory.len,
        };
        self.mappings.map(memory.len, || {
            // SAFETY: the structure is this request's; the memory is handed over by this function's condition.
            unsafe { ioctl::with_struct(&self.container, VFIO_IOMMU_MAP_DMA, &mut map) }.map(drop)
        })
    }

    /// As [`super::super::Transport::unmap_dma`].
    pub(super) fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let argsz = size_of::<vfio_iommu_type1_dma_unmap>() as u32;
        let mut unmap = vfio_iommu_type1_dma_unmap { argsz, iova, size: len, ..Default::default() };
        self.mappings.unmap(len, || {
            // SAFETY: the structure is this request's.
            unsafe { ioctl::with_struct(&self.container, VFIO_IOMMU_UNMAP_DMA, &mut unmap)? };
            // The kernel says how much it has unmapped, which may be nothing.
            if unmap.size == len { Ok(()) } else { Err(Errno::NOENT) }
        })
    }
}
