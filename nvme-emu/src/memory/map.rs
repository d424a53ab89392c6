//! The memory map: I/O virtual addresses in, checked ranges of host memory out.

use super::mapping::Mapping;
use block_core::Segment;
use std::ptr;
use std::sync::Arc;

/// Regions that one client may have: so many that a guest with an IOMMU of its own is unlikely to meet the limit, so
/// few that one client cannot take what others need.
pub const MAX_REGIONS: usize = 2048;

/// A set of regions, by their slots; slots are reused modulo 64, so a set may name more regions than were put in,
/// never fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionMask(u64);

impl RegionMask {
    /// No region.
    pub const NONE: Self = Self(0);

    /// Adds the regions of another set.
    #[inline]
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether a region may be in both sets.
    #[inline]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why an address cannot be used: nothing is mapped there, it may not be accessed so, or the client keeps that memory
/// to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

/// What is about to be done to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The controller reads it.
    Read,
    /// The controller writes it.
    Write,
}

/// A piece of guest memory that has been checked: it lies in one mapping and may be accessed as asked for. Valid for
/// as long as the map that it came from, or a later one without that region removed, is held.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    base: *mut u8,
    len: usize,
    region: RegionMask,
}

impl HostRange {
    /// First byte.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// As a segment of a disk request.
    #[inline]
    pub fn segment(&self) -> Segment {
        Segment { base: self.base, len: self.len }
    }

    /// The region that it lies in.
    #[inline]
    pub fn region(&self) -> RegionMask {
        self.region
    }
}

/// Memory of the client, as it was announced.
#[derive(Clone, Debug)]
pub struct Region {
    /// First I/O virtual address.
    pub iova: u64,
    /// Length in bytes; `iova + len` does not overflow.
    pub len: u64,
    /// Whether the controller may read it.
    pub read: bool,
    /// Whether the controller may write it.
    pub write: bool,
    /// Where it is mapped here; `None` if the client does not share it.
    pub mapping: Option<Arc<Mapping>>,
    slot: RegionMask,
}

/// An immutable snapshot of the client's memory. Changes make another one.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    /// In order of their addresses; they do not overlap.
    regions: Vec<Region>,
    next_slot: u8,
}

impl MemoryMap {
    /// The regions, in order of their addresses.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether `len` bytes from `iova` could be added.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty or overflows, `EEXIST` if it overlaps a region, `ENOSPC` if there are
    /// [`MAX_REGIONS`].
    pub fn check_free(&self, iova: u64, len: u64) -> Result<(), i32> {
        let end = iova.checked_add(len).filter(|_| len > 0).ok_or(libc::EINVAL)?;
        if self.regions.iter().any(|r| iova < r.iova + r.len && r.iova < end) {
            return Err(libc::EEXIST);
        }
        if self.regions.len() == MAX_REGIONS {
            return Err(libc::ENOSPC);
        }
        Ok(())
    }

    /// The map with a region more.
    ///
    /// # Errors
    ///
    /// As [`MemoryMap::check_free`].
    pub fn with_region(
        &self,
        iova: u64,
        len: u64,
        read: bool,
        write: bool,
        mapping: Option<Arc<Mapping>>,
    ) -> Result<Self, i32> {
        self.check_free(iova, len)?;
        let mut map = self.clone();
        let slot = RegionMask(1 << map.next_slot);
        map.next_slot = (map.next_slot + 1) % 64;
        let at = map.regions.partition_point(|r| r.iova < iova);
        map.regions.insert(at, Region { iova, len, read, write, mapping, slot });
        Ok(map)
    }

    /// The map without the regions inside `len` bytes from `iova`, and which those were.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range overflows or would cut a region in two, `ENOENT` if no region is in it.
    pub fn without_range(&self, iova: u64, len: u64) -> Result<(Self, Vec<Region>, RegionMask), i32> {
        let end = iova.checked_add(len).ok_or(libc::EINVAL)?;
        let touched = |r: &Region| iova < r.iova + r.len && r.iova < end;
        let inside = |r: &Region| iova <= r.iova && r.iova + r.len <= end;
        if self.regions.iter().any(|r| touched(r) && !inside(r)) {
            return Err(libc::EINVAL);
        }
        let (removed, regions): (Vec<_>, Vec<_>) = self.regions.iter().cloned().partition(touched);
        if removed.is_empty() {
            return Err(libc::ENOENT);
        }
        let mut mask = RegionMask::NONE;
        removed.iter().for_each(|r| mask.add(r.slot));
        Ok((Self { regions, next_slot: self.next_slot }, removed, mask))
    }

