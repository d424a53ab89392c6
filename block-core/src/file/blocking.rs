//! Requests carried out with blocking system calls: all of them under `aio=threads`, and those that io_uring cannot take
//! as they are.
//!
//! With `O_DIRECT`, memory or ranges that are not aligned go through a [`BounceBuffer`], and a write that begins or
//! ends inside a block reads it, changes it and writes it back, kept apart from other writes by
//! [`crate::write_ranges`]. The last bytes of a file whose size is not a multiple of the alignment cannot be written
//! that way without making the file longer: they go through the page cache, durable at once.

use super::bounce::BounceBuffer;
use super::medium::Medium;
use super::open_file::OpenFile;
use super::transfer::Transfer;
use crate::request::{Operation, Request, RequestFlags, Segment};
use crate::segments;
use crate::write_ranges::{Exclusive, Lane};
use std::sync::atomic::Ordering;

/// Calls for one range that may end inside a block before that is an error.
const MAX_SHORT_CALLS: u32 = 16;

/// A request as it is handed to a thread that may block.
pub(super) struct Job {
    pub operation: Operation,
    pub flags: RequestFlags,
    pub transfer: Transfer,
}

impl Job {
    /// No job, with what room there is for segments.
    pub const fn none(transfer: Transfer) -> Self {
        Self { operation: Operation::Flush, flags: RequestFlags::NONE, transfer }
    }

    pub fn begin(&mut self, request: &Request<'_>) {
        self.operation = request.operation;
        self.flags = request.flags;
        self.transfer.begin(request);
    }
}

/// Where the bytes of a bounced write come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The request's segments.
    Segments(&'a [Segment]),
    /// Nowhere: zeroes.
    Zeroes,
}

/// Room to work in, of one thread and queue.
pub(super) struct Workplace<'a> {
    pub bounce: &'a mut BounceBuffer,
    pub lane: &'a Lane,
    /// The slot of the request, in the lane and everywhere else.
    pub slot: usize,
}

/// What a plain or exclusive write holds while it is under way.
enum Held<'a> {
    Nothing,
    Plain(&'a OpenFile, &'a Lane, usize),
    Exclusive(#[allow(dead_code)] Exclusive<'a>), // held for its `Drop`
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Self::Plain(file, lane, slot) = self {
            file.ranges.leave(lane, *slot);
        }
    }
}

impl OpenFile {
    /// Carries a request out, which [`OpenFile::settled`] has let through. Fails with an errno.
    ///
    /// # Safety
    ///
    /// The job's segments are valid until it returns.
    pub unsafe fn execute(&self, job: &mut Job, workplace: &mut Workplace<'_>) -> Result<(), i32> {
        let (offset, len) = (job.transfer.offset, job.transfer.left);
        let durable = self.durable(job.operation, job.flags);
        match job.operation {
            // SAFETY: handed on from the caller.
            Operation::Read => unsafe { self.read(&mut job.transfer, workplace) },
            // SAFETY: as above.
            Operation::Write => unsafe { self.write(&mut job.transfer, durable, workplace) },
            Operation::Flush => self.sync(),
            Operation::Discard => self.discard(offset, len, durable),
            Operation::WriteZeroes => self.write_zeroes(offset, len, job.flags, durable, workplace),
        }
    }

