//! A region of the device: its size, and what of it can be mapped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};
use zerocopy::{FromBytes, IntoBytes};

use super::connection::{Connection, Reply};
use super::messages::{CapabilityHeader, Command, RegionInfo, SparseArea, SparseMmap};

/// A region, as the server describes it.
pub(super) struct Region {
    pub(super) size: u64,
    /// Where the region begins in its file.
    offset: u64,
    /// What can be mapped, and the file to map it from.
    areas: Vec<(SparseArea, OwnedFd)>,
}

impl Region {
    pub(super) fn query(connection: &Connection, index: u32) -> io::Result<Self> {
        let ask = |argsz| {
            let request = RegionInfo { argsz, index, ..RegionInfo::default() };
            connection.call(Command::DeviceGetRegionInfo, &[request.as_bytes()], &[])
        };
        let structure = size_of::<RegionInfo>() as u32;
        let mut reply = ask(structure)?;
        let mut info: RegionInfo = reply.head()?;
        if info.argsz > structure {
            // There are capabilities: ask again, with the room that they take.
            reply = ask(info.argsz)?;
            info = reply.head()?;
        }
        let Reply { payload, fds } = reply;
        let mut areas = Vec::new();
        if info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && !fds.is_empty() {
            let sparse = if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
                sparse_areas(&payload, info.cap_offset)?
            } else {
                None
            };
            let sparse = sparse.unwrap_or_else(|| vec![SparseArea { offset: 0, size: info.size }]);
            areas = with_files(sparse, fds)?;
        }
        Ok(Self { size: info.size, offset: info.offset, areas })
    }

    /// Maps what can be mapped of the region from `from` on. `None` if that byte cannot be mapped.
    pub(super) fn map(&self, from: u64) -> io::Result<Option<Mapping>> {
        let holds = |area: &SparseArea| area.offset <= from && from - area.offset < area.size;
        let Some((area, file)) = self.areas.iter().find(|(area, _)| holds(area)) else { return Ok(None) };
        let end = area.offset.checked_add(area.size).filter(|end| *end <= self.size);
        let at = self.offset.checked_add(area.offset);
        let (Some(_), Some(at), Ok(len)) = (end, at, usize::try_from(area.size)) else {
            let SparseArea { offset, size } = area;
            let what =
                format!("area {offset:#x}+{size:#x} is not inside its region of {:#x} bytes", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        // Touching a page past the end of the file would be a SIGBUS.
        let file_len = rustix::fs::fstat(file)?.st_size as u64;
        if at.checked_add(area.size).is_none_or(|end| end > file_len) {
            let what = format!("area {at:#x}+{len:#x} is not inside its file of {file_len:#x} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file.as_fd(), at)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Mapping { base, len, skip: (from - area.offset) as usize }))
    }
}

/// The areas of the sparse mmap capability, if there is one in the list that begins at `next` of the reply.
fn sparse_areas(payload: &[u8], mut next: u32) -> io::Result<Option<Vec<SparseArea>>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a region's capabilities are malformed");
    let mut before = 0;
    while next != 0 {
        // A list that only goes forward ends.
        if next <= before {
            return Err(malformed());
        }
        before = next;
        let rest = payload.get(next as usize..).ok_or_else(malformed)?;
        let (header, rest) = CapabilityHeader::read_from_prefix(rest).map_err(|_| malformed())?;
        if u32::from(header.id) != VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            next = header.next;
            continue;
        }
        let (sparse, rest) = SparseMmap::read_from_prefix(rest).map_err(|_| malformed())?;
        let count = sparse.nr_areas as usize;
        let bytes = count.checked_mul(size_of::<SparseArea>()).and_then(|len| rest.get(..len));
        let bytes = bytes.ok_or_else(malformed)?;
        let areas = bytes.chunks_exact(size_of::<SparseArea>());
        return areas
            .map(|area| SparseArea::read_from_bytes(area).map_err(|_| malformed()))
            .collect::<io::Result<_>>()
            .map(Some);
    }
    Ok(None)
}

/// Servers send a descriptor for each area, in order, or one for all of them.
fn with_files(areas: Vec<SparseArea>, fds: Vec<OwnedFd>) -> io::Result<Vec<(SparseArea, OwnedFd)>> {
    match fds.len() {
        1 => areas.into_iter().map(|area| Ok((area, fds[0].try_clone()?))).collect(),
        count if count == areas.len() => Ok(areas.into_iter().zip(fds).collect()),
        count => {
            let what = format!("{} mappable areas came with {count} descriptors", areas.len());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

/// A mapped area.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Where in it the byte that was asked for is.
    skip: usize,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives out pointers and accesses nothing.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The byte that was asked for, and how many there are from there.
    pub(super) fn wanted(&self) -> (NonNull<u8>, u64) {
        // SAFETY: `skip` is inside the mapping: `Region::map` chose the area that holds the byte.
        (unsafe { self.base.add(self.skip) }, (self.len - self.skip) as u64)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Region::map`, is unmapped once, and pointers into it were only valid as
        // long as it was.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A reply with a capability of another kind, then the sparse mmap capability.
    fn reply(areas: &[SparseArea], nr_areas: u32) -> Vec<u8> {
        let mut payload = RegionInfo { cap_offset: 40, ..RegionInfo::default() }.as_bytes().to_vec();
        payload.extend([0xaa; 8]);
        payload.extend(CapabilityHeader { id: 99, version: 1, next: 56 }.as_bytes());
        payload.extend([0xaa; 8]);
        let id = VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16;
        payload.extend(CapabilityHeader { id, version: 1, next: 0 }.as_bytes());
        payload.extend(SparseMmap { nr_areas, reserved: 0 }.as_bytes());
        payload.extend(areas.as_bytes());
        payload
    }

    #[test]
    fn sparse_areas_are_found_behind_other_capabilities() {
        let areas =
            [SparseArea { offset: 0x1000, size: 0x1000 }, SparseArea { offset: 0x4000, size: 0x2000 }];
        assert_eq!(sparse_areas(&reply(&areas, 2), 40).unwrap(), Some(areas.to_vec()));
    }

    #[test]
    fn more_areas_than_there_are_bytes_are_refused() {
        assert!(sparse_areas(&reply(&[], u32::MAX), 40).is_err());
    }

    #[test]
    fn a_list_that_turns_back_is_refused() {
        let mut payload = reply(&[], 0);
        payload[44..48].copy_from_slice(&40u32.to_ne_bytes());
        assert!(sparse_areas(&payload, 40).is_err());
    }

    #[test]
    fn one_descriptor_serves_all_areas_and_several_go_in_order() {
        let areas = vec![SparseArea { offset: 0, size: 1 }, SparseArea { offset: 2, size: 1 }];
        let fd = || rustix::fs::memfd_create(c"area", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(with_files(areas.clone(), vec![fd()]).unwrap().len(), 2);
        assert_eq!(with_files(areas.clone(), vec![fd(), fd()]).unwrap().len(), 2);
        assert!(with_files(areas, vec![fd(), fd(), fd()]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200), at: u8) {
            let _ = sparse_areas(&payload, at.into());
        }
    }
}
