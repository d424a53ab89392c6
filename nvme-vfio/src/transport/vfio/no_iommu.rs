//! Without an IOMMU: the device does DMA to physical addresses, and nothing keeps it from any.
//!
//! Addresses come from /proc/self/pagemap. Only huge pages that are reserved for that (hugetlb) do: they stay where they are,
//! which nobody promises of others, and each lies in one place.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use vfio_bindings::bindings::vfio::VFIO_NOIOMMU_IOMMU;

use super::super::{DmaLimits, DmaMemory};
use super::group;
use super::ioctl::{self, VFIO_GROUP_SET_CONTAINER};
use super::open_error::OpenError;
use super::sysfs::{IommuGroup, PciDevice};
use crate::iova::HUGE_PAGE;

/// Kind of file system of a hugetlb file (`linux/magic.h`).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// A page that pagemap has an entry for.
const PAGE: u64 = 4096;
/// A pagemap entry's page is in memory, and where (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// The memory of this machine, as the device sees it.
pub(super) struct PhysicalMemory {
    _container: OwnedFd,
    /// In the container as long as it is open.
    _group: OwnedFd,
    pagemap: File,
}

/// Opens the device through the group that VFIO has made up for it.
pub(super) fn open(device: &PciDevice, group: &IommuGroup) -> Result<(PhysicalMemory, OwnedFd), OpenError> {
    let address = device.address();
    tracing::warn!(
        "{address}: used without an IOMMU: nothing keeps this device from reading and writing all memory of this \
         machine, nor an error in this program from making it do so"
    );
    let container = group::open_container(address)?;
    let group_fd = group::open_group(address, group, &format!("/dev/vfio/noiommu-{}", group.number()))?;
    let mut container_fd = container.as_raw_fd();
    // SAFETY: the request takes a pointer to a descriptor's number.
    unsafe { ioctl::with_struct(&group_fd, VFIO_GROUP_SET_CONTAINER, &mut container_fd) }
        .map_err(OpenError::io(address, "putting its IOMMU group into a container"))?;
    group::set_iommu(address, &container, VFIO_NOIOMMU_IOMMU)?;
    let device_fd = group::device_descriptor(address, &group_fd)?;
    let pagemap =
        File::open("/proc/self/pagemap").map_err(OpenError::io(address, "opening /proc/self/pagemap"))?;
    Ok((PhysicalMemory { _container: container, _group: group_fd, pagemap }, device_fd))
}

impl PhysicalMemory {
    #[expect(clippy::unused_self, reason = "as the other address spaces have it")]
    pub(super) fn limits(&self) -> DmaLimits {
        DmaLimits { windows: Vec::new(), page_size: HUGE_PAGE }
    }

    /// Where the memory is, if it is in one place and stays there.
    pub(super) fn address(&self, memory: &DmaMemory<'_>) -> io::Result<u64> {
        let unsuitable = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what);
        let kind = memory.backing.map(|(fd, _)| rustix::fs::fstatfs(fd)).transpose()?;
        if kind.is_none_or(|kind| kind.f_type != HUGETLBFS_MAGIC) {
            return Err(unsuitable("without an IOMMU, only memory of huge pages can be reached"));
        }
        let pages = memory.len / PAGE;
        let len = pages.checked_mul(8).and_then(|len| usize::try_from(len).ok());
        let mut entries = vec![0; len.ok_or(io::ErrorKind::InvalidInput)?];
        let first = memory.base.addr().get() as u64 / PAGE;
        self.pagemap.read_exact_at(&mut entries, first * 8)?;
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry));
        contiguous(entries).map_err(unsuitable)
    }
}

/// The physical address at which pages with these entries begin, if they lie one after the other.
fn contiguous(mut entries: impl Iterator<Item = u64>) -> Result<u64, &'static str> {
    let frame = |entry: u64| match entry & FRAME {
        _ if entry & PRESENT == 0 => Err("the memory is not there"),
        0 => Err("the kernel does not say where memory is: without an IOMMU, CAP_SYS_ADMIN is needed"),
        frame => Ok(frame),
    };
    let first = frame(entries.next().ok_or("there is no memory")?)?;
    for (expected, entry) in (first + 1..).zip(entries) {
        if frame(entry)? != expected {
            return Err("without an IOMMU, memory has to lie in one place, which this does not");
        }
    }
    Ok(first * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(frames: &[u64]) -> impl Iterator<Item = u64> {
        frames.iter().map(|frame| PRESENT | frame)
    }

    #[test]
    fn pages_one_after_the_other_have_one_address() {
        assert_eq!(contiguous(present(&[0x12345, 0x12346, 0x12347])), Ok(0x1234_5000));
        // Other bits of an entry say other things.
        assert_eq!(contiguous([PRESENT | 1 << 55 | 1 << 61 | 7].into_iter()), Ok(0x7000));
    }

    #[test]
    fn pages_here_and_there_have_none() {
        assert!(contiguous(present(&[5, 7])).unwrap_err().contains("in one place"));
        assert!(contiguous(present(&[5, 4])).is_err());
        assert!(contiguous([PRESENT | 5, 6].into_iter()).unwrap_err().contains("not there"));
        assert!(contiguous(present(&[0])).unwrap_err().contains("CAP_SYS_ADMIN"));
        assert!(contiguous(std::iter::empty()).is_err());
    }
}
