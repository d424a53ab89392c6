//! Capabilities behind a structure, as the kernel's VFIO and vfio-user have them (`linux/vfio.h`,
//! `struct vfio_info_cap_header`): a list, of which each member says where in the answer the next one is.

use std::io;

use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every capability begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CapabilityHeader {
    pub(super) id: u16,
    pub(super) version: u16,
    /// Where the next one is, counted from the beginning of the answer; 0: there is none.
    pub(super) next: u32,
}

/// The sparse mmap capability, after its header; the areas follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SparseMmap {
    pub(super) nr_areas: u32,
    pub(super) reserved: u32,
}

/// An area of a region that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SparseArea {
    pub(super) offset: u64,
    pub(super) size: u64,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a list of capabilities is malformed")
}

/// What follows the header of the capability `id`, if it is in the list that begins at `first` of the answer; with
/// whatever comes after it.
pub(super) fn find(answer: &[u8], first: u32, id: u32) -> io::Result<Option<&[u8]>> {
    let (mut next, mut before) = (first, 0);
    while next != 0 {
        // A list that only goes forward ends.
        if next <= before {
            return Err(malformed());
        }
        before = next;
        let rest = answer.get(next as usize..).ok_or_else(malformed)?;
        let (header, rest) = CapabilityHeader::read_from_prefix(rest).map_err(|_| malformed())?;
        if u32::from(header.id) == id {
            return Ok(Some(rest));
        }
        next = header.next;
    }
    Ok(None)
}

/// The first `count` structures of these bytes.
pub(super) fn array<T: FromBytes>(bytes: &[u8], count: u32) -> io::Result<Vec<T>> {
    let len = (count as usize).checked_mul(size_of::<T>());
    let bytes = len.and_then(|len| bytes.get(..len)).ok_or_else(malformed)?;
    bytes.chunks_exact(size_of::<T>()).map(|one| T::read_from_bytes(one).map_err(|_| malformed())).collect()
}

/// The areas of the sparse mmap capability, if there is one in the list that begins at `first` of the answer.
pub(super) fn sparse_areas(answer: &[u8], first: u32) -> io::Result<Option<Vec<SparseArea>>> {
    let Some(rest) = find(answer, first, VFIO_REGION_INFO_CAP_SPARSE_MMAP)? else { return Ok(None) };
    let (sparse, areas) = SparseMmap::read_from_prefix(rest).map_err(|_| malformed())?;
    array(areas, sparse.nr_areas).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where capabilities begin: behind a structure of that size.
    const FIRST: u32 = 40;

    /// An answer with a capability of another kind, then the sparse mmap capability.
    fn answer(areas: &[SparseArea], nr_areas: u32) -> Vec<u8> {
        let mut answer = vec![0xaa; FIRST as usize];
        answer.extend(CapabilityHeader { id: 99, version: 1, next: 56 }.as_bytes());
        answer.extend([0xaa; 8]);
        let id = VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16;
        answer.extend(CapabilityHeader { id, version: 1, next: 0 }.as_bytes());
        answer.extend(SparseMmap { nr_areas, reserved: 0 }.as_bytes());
        answer.extend(areas.as_bytes());
        answer
    }

    #[test]
    fn sparse_areas_are_found_behind_other_capabilities() {
        let areas =
            [SparseArea { offset: 0x1000, size: 0x1000 }, SparseArea { offset: 0x4000, size: 0x2000 }];
        assert_eq!(sparse_areas(&answer(&areas, 2), FIRST).unwrap(), Some(areas.to_vec()));
    }

    #[test]
    fn what_is_not_in_the_list_is_not_found() {
        assert_eq!(find(&answer(&[], 0), FIRST, 7).unwrap(), None);
        assert_eq!(find(&[], 0, 7).unwrap(), None);
    }

    #[test]
    fn more_areas_than_there_are_bytes_are_refused() {
        assert!(sparse_areas(&answer(&[], u32::MAX), FIRST).is_err());
    }

    #[test]
    fn a_list_that_turns_back_is_refused() {
        let mut answer = answer(&[], 0);
        answer[44..48].copy_from_slice(&FIRST.to_ne_bytes());
        assert!(sparse_areas(&answer, FIRST).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(answer in proptest::collection::vec(any::<u8>(), 0..200), at: u8) {
            let _ = sparse_areas(&answer, at.into());
        }
    }
}
