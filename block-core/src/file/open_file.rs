//! An open file or block device: what its queues share.

use super::alignment::Alignment;
use super::bounce::BounceBuffer;
use super::cache_mode::CacheMode;
use super::lock::unlock;
use super::medium::Medium;
use super::transfer::Transfer;
use crate::disk::{DiskInfo, Unmapped};
use crate::request::{Operation, Request, RequestFlags, RequestResult, Segment};
use crate::write_ranges::WriteRanges;
use rustix::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
}

/// An open file or block device.
pub(super) struct OpenFile {
    pub path: PathBuf,
    pub medium: Medium,
    /// The same file through the page cache, where `O_DIRECT` cannot write the last bytes: see [`super::blocking`].
    pub tail: Option<Medium>,
    pub kind: Kind,
    pub cache: CacheMode,
    pub alignment: Alignment,
    pub info: DiskInfo,
    /// It holds the image of a format, and reads as zeroes behind its end.
    pub image: bool,
    /// What `discard=` said.
    pub discard: bool,
    /// Where requests have to end.
    limit: u64,
    /// Keeps read-modify-writes apart; only used with `O_DIRECT`.
    pub ranges: WriteRanges,
    /// Errno of the first failed fdatasync, 0 until there is one.
    failed: AtomicI32,
    /// The file system has refused `RWF_DSYNC`.
    pub dsync_refused: AtomicBool,
}

impl OpenFile {
    #[allow(clippy::too_many_arguments)] // once, from `open`
    pub fn new(
        path: PathBuf,
        medium: Medium,
        tail: Option<Medium>,
        kind: Kind,
        cache: CacheMode,
        alignment: Alignment,
        info: DiskInfo,
        image: bool,
    ) -> Self {
        // A regular file grows where it is written behind its end.
        let limit = if image && kind == Kind::Regular { i64::MAX as u64 } else { info.capacity };
        // The page cache writes whole pages back, so what goes through it is kept apart by pages.
        let block = u64::from(alignment.request).max(rustix::param::page_size() as u64);
        Self {
            path,
            medium,
            tail,
            kind,
            cache,
            alignment,
            info,
            image,
            discard: true,
            limit,
            ranges: WriteRanges::new(block),
            failed: AtomicI32::new(0),
            dsync_refused: AtomicBool::new(false),
        }
    }

    /// A buffer for what has to bounce.
    pub fn bounce_buffer(&self) -> BounceBuffer {
        let alignment = self.alignment.request.max(self.alignment.memory) as usize;
        BounceBuffer::new(BounceBuffer::USUAL_LEN, alignment.max(rustix::param::page_size()))
    }

    /// What can be said of a request without starting it.
    #[inline]
    pub fn settled(&self, request: &Request<'_>) -> Option<RequestResult> {
        if let Some(result) = request.settled(self.limit, self.info.read_only) {
            return Some(result);
        }
        if request.operation == Operation::Read {
            return None;
        }
        if let Err(errno) = self.writable() {
            return Some(request.fail(errno));
        }
        match request.operation {
            Operation::Flush if !self.cache.flushes() => Some(Ok(())),
            Operation::Discard if self.info.unmapped == Unmapped::Ignored => Some(Ok(())),
            _ => None,
        }
    }

    /// Whether the data of a read or write may go between the kernel and its segments as it is.
    #[inline]
    pub fn takes_directly(&self, offset: u64, len: u64, segments: &[Segment]) -> bool {
        let memory = self.alignment.memory as usize - 1;
        !self.cache.direct()
            || self.aligned(offset, len) && segments.iter().all(|s| (s.base.addr() | s.len) & memory == 0)
    }

    /// The same of what is left of one.
    #[inline]
    pub fn takes_rest_directly(&self, rest: &Transfer) -> bool {
        self.takes_directly(rest.offset, rest.left, rest.segments())
    }

    /// Whether a range begins and ends between blocks.
    #[inline]
    pub fn aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len) & (u64::from(self.alignment.request) - 1) == 0
    }

    /// Whether a write has to be durable when it completes.
    #[inline]
    pub fn durable(&self, operation: Operation, flags: RequestFlags) -> bool {
        let fua = flags.contains(RequestFlags::FUA);
        if self.image {
            // What has to be durable is the format's to say: without its metadata, data is nowhere.
            return fua && self.cache.durable(fua);
        }
        // A discard has no FUA, but where the guest has nothing to flush it must not come back either.
        operation != Operation::Read && self.cache.durable(fua)
    }

    /// Whether writes still may be: not after an fdatasync has failed.
    #[inline]
    pub fn writable(&self) -> Result<(), i32> {
        match self.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    /// Notes a failed fdatasync: the kernel reports lost pages once and then forgets them, so what follows could only
    /// succeed by mistake.
    #[cold]
    pub fn sync_failed(&self, errno: i32) {
        tracing::error!(
            path = %self.path.display(),
            error = %std::io::Error::from_raw_os_error(errno),
            "a flush failed: data may be lost, and writes fail until the disk is reopened"
        );
        let _ = self.failed.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes every completed write durable.
    pub fn sync(&self) -> Result<(), i32> {
        self.writable()?;
        loop {
            match self.medium.sync() {
                Ok(()) => return Ok(()),
                Err(libc::EINTR) => {}
                Err(errno) => {
                    self.sync_failed(errno);
                    return Err(errno);
                }
            }
        }
    }

    /// What a failed write means: one that also had to be durable may have taken the report of earlier lost writes,
    /// which no later flush would get.
    #[cold]
    pub fn write_failed(&self, errno: i32, dsync: bool) {
        if dsync && errno == libc::EIO {
            self.sync_failed(errno);
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        match &self.medium {
            Medium::Host(fd) => unlock(fd.as_fd()),
            #[cfg(feature = "contract")]
            Medium::Simulated(_) => {}
        }
    }
}

/// The errno of the system call that just failed.
pub(super) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
