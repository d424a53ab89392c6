//! Discard and write zeroes.
//!
//! On a regular file a discard punches a hole, which reads as zeroes. On a block device it is `BLKDISCARD`, after which
//! the drive gives what it likes. Write zeroes takes the cheapest way that the flags allow and the file system has: a
//! hole (`MAY_UNMAP`), a zeroed range, a hole that is allocated again, zeroes written out (unless `NO_FALLBACK`).

use super::blocking::Workplace;
use super::open_file::{Kind, OpenFile};
use crate::request::RequestFlags;
use rustix::fs::FallocateFlags;

const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

impl OpenFile {
    /// Gives a range back. What the file system cannot give back stays: a discard is advice.
    pub(super) fn discard(&self, offset: u64, len: u64, durable: bool) -> Result<(), i32> {
        let _held = self.cache.direct().then(|| self.ranges.exclusive(offset, len));
        let outcome = match self.kind {
            Kind::Regular => self.allocate(HOLE, offset, len),
            Kind::BlockDevice => {
                let (start, end) = self.inner(offset, len, self.info.discard_granularity);
                if start < end { self.medium.discard(start, end - start) } else { Ok(()) }
            }
        };
        match outcome {
            Err(libc::EOPNOTSUPP) => return Ok(()),
            outcome => outcome?,
        }
        if durable { self.sync() } else { Ok(()) }
    }

    /// Makes a range read as zeroes.
    pub(super) fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: RequestFlags,
        durable: bool,
        workplace: &mut Workplace<'_>,
    ) -> Result<(), i32> {
        let _held = self.cache.direct().then(|| self.ranges.exclusive(offset, len));
        // Block devices zero whole sectors only.
        let (start, end) = match self.kind {
            Kind::Regular => (offset, offset + len),
            Kind::BlockDevice => self.inner(offset, len, self.info.logical_block_size),
        };
        let zeroed =
            if start < end { self.zero_at_once(start, end - start, flags) } else { Err(libc::EOPNOTSUPP) };
        match zeroed {
            Ok(()) => {
                self.write_zeroes_out(offset, start - offset, durable, workplace.bounce)?;
                self.write_zeroes_out(end, offset + len - end, durable, workplace.bounce)?;
                if durable { self.sync() } else { Ok(()) }
            }
            Err(libc::EOPNOTSUPP) if !flags.contains(RequestFlags::NO_FALLBACK) => {
                self.write_zeroes_out(offset, len, durable, workplace.bounce)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The ways that do not write the zeroes one by one; `EOPNOTSUPP` if there is none.
    fn zero_at_once(&self, offset: u64, len: u64, flags: RequestFlags) -> Result<(), i32> {
        if flags.contains(RequestFlags::MAY_UNMAP) && self.info.unmapped != crate::Unmapped::Ignored {
            match self.allocate(HOLE, offset, len) {
                Err(libc::EOPNOTSUPP) => {}
                outcome => return outcome,
            }
        }
        if self.kind == Kind::BlockDevice {
            // The kernel would write the zeroes out for a drive that cannot.
            let writes_out = !self.info.fast_write_zeroes && flags.contains(RequestFlags::NO_FALLBACK);
            return if writes_out { Err(libc::EOPNOTSUPP) } else { self.allocate(ZERO, offset, len) };
        }
        match self.allocate(ZERO, offset, len) {
            Err(libc::EOPNOTSUPP) => {}
            outcome => return outcome,
        }
        self.allocate(HOLE, offset, len)?;
        self.allocate(FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), i32> {
        loop {
            match self.medium.allocate(mode, offset, len) {
                Ok(()) => return Ok(()),
                Err(libc::EINTR) => {}
                // Old kernels and some file systems say "no such device" or "no such call".
                Err(libc::ENODEV | libc::ENOSYS | libc::EOPNOTSUPP) => return Err(libc::EOPNOTSUPP),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The part of a range that begins and ends on multiples of `unit`, a power of two; begins at `offset` and is empty
    /// if there is none.
    fn inner(&self, offset: u64, len: u64, unit: u32) -> (u64, u64) {
        let mask = u64::from(unit) - 1;
        let start = offset.saturating_add(mask) & !mask;
        let end = (offset + len) & !mask;
        if start < end { (start, end) } else { (offset, offset) }
    }
}
