//! What I/O virtual addresses the kernel allows: windows that leave out what the IOMMU does not reach or has reserved,
//! such as the MSI window of x86.

use std::io;
use std::ops::RangeInclusive;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, vfio_iommu_type1_info,
};
use zerocopy::FromBytes;

use super::super::DmaLimits;
use super::super::capability;

/// For a kernel that does not say (before 5.4): what the narrowest IOMMUs have, 39 bits, less the MSI window of x86.
const NARROWEST: [RangeInclusive<u64>; 2] = [0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1];

/// A range as the kernel writes it, in `struct vfio_iova_range` and `struct iommu_iova_range`: first and last address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes)]
#[repr(C)]
pub(super) struct IovaRange {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Orders ranges, joins those that touch, and leaves out those that are none.
pub(super) fn windows(ranges: &[IovaRange]) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<_> = ranges.iter().filter(|range| range.first <= range.last).collect();
    ranges.sort_by_key(|range| range.first);
    let mut windows: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match windows.last_mut() {
            Some(before) if range.first <= before.end().saturating_add(1) => {
                *before = *before.start()..=range.last.max(*before.end());
            }
            _ => windows.push(range.first..=range.last),
        }
    }
    windows
}

/// What the type1 IOMMU answers to `VFIO_IOMMU_GET_INFO`: its addresses, and how many more mappings it takes, if it
/// says so.
pub(super) fn type1(info: &vfio_iommu_type1_info, answer: &[u8]) -> io::Result<(DmaLimits, Option<u32>)> {
    // A bit for each size of page; pages of 4 KiB where it does not say.
    let sizes = if info.flags & VFIO_IOMMU_INFO_PGSIZES != 0 { info.iova_pgsizes } else { 0 };
    let page_size = 1u64.checked_shl(sizes.trailing_zeros()).filter(|_| sizes != 0).unwrap_or(4096);

    let first = if info.flags & VFIO_IOMMU_INFO_CAPS != 0 { info.cap_offset } else { 0 };
    let ranges = capability::find(answer, first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
    let windows = match ranges {
        Some(bytes) => {
            let count = word(bytes, 0)?;
            windows(&capability::array(bytes.get(8..).unwrap_or_default(), count)?)
        }
        None => NARROWEST.to_vec(),
    };
    let available = capability::find(answer, first, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)?;
    let available = available.map(|bytes| word(bytes, 0)).transpose()?;
    Ok((DmaLimits { windows, page_size }, available))
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a capability of the IOMMU is too short");
    bytes.map(u32::from_ne_bytes).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iova::IovaAllocator;
    use proptest::prelude::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last }
    }

    fn info(flags: u32, iova_pgsizes: u64, cap_offset: u32) -> vfio_iommu_type1_info {
        vfio_iommu_type1_info { argsz: 0, flags, iova_pgsizes, cap_offset, pad: 0 }
    }

    /// The answer of an IOMMU of 39 bits that has the MSI window reserved, and that takes 7 more mappings.
    fn answer() -> Vec<u8> {
        let mut answer = vec![0xaa; 24];
        let header = |id: u16, next: u32, answer: &mut Vec<u8>| {
            answer.extend(id.to_ne_bytes());
            answer.extend(1u16.to_ne_bytes());
            answer.extend(next.to_ne_bytes());
        };
        header(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL as u16, 40, &mut answer);
        answer.extend(7u32.to_ne_bytes());
        answer.extend([0xaa; 4]);
        header(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE as u16, 0, &mut answer);
        answer.extend(2u32.to_ne_bytes());
        answer.extend([0; 4]);
        for address in [0u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            answer.extend(address.to_ne_bytes());
        }
        answer
    }

    const FLAGS: u32 = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;

    #[test]
    fn type1_says_windows_page_size_and_mappings_left() {
        let (limits, left) = type1(&info(FLAGS, 0x4020_1000, 24), &answer()).unwrap();
        assert_eq!(limits.windows, [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!((limits.page_size, left), (4096, Some(7)));
    }

    #[test]
    fn the_msi_window_and_what_is_past_39_bits_is_never_handed_out() {
        let (limits, _) = type1(&info(FLAGS, 0x1000, 24), &answer()).unwrap();
        let mut iovas = IovaAllocator::new(&limits, 4096);
        let piece = 64 << 20;
        let mut taken = 0;
        while let Some(iova) = iovas.allocate(piece, 0) {
            let last = iova + piece - 1;
            assert!(last < 0xfee0_0000 || (iova >= 0xfef0_0000 && last <= 0x7f_ffff_ffff), "{iova:#x}");
            taken += piece;
        }
        assert!(taken > (1 << 39) - (256 << 20));
    }

    #[test]
    fn a_kernel_that_does_not_say_is_taken_for_the_narrowest() {
        let (limits, left) = type1(&info(0, 0, 0), &[0; 24]).unwrap();
        assert_eq!(limits.windows, NARROWEST);
        assert_eq!((limits.page_size, left), (4096, None));
    }

    #[test]
    fn more_ranges_than_the_answer_has_are_refused() {
        let mut answer = answer();
        answer.truncate(answer.len() - 1);
        assert!(type1(&info(FLAGS, 0x1000, 24), &answer).is_err());
    }

    #[test]
    fn ranges_that_touch_are_joined_and_empty_ones_left_out() {
        let ranges = [range(0x3000, 0x3fff), range(9, 8), range(0, 0xfff), range(0x1000, 0x1fff)];
        assert_eq!(windows(&ranges), [0..=0x1fff, 0x3000..=0x3fff]);
        assert_eq!(windows(&[range(5, u64::MAX), range(7, 8)]), [5..=u64::MAX]);
    }

    proptest! {
        #[test]
        fn windows_hold_what_the_ranges_hold_in_order_and_apart(
            ranges in proptest::collection::vec((0..200u64, 0..200u64), 0..12), at in 0..210u64
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, last)| range(first, last)).collect();
            let windows = windows(&ranges);
            let in_ranges = ranges.iter().any(|range| (range.first..=range.last).contains(&at));
            prop_assert_eq!(windows.iter().any(|window| window.contains(&at)), in_ranges);
            prop_assert!(windows.windows(2).all(|pair| pair[0].end() + 1 < *pair[1].start()));
        }

        #[test]
        fn any_answer_is_understood_or_refused(
            answer in proptest::collection::vec(any::<u8>(), 0..120), flags: u32, sizes: u64, at in 0..130u32
        ) {
            let _ = type1(&info(flags, sizes, at), &answer);
        }
    }
}