    /// The map with nothing in it, and what was.
    pub fn without_all(&self) -> (Self, Vec<Region>, RegionMask) {
        (Self { regions: Vec::new(), next_slot: self.next_slot }, self.regions.clone(), RegionMask(u64::MAX))
    }

    /// Checks `len` bytes from `iova`, which must lie in one region. `hint` is the index of the region to try first,
    /// and is left at the one found.
    ///
    /// # Errors
    ///
    /// [`Unreachable`].
    #[inline]
    pub fn translate(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        hint: &mut usize,
    ) -> Result<HostRange, Unreachable> {
        if let Some(region) = self.regions.get(*hint)
            && let Some(range) = region.translate(iova, len, access)
        {
            return Ok(range);
        }
        self.search(iova, len, access, hint)
    }

    /// As [`MemoryMap::translate`], for what is used without this map at hand: with the mapping that the range lies in,
    /// to be held for as long.
    ///
    /// # Errors
    ///
    /// [`Unreachable`].
    pub fn retain(
        &self,
        iova: u64,
        len: usize,
        access: Access,
    ) -> Result<(HostRange, Arc<Mapping>), Unreachable> {
        let mut index = 0;
        let range = self.translate(iova, len, access, &mut index)?;
        let mapping = self.regions.get(index).and_then(|r| r.mapping.clone()).ok_or(Unreachable)?;
        Ok((range, mapping))
    }

    #[cold]
    fn search(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        hint: &mut usize,
    ) -> Result<HostRange, Unreachable> {
        let index = self.regions.partition_point(|r| r.iova <= iova).checked_sub(1).ok_or(Unreachable)?;
        let range = self.regions[index].translate(iova, len, access).ok_or(Unreachable)?;
        *hint = index;
        Ok(range)
    }

    /// Checks `len` bytes from `iova` that may lie in several adjacent regions, and hands over the pieces in order.
    ///
    /// # Errors
    ///
    /// [`Unreachable`], after some pieces may have been handed over.
    #[inline]
    pub fn pieces(
        &self,
        mut iova: u64,
        mut len: usize,
        access: Access,
        hint: &mut usize,
        mut piece: impl FnMut(HostRange),
    ) -> Result<(), Unreachable> {
        if let Ok(range) = self.translate(iova, len, access, hint) {
            piece(range);
            return Ok(());
        }
        while len > 0 {
            let index = self.regions.partition_point(|r| r.iova <= iova).checked_sub(1).ok_or(Unreachable)?;
            let region = &self.regions[index];
            let rest = region.len.checked_sub(iova - region.iova).filter(|&n| n > 0).ok_or(Unreachable)?;
            let part = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
            piece(region.translate(iova, part, access).ok_or(Unreachable)?);
            // Inside the region or at its end, which does not overflow.
            iova += part as u64;
            len -= part;
        }
        Ok(())
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    ///
    /// [`Unreachable`], with part of `data` written.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Unreachable> {
        let mut at = 0;
        self.pieces(iova, data.len(), Access::Read, &mut 0, |range| {
            // SAFETY: a checked range of a live mapping on one side, `range.len` bytes of `data` on the other: the
            // pieces add up to its length.
            unsafe { ptr::copy_nonoverlapping(range.base, data.as_mut_ptr().add(at), range.len) };
            at += range.len;
        })
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    ///
    /// [`Unreachable`], with part of the data written.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), Unreachable> {
        let mut at = 0;
        self.pieces(iova, data.len(), Access::Write, &mut 0, |range| {
            // SAFETY: as in `read`, the other way round.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr().add(at), range.base, range.len) };
            at += range.len;
        })
    }
}

