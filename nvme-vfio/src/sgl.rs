//! Building SGLs, for data that PRPs cannot describe (Base Specification, "Scatter Gather List").

use nvme_spec::identify::Sgls;
use nvme_spec::sgl::SglDescriptor;

use crate::dma::DmaRange;
use crate::prp::PrpListPages;

/// Describes `data` by one descriptor, which leads to a segment in `list` if there are several pieces. `None`: the
/// controller has no SGLs, or none for data of this alignment, or the pieces are too many.
#[cold]
pub(crate) fn build(data: &[DmaRange], list: &PrpListPages, sgls: Sgls) -> Option<SglDescriptor> {
    let alignment = match sgls.support() {
        Sgls::SUPPORTED => 1,
        Sgls::SUPPORTED_DWORD_ALIGNED => 4,
        _ => return None,
    };
    if data.iter().any(|piece| !(piece.iova | u64::from(piece.len)).is_multiple_of(alignment)) {
        return None;
    }
    if let [piece] = data {
        return Some(SglDescriptor::data_block(piece.iova, piece.len));
    }
    let room = list.pages * list.page_size as usize / size_of::<SglDescriptor>();
    if data.is_empty() || data.len() > room {
        return None;
    }
    for (index, piece) in data.iter().enumerate() {
        let descriptor = SglDescriptor::data_block(piece.iova, piece.len);
        // SAFETY: the list's pages are one after another, there is room for so many descriptors in them, and they are
        // aligned to pages.
        unsafe { list.base.cast::<SglDescriptor>().add(index).write_volatile(descriptor) };
    }
    Some(SglDescriptor::last_segment(list.iova, (data.len() * size_of::<SglDescriptor>()) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    const IOVA: u64 = 0x7000_0000;

    fn build(data: &[(u64, u32)], sgls: u8) -> Option<(SglDescriptor, Vec<SglDescriptor>)> {
        let mut entries = vec![0u64; 512];
        let base = NonNull::new(entries.as_mut_ptr()).unwrap();
        let list = PrpListPages { base, iova: IOVA, pages: 1, page_size: 4096 };
        let data: Vec<DmaRange> = data.iter().map(|&(iova, len)| DmaRange { iova, len }).collect();
        let first = super::build(&data, &list, Sgls::new().with_support(sgls))?;
        let segment = entries.chunks(2).map(|halves| SglDescriptor::from_dptr(halves[0], halves[1]));
        Some((first, segment.take(data.len()).collect()))
    }

    #[test]
    fn one_piece_needs_no_segment() {
        let (first, _) = build(&[(0x1001, 77)], Sgls::SUPPORTED).unwrap();
        assert_eq!(first, SglDescriptor::data_block(0x1001, 77));
    }

    #[test]
    fn several_pieces_are_a_last_segment_of_data_blocks_in_order() {
        let (first, segment) = build(&[(0x1200, 512), (0x5001, 511), (0x9000, 1)], Sgls::SUPPORTED).unwrap();
        assert_eq!(first, SglDescriptor::last_segment(IOVA, 48));
        let blocks = [(0x1200, 512), (0x5001, 511), (0x9000, 1)];
        assert_eq!(segment, blocks.map(|(iova, len)| SglDescriptor::data_block(iova, len)));
    }

    #[test]
    fn what_the_controller_does_not_take_is_not_built() {
        assert!(build(&[(0x1000, 512)], Sgls::NOT_SUPPORTED).is_none());
        assert!(build(&[(0x1000, 512), (0x5002, 512)], Sgls::SUPPORTED_DWORD_ALIGNED).is_none());
        assert!(build(&[(0x1000, 510), (0x5000, 514)], Sgls::SUPPORTED_DWORD_ALIGNED).is_none());
        assert!(build(&[(0x1004, 508), (0x5000, 516)], Sgls::SUPPORTED_DWORD_ALIGNED).is_some());
    }

    #[test]
    fn as_many_pieces_as_the_list_has_room_for() {
        let pieces = |n: u64| (0..n).map(|i| (i * 8192, 512)).collect::<Vec<_>>();
        assert!(build(&pieces(256), Sgls::SUPPORTED).is_some());
        assert!(build(&pieces(257), Sgls::SUPPORTED).is_none());
    }
}
