//! Requests and their completions.

use std::fmt;

/// What a request does. Names are QEMU's block layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fills the segments from the disk. Holes read as zeroes.
    Read,
    /// Writes the segments to the disk.
    Write,
    /// Makes every write that completed before this request was submitted durable. Offset, length and segments
    /// are ignored.
    Flush,
    /// Tells the disk that a range is no longer needed. What it reads as afterwards is [`crate::Unmapped`]'s.
    Discard,
    /// Makes a range read as zeroes.
    WriteZeroes,
}

/// Flags of a [`Request`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestFlags(u8);

impl RequestFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Write, write zeroes: durable at completion (force unit access). Discard: what it has freed stays freed, as far as
    /// the disk can say so; files can, drives take a discard as advice.
    pub const FUA: Self = Self(1);
    /// Write zeroes: the range may be deallocated (a hole punched) as long as it then reads as zeroes.
    pub const MAY_UNMAP: Self = Self(2);
    /// Write zeroes: fail with `EOPNOTSUPP` rather than write the zeroes out one by one.
    pub const NO_FALLBACK: Self = Self(4);

    /// Whether every flag of `other` is set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A contiguous piece of host memory that a request reads into or writes from. Layout of `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

const _: () = assert!(size_of::<Segment>() == size_of::<libc::iovec>());

/// A request, as handed to [`crate::Queue::submit`], which copies of it what it keeps.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What to do.
    pub operation: Operation,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes. For reads and writes, the sum of the segments' lengths.
    pub len: u64,
    /// The host memory of a read or a write; empty otherwise.
    pub segments: &'a [Segment],
    /// Flags.
    pub flags: RequestFlags,
    /// Comes back in the [`Completion`]; means nothing to the queue.
    pub token: u64,
}

impl Request<'_> {
    /// What every implementation finds out first: whether the request ends without touching the disk, because it is
    /// malformed, outside the disk, a write to a read-only disk, or has nothing to do.
    ///
    /// `None` is a request to carry out: a flush, or a range of more than 0 bytes inside the disk whose segments, for
    /// a read or a write, add up to it.
    #[inline]
    pub fn settled(&self, capacity: u64, read_only: bool) -> Option<RequestResult> {
        if self.operation == Operation::Flush {
            return None;
        }
        if matches!(self.operation, Operation::Read | Operation::Write)
            && self.segments_len() != Some(self.len)
        {
            return Some(self.fail(libc::EINVAL));
        }
        if read_only && self.operation != Operation::Read {
            return Some(self.fail(libc::EROFS));
        }
        if self.len == 0 {
            return Some(Ok(()));
        }
        match self.offset.checked_add(self.len) {
            Some(end) if end <= capacity => None,
            _ => Some(self.fail(libc::EINVAL)),
        }
    }

    /// The failure of this request with an errno.
    #[inline]
    pub fn fail(&self, errno: i32) -> RequestResult {
        Err(RequestError { errno, offset: self.offset, len: self.len })
    }

    #[inline]
    fn segments_len(&self) -> Option<u64> {
        self.segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len as u64))
    }
}

/// How a request failed: errno and the range that it was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// An errno of the host: `EIO`, `ENOSPC`, `EINVAL` (out of range, malformed), `EROFS`, `EOPNOTSUPP`…
    pub errno: i32,
    /// First byte of the request's range.
    pub offset: u64,
    /// Length of the request's range, in bytes.
    pub len: u64,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { errno, offset, len } = self;
        write!(f, "{} (bytes {offset}+{len})", std::io::Error::from_raw_os_error(*errno))
    }
}

impl std::error::Error for RequestError {}

/// How a request ended.
pub type RequestResult = Result<(), RequestError>;

/// The end of a request that was [`crate::Submission::Pending`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// How it ended.
    pub result: RequestResult,
}
