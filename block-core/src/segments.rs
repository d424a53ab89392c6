//! Moving bytes between a request's segments and memory of our own.
//!
//! Segments may be guest memory, which others write at the same time: everything here goes through raw pointers,
//! makes no reference to a segment's bytes and looks at none of them twice.

use crate::request::Segment;

/// Calls `each` for the pieces of `segments` that lie in their bytes `skip..skip + len`.
#[inline]
pub fn pieces(segments: &[Segment], mut skip: usize, mut len: usize, mut each: impl FnMut(*mut u8, usize)) {
    for segment in segments {
        if len == 0 {
            return;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let n = (segment.len - skip).min(len);
        each(segment.base.wrapping_add(skip), n);
        skip = 0;
        len -= n;
    }
}

/// Fills bytes `skip..skip + len` of the segments from `from`.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes, and each segment for writes of its length. The two do not overlap.
#[inline]
pub unsafe fn scatter(from: *const u8, segments: &[Segment], skip: usize, len: usize) {
    let mut from = from;
    pieces(segments, skip, len, |to, n| {
        // SAFETY: `pieces` hands out ranges inside the segments, of at most `len` bytes in all; the caller vouches
        // for both sides.
        unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
        from = from.wrapping_add(n);
    });
}

/// Copies bytes `skip..skip + len` of the segments to `to`.
///
/// # Safety
///
/// `to` is valid for writes of `len` bytes, and each segment for reads of its length. The two do not overlap.
#[inline]
pub unsafe fn gather(segments: &[Segment], skip: usize, to: *mut u8, len: usize) {
    let mut to = to;
    pieces(segments, skip, len, |from, n| {
        // SAFETY: as in `scatter`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
        to = to.wrapping_add(n);
    });
}

/// Fills the segments with zeroes.
///
/// # Safety
///
/// Each segment is valid for writes of its length.
pub unsafe fn zero(segments: &[Segment]) {
    for segment in segments {
        // SAFETY: the caller vouches for the segment.
        unsafe { std::ptr::write_bytes(segment.base, 0, segment.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(of: &mut [u8], lens: &[usize]) -> Vec<Segment> {
        let mut base = of.as_mut_ptr();
        assert_eq!(lens.iter().sum::<usize>(), of.len());
        lens.iter()
            .map(|&len| {
                let segment = Segment { base, len };
                base = base.wrapping_add(len);
                segment
            })
            .collect()
    }

    #[test]
    fn any_part_of_any_segments_is_gathered_and_scattered() {
        let original: Vec<u8> = (0..60).collect();
        for skip in 0..60 {
            for len in 0..=60 - skip {
                let mut data = original.clone();
                let list = segments(&mut data, &[7, 0, 1, 40, 12]);
                let mut out = vec![0xff; len];
                // SAFETY: `list` covers `data`, `out` has `len` bytes.
                unsafe { gather(&list, skip, out.as_mut_ptr(), len) };
                assert_eq!(out, &original[skip..skip + len]);

                let mut target = vec![0xff; 60];
                let list = segments(&mut target, &[7, 0, 1, 40, 12]);
                // SAFETY: as above.
                unsafe { scatter(out.as_ptr(), &list, skip, len) };
                let mut expected = vec![0xff; 60];
                expected[skip..skip + len].copy_from_slice(&original[skip..skip + len]);
                assert_eq!(target, expected);
            }
        }
    }
}
