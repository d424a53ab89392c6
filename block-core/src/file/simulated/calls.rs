//! The system calls of a simulated file.

use super::SimulatedFile;
use super::log::{Asked, Log, OperationId, Verdict};
use crate::file::alignment::Alignment;
use crate::request::Segment;
use crate::segments::{gather, scatter};
use rustix::fs::FallocateFlags;
use std::path::Path;

/// A simulated file as a descriptor has it open.
#[derive(Clone)]
pub struct Descriptor {
    file: SimulatedFile,
    /// `O_DIRECT`, and what that asks.
    direct: Option<Alignment>,
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len as u64).sum()
}

impl Descriptor {
    pub(super) fn new(file: &SimulatedFile, direct: Option<Alignment>) -> Self {
        Self { file: file.clone(), direct }
    }

    pub(super) fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.file.log()
    }

    /// `EINVAL` for what `O_DIRECT` does not take.
    pub(super) fn check(&self, segments: &[Segment], offset: u64) -> Result<(), i32> {
        let Some(Alignment { request, memory }) = self.direct else { return Ok(()) };
        let fits = (offset | total(segments)) & (u64::from(request) - 1) == 0
            && segments.iter().all(|s| (s.base.addr() | s.len) & (memory as usize - 1) == 0);
        if fits { Ok(()) } else { Err(libc::EINVAL) }
    }

    /// A read, at once.
    ///
    /// # Safety
    ///
    /// As [`crate::file::medium::Medium::read`].
    pub(in crate::file) unsafe fn read(&self, segments: &[Segment], offset: u64) -> Result<usize, i32> {
        self.check(segments, offset)?;
        let mut log = self.log();
        let len = total(segments);
        let most = match log.judge(Asked::Read { offset, len }) {
            Verdict::Done | Verdict::Lie => len,
            Verdict::Short(n) => (n as u64).clamp(1, len),
            Verdict::Fail(errno) => return Err(errno),
        };
        let from = log.contents().get(offset, most);
        // SAFETY: the caller vouches for the segments, which are at least as long.
        unsafe { scatter(from.as_ptr(), segments, 0, from.len()) };
        Ok(from.len())
    }

    /// A write takes effect.
    ///
    /// # Safety
    ///
    /// The segments are valid for reads.
    pub(super) unsafe fn apply(log: &mut Log, id: OperationId, segments: &[Segment]) {
        log.apply(id, |n| {
            let mut data = vec![0; n];
            // SAFETY: the caller vouches for the segments, which are at least as long as the operation.
            unsafe { gather(segments, 0, data.as_mut_ptr(), n) };
            data
        });
    }

    pub(super) fn issue_write(
        &self,
        segments: &[Segment],
        offset: u64,
        dsync: bool,
    ) -> Result<OperationId, i32> {
        self.check(segments, offset)?;
        Ok(self.log().issue(Asked::Write { offset, len: total(segments), dsync }))
    }

    /// Lets other threads in between the steps of a call.
    fn pause(&self) {
        let times = self.log().random().below(4);
        for _ in 0..times {
            std::thread::yield_now();
        }
    }

    /// # Safety
    ///
    /// As [`crate::file::medium::Medium::write`].
    pub(in crate::file) unsafe fn write(
        &self,
        segments: &[Segment],
        offset: u64,
        dsync: bool,
    ) -> Result<usize, i32> {
        let id = self.issue_write(segments, offset, dsync)?;
        self.pause();
        // SAFETY: handed on from the caller.
        unsafe { Self::apply(&mut self.log(), id, segments) };
        self.pause();
        self.log().complete(id)
    }

    fn call(&self, asked: Asked) -> Result<(), i32> {
        let id = self.log().issue(asked);
        self.pause();
        self.log().apply(id, |_| Vec::new());
        self.pause();
        self.log().complete(id).map(|_| ())
    }

    pub(in crate::file) fn sync(&self) -> Result<(), i32> {
        self.call(Asked::Sync)
    }

    pub(in crate::file) fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), i32> {
        let zeroes = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        let end = offset.saturating_add(len);
        let keeps_len = mode.contains(FallocateFlags::KEEP_SIZE);
        if !keeps_len && end > self.log().contents().len() as u64 {
            self.call(Asked::SetLen(end))?;
        }
        // Space alone changes nothing that could be seen.
        if zeroes { self.call(Asked::Zero { offset, len }) } else { Ok(()) }
    }

    pub(in crate::file) fn size(&self) -> u64 {
        self.log().contents().len() as u64
    }

    pub(in crate::file) fn set_len(&self, len: u64) -> Result<(), i32> {
        self.call(Asked::SetLen(len))
    }

    /// No file of the host has device 0.
    pub(in crate::file) fn identity(&self) -> (u64, u64) {
        (0, self.file.address())
    }

    /// Another file of its medium. Fails with an errno.
    pub(in crate::file) fn named(&self, path: &Path) -> Result<SimulatedFile, i32> {
        self.file.named(path).ok_or(libc::ENOENT)
    }

    pub(in crate::file) fn identity_of(&self, path: &Path) -> Result<(u64, u64), i32> {
        self.named(path).map(|file| (0, file.address()))
    }
}
