//! A region of the device: its size, and what of it can be mapped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP};
use zerocopy::IntoBytes;

use super::super::capability::{self, SparseArea};
use super::connection::{Connection, Reply};
use super::messages::{Command, RegionInfo};

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
                capability::sparse_areas(&payload, info.cap_offset)?
            } else {
                None
            };
            let sparse = sparse.unwrap_or_else(|| vec![SparseArea { offset: 0, size: info.size }]);
            areas = with_files(sparse, fds)?;
        }
        Ok(Self { size: info.size, offset: info.offset, areas })
    }

    /// Maps what can be mapped of the region from `from` on. `None` if that word cannot be mapped.
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
        // They are written as words.
        let skip = from - area.offset;
        if !skip.is_multiple_of(4) {
            let what = format!("area {:#x}+{len:#x} does not begin at a word of its region", area.offset);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file.as_fd(), at)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Mapping { base, len, skip: skip as usize }))
    }
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

    #[test]
    fn an_area_that_does_not_begin_at_a_word_is_refused() {
        let file = rustix::fs::memfd_create(c"area", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 0x3000).unwrap();
        let region = |offset, at| Region {
            size: 0x3000,
            offset,
            areas: vec![(SparseArea { offset: at, size: 0x1000 }, file.try_clone().unwrap())],
        };
        assert!(region(0, 0x1000).map(0x1000).unwrap().is_some());
        let error = region(0xfff, 1).map(0x1000).err().unwrap().to_string();
        assert!(error.contains("does not begin at a word"), "{error}");
    }

    #[test]
    fn one_descriptor_serves_all_areas_and_several_go_in_order() {
        let areas = vec![SparseArea { offset: 0, size: 1 }, SparseArea { offset: 2, size: 1 }];
        let fd = || rustix::fs::memfd_create(c"area", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(with_files(areas.clone(), vec![fd()]).unwrap().len(), 2);
        assert_eq!(with_files(areas.clone(), vec![fd(), fd()]).unwrap().len(), 2);
        assert!(with_files(areas, vec![fd(), fd(), fd()]).is_err());
    }
}
