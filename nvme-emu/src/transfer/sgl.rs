//! Scatter Gather Lists (NVM Express Base Specification 2.0, 4.1.2): data blocks, segments and last segments, at
//! addresses of any alignment. Bit buckets and keyed descriptors are not offered.

use super::Walker;
use crate::memory::Access;
use nvme_spec::Status;
use nvme_spec::sgl::{SglDescriptor, SglDescriptorType};
use zerocopy::IntoBytes;

/// Descriptors that one command may have in all, so that its work is bounded.
pub(crate) const MAX_DESCRIPTORS: usize = 1024;
/// Descriptors copied out of guest memory at a time.
const CHUNK: usize = 64;

/// Walks a list for `len` bytes. Longer lists are fine (SGLS bit 18), shorter ones are not.
pub(super) fn walk(
    walker: &mut Walker<'_>,
    first: SglDescriptor,
    len: usize,
    access: Access,
) -> Result<(), Status> {
    let mut transfer = Transfer { left: len as u64, seen: 0, access };
    let mut segment = match first.descriptor_type() {
        SglDescriptorType::Segment | SglDescriptorType::LastSegment => first,
        _ => {
            transfer.data(walker, &first)?;
            return transfer.end();
        }
    };
    loop {
        match walk_segment(walker, &segment, &mut transfer)? {
            Some(next) => segment = next,
            None => return transfer.end(),
        }
    }
}

/// Walks one segment; answers the descriptor of the next, if there is one.
fn walk_segment(
    walker: &mut Walker<'_>,
    segment: &SglDescriptor,
    transfer: &mut Transfer,
) -> Result<Option<SglDescriptor>, Status> {
    let is_last = segment.descriptor_type() == SglDescriptorType::LastSegment;
    let (address, len) = (segment.address, segment.length as usize);
    if segment.sub_type() != 0 {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID);
    }
    if len == 0 || !len.is_multiple_of(size_of::<SglDescriptor>()) {
        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    }
    let count = len / size_of::<SglDescriptor>();
    transfer.seen += count;
    if transfer.seen > MAX_DESCRIPTORS {
        return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS);
    }
    let mut descriptors = [SglDescriptor::default(); CHUNK];
    let mut done = 0;
    while done < count {
        let chunk = &mut descriptors[..CHUNK.min(count - done)];
        let at = address
            .checked_add((done * size_of::<SglDescriptor>()) as u64)
            .ok_or(Status::DATA_TRANSFER_ERROR)?;
        walker.map.read(at, chunk.as_mut_bytes()).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        done += chunk.len();
        for (i, descriptor) in chunk.iter().enumerate() {
            let ends_segment = done == count && i + 1 == chunk.len();
            match descriptor.descriptor_type() {
                SglDescriptorType::Segment | SglDescriptorType::LastSegment => {
                    return if ends_segment && !is_last {
                        Ok(Some(*descriptor))
                    } else {
                        Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR)
                    };
                }
                _ => transfer.data(walker, descriptor)?,
            }
        }
    }
    if is_last { Ok(None) } else { Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR) }
}

struct Transfer {
    /// Bytes that no descriptor has named yet.
    left: u64,
    /// Descriptors so far.
    seen: usize,
    access: Access,
}

impl Transfer {
    fn data(&mut self, walker: &mut Walker<'_>, descriptor: &SglDescriptor) -> Result<(), Status> {
        // Sub type 0h: the address is one. 1h (an offset into a capsule or CMB) is not offered.
        if descriptor.sub_type() != 0 {
            return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID);
        }
        let part = u64::from(descriptor.length).min(self.left);
        match descriptor.descriptor_type() {
            SglDescriptorType::DataBlock => {
                if part > 0 {
                    walker.add(descriptor.address, part as usize, self.access)?;
                }
            }
            _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        }
        self.left -= part;
        Ok(())
    }

    fn end(&self) -> Result<(), Status> {
        if self.left == 0 { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID) }
    }
}
