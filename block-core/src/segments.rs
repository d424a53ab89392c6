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

/// As [`gather`], for a target that is not read again soon: it does not come into the caches, nor take anything else's
/// place there, on CPUs that can write so.
///
/// # Safety
///
/// As [`gather`].
#[inline]
pub unsafe fn gather_past_caches(segments: &[Segment], skip: usize, to: *mut u8, len: usize) {
    let mut to = to;
    pieces(segments, skip, len, |from, n| {
        // SAFETY: as in `scatter`.
        unsafe { copy_past_caches(from, to, n) };
        to = to.wrapping_add(n);
    });
}

/// Copies with stores that go past the caches, and are seen by others before any later store is.
///
/// # Safety
///
/// As [`std::ptr::copy_nonoverlapping`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    // A line that is not written whole would be fetched after all.
    let head = to.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head, lines and tail make up the `len` bytes that the caller vouches for, on both sides; the lines'
    // target is aligned. SSE2 is part of x86-64. The fence ends the exception that these stores are to the order in
    // which stores are seen, so that nobody hears of them before they are there.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for at in (head..tail).step_by(LINE) {
            let source = from.add(at).cast::<__m128i>();
            let target = to.add(at).cast::<__m128i>();
            let line: [__m128i; 4] = std::array::from_fn(|part| _mm_loadu_si128(source.add(part)));
            (0..4).for_each(|part| _mm_stream_si128(target.add(part), line[part]));
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
        _mm_sfence();
    }
}

/// Copies: elsewhere, there is nothing better.
///
/// # Safety
///
/// As [`std::ptr::copy_nonoverlapping`].
#[cfg(not(target_arch = "x86_64"))]
#[inline]
unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
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
    fn past_the_caches_the_same_bytes_arrive_wherever_lines_begin() {
        let mut data: Vec<u8> = (0..600u32).map(|at| (at * 7 % 251) as u8).collect();
        let original = data.clone();
        let list = segments(&mut data, &[200, 1, 399]);
        for skip in [0, 1, 63, 64, 199, 200] {
            for len in [0, 1, 15, 63, 64, 65, 127, 128, 200, 400] {
                for at in 0..48 {
                    let mut out = vec![0xff; 512];
                    let start = out.as_ptr().align_offset(64) + at;
                    // SAFETY: `list` covers `data`, `out` has more than `start + len` bytes.
                    unsafe { gather_past_caches(&list, skip, out.as_mut_ptr().add(start), len) };
                    assert_eq!(out[start..start + len], original[skip..skip + len], "{skip} {len} {at}");
                    let untouched = out[..start].iter().chain(&out[start + len..]);
                    assert!(untouched.copied().all(|byte| byte == 0xff), "{skip} {len} {at}");
                }
            }
        }
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