    unsafe fn read(&self, transfer: &mut Transfer, workplace: &mut Workplace<'_>) -> Result<(), i32> {
        while transfer.left > 0 && self.takes_rest_directly(transfer) {
            match readv(&self.medium, transfer.next_segments(), transfer.offset)? {
                0 if self.image => {
                    // SAFETY: handed on from the caller.
                    unsafe { segments::zero(transfer.segments()) };
                    transfer.advance(transfer.left);
                }
                // The file has been cut off behind our back.
                0 => return Err(libc::EIO),
                n => transfer.advance(n),
            }
        }
        let (offset, len) = (transfer.offset, transfer.left);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let window = self.window(at, len - done, workplace.bounce);
            let end = (window.start + window.len as u64).min(offset + len);
            self.read_bounced(workplace.bounce, 0, window.start, window.len, (end - window.start) as usize)?;
            let n = (end - at) as usize;
            let from = workplace.bounce.base().wrapping_add((at - window.start) as usize);
            // SAFETY: the window is in the bounce buffer; the caller vouches for the segments.
            unsafe { segments::scatter(from, transfer.segments(), done as usize, n) };
            done += n as u64;
        }
        Ok(())
    }

    unsafe fn write(
        &self,
        transfer: &mut Transfer,
        durable: bool,
        workplace: &mut Workplace<'_>,
    ) -> Result<(), i32> {
        let mut held = self.hold(transfer, workplace);
        while transfer.left > 0 && self.takes_rest_directly(transfer) {
            let n = self.writev(&self.medium, transfer.next_segments(), transfer.offset, durable)?;
            transfer.advance(n);
            if !self.aligned(transfer.offset, transfer.left) {
                // Cut short inside a block: what is left has to read that block first.
                drop(held);
                held = self.hold(transfer, workplace);
            }
        }
        let (offset, len) = (transfer.offset, transfer.left);
        // SAFETY: handed on from the caller.
        unsafe {
            self.write_bounced(Source::Segments(transfer.segments()), offset, len, durable, workplace.bounce)?
        };
        drop(held);
        self.sync_if_dsync_refused(durable)
    }

    /// Writes zeroes out one by one.
    pub(super) fn write_zeroes_out(
        &self,
        offset: u64,
        len: u64,
        durable: bool,
        bounce: &mut BounceBuffer,
    ) -> Result<(), i32> {
        // SAFETY: there are no segments.
        unsafe { self.write_bounced(Source::Zeroes, offset, len, durable, bounce)? };
        self.sync_if_dsync_refused(durable)
    }

    /// The second step of a durable write where the file system refuses to do it in one.
    fn sync_if_dsync_refused(&self, durable: bool) -> Result<(), i32> {
        if durable && self.dsync_refused.load(Ordering::Relaxed) { self.sync() } else { Ok(()) }
    }

    fn hold<'a>(&'a self, transfer: &Transfer, workplace: &Workplace<'a>) -> Held<'a> {
        let (offset, len) = (transfer.offset, transfer.left);
        let Workplace { lane, slot, .. } = *workplace;
        if !self.cache.direct() {
            // The kernel keeps writes through the page cache apart.
            Held::Nothing
        } else if self.aligned(offset, len) && self.ranges.enter(lane, slot, offset, len) {
            Held::Plain(self, lane, slot)
        } else {
            Held::Exclusive(self.ranges.exclusive(offset, len))
        }
    }

    /// The whole blocks from the one that `offset` is in, as many as `len` needs and the buffer holds.
    fn window(&self, offset: u64, len: u64, bounce: &BounceBuffer) -> Window {
        let block = u64::from(self.alignment.request);
        let start = offset & !(block - 1);
        let len = (offset - start).saturating_add(len).min(bounce.len() as u64);
        // The buffer is a multiple of the block, so rounding up stays inside it.
        Window { start, len: len.next_multiple_of(block) as usize }
    }

    /// Reads `len` bytes at `offset`, both aligned, to `at` in the bounce buffer; `needed` of them have to be there,
    /// the others may be beyond the end of the file.
    fn read_bounced(
        &self,
        bounce: &mut BounceBuffer,
        at: usize,
        offset: u64,
        len: usize,
        needed: usize,
    ) -> Result<(), i32> {
        debug_assert!(at + len <= bounce.len());
        let mut done = 0;
        let mut short = 0;
        while done < needed {
            let to = [Segment { base: bounce.base().wrapping_add(at + done), len: len - done }];
            let n = readv(&self.medium, &to, offset + done as u64)? as usize;
            done += n;
            if n > 0 && (done >= needed || self.aligned(done as u64, 0)) {
                continue;
            }
            // It ended inside a block, which only the end of the file is a reason for: that block once more, then.
            if n > 0 && short < MAX_SHORT_CALLS && offset + (done as u64) < self.medium.size()? {
                done &= !(self.alignment.request as usize - 1);
                short += 1;
                continue;
            }
            if !self.image || short == MAX_SHORT_CALLS {
                return Err(libc::EIO);
            }
            // SAFETY: `at + len` is inside the buffer.
            unsafe { std::ptr::write_bytes(bounce.base().wrapping_add(at + done), 0, len - done) };
            done = len;
        }
        Ok(())
    }

    /// Writes a range of any alignment through the bounce buffer. The caller holds what keeps others away.
    unsafe fn write_bounced(
        &self,
        source: Source<'_>,
        offset: u64,
        len: u64,
        durable: bool,
        bounce: &mut BounceBuffer,
    ) -> Result<(), i32> {
        let block = u64::from(self.alignment.request);
        // What `O_DIRECT` can write without making the file longer.
        let direct_end = if self.tail.is_some() { self.info.capacity & !(block - 1) } else { u64::MAX };
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let in_tail = at >= direct_end;
            let left = if in_tail { len - done } else { (len - done).min(direct_end - at) };
            let window = if in_tail {
                Window { start: at, len: left.min(bounce.len() as u64) as usize }
            } else {
                self.window(at, left, bounce)
            };
            let end = (window.start + window.len as u64).min(at + left);
            if !in_tail {
                self.read_edges(&window, at, end, bounce)?;
            }
            let n = (end - at) as usize;
            let to = bounce.base().wrapping_add((at - window.start) as usize);
            match source {
                // SAFETY: the window is in the bounce buffer; the caller vouches for the segments.
                Source::Segments(list) => unsafe { segments::gather(list, done as usize, to, n) },
                // SAFETY: as above.
                Source::Zeroes => unsafe { std::ptr::write_bytes(to, 0, n) },
            }
            match (&self.tail, in_tail) {
                // Through the page cache, but past it at once: `cache=none` promises that.
                (Some(tail), true) => self.write_all(tail, bounce, &window, true)?,
                _ => self.write_all(&self.medium, bounce, &window, durable)?,
            }
            done += n as u64;
        }
        Ok(())
    }

    /// Reads those blocks of a window that a write from `at` to `end` covers in part only.
    fn read_edges(&self, window: &Window, at: u64, end: u64, bounce: &mut BounceBuffer) -> Result<(), i32> {
        let block = u64::from(self.alignment.request);
        let last = window.start + window.len as u64 - block;
        let first_in_part = at > window.start;
        if first_in_part {
            self.read_bounced(bounce, 0, window.start, block as usize, block as usize)?;
        }
        if end < last + block && !(first_in_part && last == window.start) {
            self.read_bounced(bounce, (last - window.start) as usize, last, block as usize, block as usize)?;
        }
        Ok(())
    }

    fn write_all(
        &self,
        medium: &Medium,
        bounce: &BounceBuffer,
        window: &Window,
        durable: bool,
    ) -> Result<(), i32> {
        // What can only be written as a whole.
        let block =
            if std::ptr::eq(medium, &raw const self.medium) { self.alignment.request as usize } else { 1 };
        let mut done = 0;
        let mut short = 0;
        while done < window.len {
            let from = [Segment { base: bounce.base().wrapping_add(done), len: window.len - done }];
            done += self.writev(medium, &from, window.start + done as u64, durable)? as usize;
            if !done.is_multiple_of(block) && done < window.len {
                // It ended inside a block: that block once more.
                done &= !(block - 1);
                short += 1;
                if short == MAX_SHORT_CALLS {
                    return Err(libc::EIO);
                }
            }
        }
        Ok(())
    }

    /// One write; durable by `RWF_DSYNC` as long as the file system takes that.
    fn writev(&self, medium: &Medium, segments: &[Segment], offset: u64, durable: bool) -> Result<u64, i32> {
        loop {
            let dsync = durable && !self.dsync_refused.load(Ordering::Relaxed);
            // SAFETY: the caller's segments are valid.
            match unsafe { medium.write(segments, offset, dsync) } {
                Ok(0) => return Err(libc::EIO),
                Ok(n) => return Ok(n as u64),
                Err(libc::EINTR | libc::EAGAIN) => {}
                Err(libc::EOPNOTSUPP) if dsync => self.dsync_refused.store(true, Ordering::Relaxed),
                Err(errno) => {
                    self.write_failed(errno, dsync);
                    return Err(errno);
                }
            }
        }
    }
}

/// Whole blocks that fit into the bounce buffer.
struct Window {
    start: u64,
    len: usize,
}

/// One read.
fn readv(medium: &Medium, segments: &[Segment], offset: u64) -> Result<u64, i32> {
    loop {
        // SAFETY: the caller's segments are valid.
        match unsafe { medium.read(segments, offset) } {
            Ok(n) => return Ok(n as u64),
            Err(libc::EINTR | libc::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
}
