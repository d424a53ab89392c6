//! A command's data pointer, walked into segments of host memory.
//!
//! PRP lists and SGL segments are copied out of guest memory once, and only the copies are looked at; each address in
//! them becomes a checked range. What comes out is a [`SegmentList`], merged where neighbours touch.

pub(crate) mod prp;
pub(crate) mod sgl;

use crate::memory::{Access, HostRange, MemoryMap, RegionMask};
use block_core::Segment;
use nvme_spec::{DataPointer, Status, SubmissionQueueEntry};
use std::ptr;

/// Host memory of one command, in order. Reused from command to command, so it allocates only once.
#[derive(Debug, Default)]
pub(crate) struct SegmentList {
    segments: Vec<Segment>,
    regions: RegionMask,
}

// SAFETY: segments are addresses; whoever accesses what they name answers for it.
unsafe impl Send for SegmentList {}

impl SegmentList {
    /// What one system call takes (`IOV_MAX`).
    const MAX: usize = 1024;

    pub(crate) fn new() -> Self {
        Self { segments: Vec::with_capacity(Self::MAX), regions: RegionMask::NONE }
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// The regions that the segments lie in.
    pub(crate) fn regions(&self) -> RegionMask {
        self.regions
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.regions = RegionMask::NONE;
    }

    #[inline]
    fn push(&mut self, range: HostRange) -> Result<(), Status> {
        self.regions.add(range.region());
        let segment = range.segment();
        if let Some(last) = self.segments.last_mut()
            && last.base.wrapping_add(last.len) == segment.base
        {
            last.len += segment.len;
            return Ok(());
        }
        if self.segments.len() == Self::MAX {
            return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS);
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Copies the segments' memory to `data`, as much as both have.
    pub(crate) fn read(&self, data: &mut [u8]) {
        let mut rest = data;
        for segment in &self.segments {
            let (now, later) = rest.split_at_mut(segment.len.min(rest.len()));
            // SAFETY: a checked range of guest memory (the map that it came from is held by whoever made the list)
            // and a slice that is no longer.
            unsafe { ptr::copy_nonoverlapping(segment.base, now.as_mut_ptr(), now.len()) };
            rest = later;
        }
    }

    /// Copies `data` to the segments' memory, as much as both have.
    pub(crate) fn write(&self, data: &[u8]) {
        let mut rest = data;
        for segment in &self.segments {
            let (now, later) = rest.split_at(segment.len.min(rest.len()));
            // SAFETY: as in `read`; `now` is no longer than the segment.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), segment.base, now.len()) };
            rest = later;
        }
    }
}

/// What a walk needs besides the command.
pub(crate) struct Walker<'a> {
    pub(crate) map: &'a MemoryMap,
    /// Memory page size: 2^(12 + CC.MPS) bytes.
    pub(crate) page_size: u64,
    /// Index of the region that data was last found in.
    pub(crate) hint: &'a mut usize,
    pub(crate) list: &'a mut SegmentList,
}

impl Walker<'_> {
    /// Walks the data pointer of a command that transfers `len` bytes.
    #[inline]
    pub(crate) fn walk(
        &mut self,
        sqe: &SubmissionQueueEntry,
        len: usize,
        access: Access,
    ) -> Result<(), Status> {
        self.list.clear();
        match sqe.data_pointer() {
            Some(DataPointer::Prp(prp1, prp2)) => prp::walk(self, prp1, prp2, len, access),
            Some(DataPointer::Sgl(descriptor)) => sgl::walk(self, descriptor, len, access),
            None => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    #[inline]
    fn add(&mut self, iova: u64, len: usize, access: Access) -> Result<(), Status> {
        if let Ok(range) = self.map.translate(iova, len, access, self.hint) {
            return self.list.push(range);
        }
        self.add_pieces(iova, len, access)
    }

    #[cold]
    fn add_pieces(&mut self, iova: u64, len: usize, access: Access) -> Result<(), Status> {
        let mut pushed = Ok(());
        let list = &mut *self.list;
        self.map
            .pieces(iova, len, access, self.hint, |range| pushed = pushed.and(list.push(range)))
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        pushed
    }
}
