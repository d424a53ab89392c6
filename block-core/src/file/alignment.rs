//! What `O_DIRECT` asks of offsets and of memory, on this file.
//!
//! The kernel says so where it can (`statx` with `STATX_DIOALIGN`, Linux 6.1); trial reads find it out elsewhere, and
//! check what the kernel said. Memory and offset alignment differ: many drives take 512-byte offsets from memory
//! aligned to 4.

use super::bounce::BounceBuffer;
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, StatxFlags, statx};
use std::io;
use std::os::fd::AsRawFd;

/// Alignments in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of offsets and lengths on the disk.
    pub request: u32,
    /// Of addresses and lengths of segments.
    pub memory: u32,
}

impl Alignment {
    /// What the page cache asks: nothing.
    pub const NONE: Self = Self { request: 1, memory: 1 };

    /// No file system and no drive asks for more.
    const MAX: u32 = 64 << 10;

    /// What a file opened with `O_DIRECT` asks, `None` if no alignment satisfies it.
    pub fn probe(file: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let buffer = BounceBuffer::new(2 * Self::MAX as usize, Self::MAX as usize);
        let said = said_by_kernel(file);
        let smallest = said.map_or(512, |said| said.request);
        let Some(request) =
            powers(smallest).find_map(|n| trial(file, &buffer, 0, n).map(|ok| ok.then_some(n)).transpose())
        else {
            return Ok(None);
        };
        let request = request?;
        if let Some(said) = said
            && trial(file, &buffer, said.memory, request)?
        {
            return Ok(Some(Self { request, memory: said.memory }));
        }
        // Without the kernel's word, trust no memory alignment below a sector: some drives take less only sometimes.
        let memory = powers(512).find(|&n| matches!(trial(file, &buffer, n, request), Ok(true)));
        Ok(Some(Self { request, memory: memory.unwrap_or(Self::MAX) }))
    }
}

fn powers(smallest: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(smallest), |n| Some(n * 2)).take_while(|n| *n <= Alignment::MAX)
}

/// What `statx` says, if it says something that makes sense.
fn said_by_kernel(file: BorrowedFd<'_>) -> Option<Alignment> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let (request, memory) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align);
    let sane = |n: u32| n.is_power_of_two() && n <= Alignment::MAX;
    (stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && sane(request) && sane(memory))
        .then_some(Alignment { request, memory })
}

/// Whether a read of `len` bytes at `skew` bytes into the buffer is taken: `EINVAL` is a no, any other failure is one.
fn trial(file: BorrowedFd<'_>, buffer: &BounceBuffer, skew: u32, len: u32) -> io::Result<bool> {
    let to = buffer.base().wrapping_add(skew as usize);
    // SAFETY: the buffer is twice as long as the largest alignment, and skew and len are at most that.
    let n = unsafe { libc::pread(file.as_raw_fd(), to.cast(), len as usize, 0) };
    match io::Error::last_os_error() {
        _ if n >= 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}
