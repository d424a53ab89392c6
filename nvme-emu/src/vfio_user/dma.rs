//! Memory that comes and goes: each message becomes a [`Call`].

use super::message::{DmaMap, DmaUnmap, parse};
use super::receive::Descriptors;
use crate::pci::{Call, DmaMapping};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_DMA_UNMAP_FLAG_ALL;

/// `VFIO_USER_DMA_MAP`. Without a descriptor the client keeps the memory to itself, which is all right.
pub fn map(payload: &[u8], descriptors: Descriptors) -> Result<Call, Errno> {
    let (map, _) = parse::<DmaMap>(payload)?;
    if map.flags & !(DmaMap::READ | DmaMap::WRITE | DmaMap::MMAP) != 0 {
        return Err(Errno::NOTSUP);
    }
    let mut fds = descriptors.fds.into_iter();
    let backing = fds.next().map(|fd| (fd, map.offset));
    if fds.next().is_some() {
        return Err(Errno::INVAL);
    }
    Ok(Call::MapDma(DmaMapping {
        iova: map.address,
        len: map.size,
        read: map.flags & DmaMap::READ != 0,
        write: map.flags & DmaMap::WRITE != 0,
        backing,
    }))
}

/// `VFIO_USER_DMA_UNMAP`. The reply repeats the request. SPDK sends the descriptor along once more; it is closed.
pub fn unmap(payload: &[u8]) -> Result<(Call, DmaUnmap), Errno> {
    let (unmap, _) = parse::<DmaUnmap>(payload)?;
    match unmap.flags {
        0 => Ok((Call::UnmapDma { iova: unmap.address, len: unmap.size }, unmap)),
        VFIO_DMA_UNMAP_FLAG_ALL => Ok((Call::UnmapAllDma, unmap)),
        _ => Err(Errno::NOTSUP),
    }
}
