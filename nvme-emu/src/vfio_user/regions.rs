//! Regions: configuration space and BAR0. The other BARs and the ROM exist with a size of 0, as VFIO wants it.

use super::device::Device;
use super::message::{Header, MAX_DATA_XFER_SIZE, MultiWrite, RegionAccess, RegionInfo, SparseMmap, parse};
use super::send::Outbox;
use crate::pci::config_space::CONFIG_SPACE_SIZE;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use zerocopy::{Immutable, IntoBytes};

/// Six BARs, the ROM, configuration space; no VGA.
pub const COUNT: u32 = VFIO_PCI_CONFIG_REGION_INDEX + 1;

/// The region info of a region that can be mapped in part.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MappableRegionInfo {
    info: RegionInfo,
    sparse: SparseMmap,
}

/// `VFIO_USER_DEVICE_GET_REGION_INFO`.
///
/// BAR0 can be mapped where its doorbells are, if the device has them in memory. The reply that says so is longer
/// than the structure that clients ask with at first. They get it without a word of the mapping, but with the
/// size that it would take, and ask again.
pub fn info(
    device: &impl Device,
    command: &Header,
    payload: &[u8],
    outbox: &mut Outbox,
) -> Result<(), Errno> {
    let (asked, _) = parse::<RegionInfo>(payload)?;
    let argsz = size_of::<RegionInfo>() as u32;
    if asked.argsz < argsz || asked.index >= COUNT {
        return Err(Errno::INVAL);
    }
    let size = size(device, asked.index);
    let flags = if size == 0 { 0 } else { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE };
    let info = RegionInfo { argsz, flags, index: asked.index, cap_offset: 0, size, offset: 0 };
    let page = device.doorbell_page().filter(|_| asked.index == VFIO_PCI_BAR0_REGION_INDEX);
    let Some(page) = page else {
        outbox.reply(command, &info);
        return Ok(());
    };
    let full = size_of::<MappableRegionInfo>() as u32;
    if asked.argsz < full {
        outbox.reply(command, &RegionInfo { argsz: full, ..info });
        return Ok(());
    }
    let fd = page.fd.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let flags = flags | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
    let mappable = MappableRegionInfo {
        info: RegionInfo { argsz: full, flags, cap_offset: argsz, ..info },
        sparse: SparseMmap {
            id: VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16,
            version: 1,
            next: 0,
            nr_areas: 1,
            reserved: 0,
            offset: page.bar_offset,
            size: page.len,
        },
    };
    outbox.reply_and_send(command, &mappable, fd);
    Ok(())
}

/// `VFIO_USER_REGION_READ`.
pub fn read(
    device: &impl Device,
    command: &Header,
    payload: &[u8],
    outbox: &mut Outbox,
) -> Result<(), Errno> {
    let (access, _) = parse::<RegionAccess>(payload)?;
    check(device, &access)?;
    let len = size_of::<RegionAccess>() + access.count as usize;
    outbox.reply_with(command, len, |reply| {
        let (head, data) = reply.split_at_mut(size_of::<RegionAccess>());
        head.copy_from_slice(access.as_bytes());
        match access.region {
            VFIO_PCI_BAR0_REGION_INDEX => device.read_bar0(access.offset, data),
            _ => device.read_config(access.offset, data),
        }
    });
    Ok(())
}

/// `VFIO_USER_REGION_WRITE`: the one message that the data path sees (doorbells, while they are not in memory).
#[inline]
pub fn write(device: &impl Device, payload: &[u8]) -> Result<RegionAccess, Errno> {
    let (access, data) = parse::<RegionAccess>(payload)?;
    if data.len() != access.count as usize {
        return Err(Errno::INVAL);
    }
    write_one(device, &access, data)?;
    Ok(access)
}

/// `VFIO_USER_REGION_WRITE_MULTI`: how many writes were done, which is all of them or an error.
pub fn write_multi(device: &impl Device, payload: &[u8]) -> Result<u64, Errno> {
    let (count, mut rest) = parse::<u64>(payload)?;
    if usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<MultiWrite>()))
        != Some(rest.len())
    {
        return Err(Errno::INVAL);
    }
    while !rest.is_empty() {
        let (write, next) = parse::<MultiWrite>(rest)?;
        let data = write.data.get(..write.access.count as usize).ok_or(Errno::INVAL)?;
        write_one(device, &write.access, data)?;
        rest = next;
    }
    Ok(count)
}

#[inline]
fn write_one(device: &impl Device, access: &RegionAccess, data: &[u8]) -> Result<(), Errno> {
    check(device, access)?;
    match access.region {
        VFIO_PCI_BAR0_REGION_INDEX => device.write_bar0(access.offset, data),
        _ => device.write_config(access.offset, data),
    }
    Ok(())
}

/// A region that exists, and inside it.
#[inline]
fn check(device: &impl Device, access: &RegionAccess) -> Result<(), Errno> {
    let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::INVAL)?;
    if access.count as usize > MAX_DATA_XFER_SIZE || end > size(device, access.region) || access.count == 0 {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Of a region, in bytes; 0 if there is none.
#[inline]
fn size(device: &impl Device, index: u32) -> u64 {
    match index {
        VFIO_PCI_BAR0_REGION_INDEX => device.bar0_len(),
        VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SPACE_SIZE as u64,
        _ => 0,
    }
}