impl Region {
    #[inline]
    fn translate(&self, iova: u64, len: usize, access: Access) -> Option<HostRange> {
        let offset = iova.wrapping_sub(self.iova);
        // One comparison for both ends: an address below the region wraps to an offset past its length.
        if offset >= self.len || len as u64 > self.len - offset {
            return None;
        }
        let allowed = match access {
            Access::Read => self.read,
            Access::Write => self.write,
        };
        let mapping = self.mapping.as_ref().filter(|_| allowed)?;
        debug_assert_eq!(mapping.len() as u64, self.len);
        // The mapping is as long as the region, so the offset stays inside it.
        let base = mapping.base().wrapping_add(offset as usize);
        Some(HostRange { base, len, region: self.slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::sigbus::Fault;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    const PAGE: u64 = 4096;

    fn memfd(pages: u64) -> std::os::fd::OwnedFd {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, pages * PAGE).unwrap();
        fd
    }

    fn mapping(pages: u64, fault: &Arc<Fault>) -> Option<Arc<Mapping>> {
        let len = (pages * PAGE) as usize;
        Some(Arc::new(Mapping::new(memfd(pages), 0, len, true, true, fault.clone()).unwrap()))
    }

    fn two_adjacent_regions() -> MemoryMap {
        let fault = Arc::default();
        MemoryMap::default()
            .with_region(0x1000, 2 * PAGE, true, true, mapping(2, &fault))
            .unwrap()
            .with_region(0x3000, PAGE, true, true, mapping(1, &fault))
            .unwrap()
    }

    #[test]
    fn what_is_written_is_read_across_regions() {
        let map = two_adjacent_regions();
        let data: Vec<u8> = (0..6000).map(|i| i as u8).collect();
        map.write(0x2000, &data).unwrap();
        let mut back = vec![0; 6000];
        map.read(0x2000, &mut back).unwrap();
        assert_eq!(data, back);
    }

    #[test]
    fn addresses_outside_of_memory_are_unreachable() {
        let map = two_adjacent_regions();
        let mut hint = 0;
        for (iova, len) in [
            (0, 1),
            (0xfff, 2),
            (0x3fff, 2),
            (0x4000, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 4096),
            (0x1000, 0x4000),
        ] {
            assert_eq!(map.read(iova, &mut vec![0; len]), Err(Unreachable), "{iova:#x}+{len}");
            assert!(map.translate(iova, len, Access::Read, &mut hint).is_err());
        }
    }

    #[test]
    fn memory_that_is_not_shared_is_unreachable() {
        let map = MemoryMap::default().with_region(0, PAGE, true, true, None).unwrap();
        assert_eq!(map.read(0, &mut [0]), Err(Unreachable));
    }

    #[test]
    fn read_only_memory_cannot_be_written() {
        let fault = Arc::default();
        let map = MemoryMap::default().with_region(0, PAGE, true, false, mapping(1, &fault)).unwrap();
        assert_eq!(map.write(0, &[0]), Err(Unreachable));
        assert_eq!(map.read(0, &mut [1]), Ok(()));
    }

    #[test]
    fn overlapping_and_overflowing_regions_are_refused() {
        let map = two_adjacent_regions();
        assert_eq!(map.check_free(0x2000, PAGE), Err(libc::EEXIST));
        assert_eq!(map.check_free(0, 0x1001), Err(libc::EEXIST));
        assert_eq!(map.check_free(0, 0x1000), Ok(()));
        assert_eq!(map.check_free(u64::MAX, 2), Err(libc::EINVAL));
        assert_eq!(map.check_free(0x9000, 0), Err(libc::EINVAL));
    }

    #[test]
    fn regions_are_removed_whole_or_not_at_all() {
        let map = two_adjacent_regions();
        assert_eq!(map.without_range(0x1000, PAGE).unwrap_err(), libc::EINVAL);
        assert_eq!(map.without_range(0x8000, PAGE).unwrap_err(), libc::ENOENT);
        let (rest, removed, mask) = map.without_range(0x1000, 2 * PAGE).unwrap();
        assert_eq!((rest.regions().len(), removed.len()), (1, 1));
        assert!(mask.intersects(map.translate(0x1000, 1, Access::Read, &mut 0).unwrap().region()));
        assert!(!mask.intersects(map.translate(0x3000, 1, Access::Read, &mut 0).unwrap().region()));
    }

    #[test]
    fn memory_that_its_file_does_not_have_is_not_mapped() {
        for (offset, len) in [(0, 3 * PAGE), (PAGE, 2 * PAGE), (4 * PAGE, PAGE), (!0xfff, PAGE)] {
            let error = Mapping::new(memfd(2), offset, len as usize, true, true, Arc::default()).unwrap_err();
            assert!(error.to_string().ends_with("is not inside its file of 0x2000 bytes"), "{error}");
        }
        Mapping::new(memfd(2), PAGE, PAGE as usize, true, true, Arc::default()).unwrap();
    }

    #[test]
    fn truncated_memory_reads_as_zeroes_and_marks_the_fault() {
        let fault = Arc::<Fault>::default();
        let fd = memfd(2);
        let same = fd.try_clone().unwrap();
        let mapping = Mapping::new(fd, 0, 2 * PAGE as usize, true, true, fault.clone()).unwrap();
        let map = MemoryMap::default().with_region(0, 2 * PAGE, true, true, Some(Arc::new(mapping))).unwrap();
        map.write(PAGE, &[7]).unwrap();
        ftruncate(&same, 0).unwrap();
        let mut byte = [1];
        map.read(PAGE, &mut byte).unwrap();
        assert_eq!((byte[0], fault.is_set()), (0, true));
    }
}
