//! What is left of a read or a write, while the kernel takes it piece by piece.

use crate::request::{Request, Segment};

/// The most that one system call moves (`MAX_RW_COUNT` in Linux's `include/linux/fs.h`, for 4 KiB pages).
pub(super) const MAX_BYTES: usize = 0x7fff_f000;

/// The most segments that one system call takes (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;

/// Segments that each transfer has room for before it has to allocate: 128 KiB of 4 KiB pages.
const USUAL_SEGMENTS: usize = 32;

/// The rest of a read or a write. Keeps the room for its segments from one request to the next.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Where on the disk it goes on.
    pub offset: u64,
    /// Bytes that are left.
    pub left: u64,
    segments: Vec<Segment>,
    /// Segments before this one are done.
    first: usize,
}

// SAFETY: segments name memory that the submitter of the request keeps valid, on whichever thread it is moved.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Nothing left, and no room for segments until they come.
    pub const fn empty() -> Self {
        Self { offset: 0, left: 0, segments: Vec::new(), first: 0 }
    }

    /// Nothing left, and room for the segments of most requests.
    pub fn with_usual_room() -> Self {
        Self { segments: Vec::with_capacity(USUAL_SEGMENTS), ..Self::empty() }
    }

    /// Begins the transfer of a request.
    #[inline]
    pub fn begin(&mut self, request: &Request<'_>) {
        self.offset = request.offset;
        self.left = request.len;
        self.first = 0;
        self.segments.clear();
        if request.segments.len() <= MAX_SEGMENTS {
            self.segments.extend_from_slice(request.segments);
        } else {
            // So that the first of several system calls has something to move.
            self.segments.extend(request.segments.iter().filter(|segment| segment.len > 0));
        }
    }

    /// All segments that are left.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    /// The segments for the next system call: at most [`MAX_SEGMENTS`]; the kernel itself stops at [`MAX_BYTES`].
    #[inline]
    pub fn next_segments(&self) -> &[Segment] {
        let rest = self.segments();
        &rest[..rest.len().min(MAX_SEGMENTS)]
    }

    /// Notes that `n` bytes, no more than are left, have been moved.
    #[inline]
    pub fn advance(&mut self, n: u64) {
        self.offset += n;
        self.left -= n;
        if self.left == 0 {
            return;
        }
        let mut n = n as usize;
        while let Some(segment) = self.segments.get_mut(self.first) {
            if n < segment.len {
                segment.base = segment.base.wrapping_add(n);
                segment.len -= n;
                return;
            }
            n -= segment.len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Operation, RequestFlags};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_of_any_length_leave_exactly_the_rest(
            lens in proptest::collection::vec(0usize..20, 1..8),
            steps in proptest::collection::vec(1u64..30, 1..40),
        ) {
            let memory = std::ptr::without_provenance_mut::<u8>(0x1000);
            let mut at = 0;
            let segments: Vec<Segment> = lens.iter().map(|&len| {
                // Gaps between the segments, so that a step too far would show.
                let segment = Segment { base: memory.wrapping_add(at), len };
                at += len + 100;
                segment
            }).collect();
            let bytes: Vec<usize> = segments.iter().flat_map(|s| (0..s.len).map(|i| s.base.addr() + i)).collect();
            let request = Request {
                operation: Operation::Read, offset: 7, len: bytes.len() as u64,
                segments: &segments, flags: RequestFlags::NONE, token: 0,
            };
            let mut transfer = Transfer::empty();
            transfer.begin(&request);
            let mut done = 0;
            for step in steps {
                let step = step.min(transfer.left);
                transfer.advance(step);
                done += step;
                prop_assert_eq!(transfer.offset, 7 + done);
                prop_assert_eq!(transfer.left, bytes.len() as u64 - done);
                if transfer.left == 0 { break; }
                let rest: Vec<usize> =
                    transfer.segments().iter().flat_map(|s| (0..s.len).map(|i| s.base.addr() + i)).collect();
                prop_assert_eq!(&rest[..], &bytes[done as usize..]);
            }
        }
    }
}
