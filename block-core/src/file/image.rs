//! A file that holds an image: reached blocking, for the image's metadata, by the same rules as by its queues.

use super::FileDisk;
use super::blocking::{Job, Workplace};
use super::bounce::BounceBuffer;
use super::cache_mode::CacheMode;
use super::medium::Medium;
use super::open::{Content, FileOptions};
use super::open_file::Kind;
use super::transfer::Transfer;
use crate::image_file::ImageFile;
use crate::registry::OpenError;
use crate::request::{Operation, Request, RequestFlags, Segment};
use crate::spec::DiskSpec;
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

thread_local! {
    /// Where the requests of this thread bounce; made when the first one has to.
    static BOUNCE: RefCell<Option<BounceBuffer>> = const { RefCell::new(None) };
}

/// As much as any file may ask for, so that one buffer serves all of them.
const ALIGNMENT: usize = 64 << 10;

impl FileDisk {
    /// The file of an image; the format has taken its own options out of the spec.
    ///
    /// # Errors
    ///
    /// As [`FileDisk::open`].
    pub fn open_image(mut spec: DiskSpec) -> Result<Self, OpenError> {
        let options = FileOptions::take_some(&mut spec, Content::Image)?;
        spec.finish()?;
        Self::open_with(options)
    }

    /// Whether `discard=` lets a discard give something back.
    pub(crate) fn info_discards(&self) -> bool {
        self.file.discard
    }

    /// Carries out a request with blocking calls.
    fn carry_out(&self, request: Request<'_>) -> io::Result<()> {
        if let Some(result) = self.file.settled(&request) {
            return result.map_err(|error| io::Error::from_raw_os_error(error.errno));
        }
        let mut job = Job::none(Transfer::empty());
        job.begin(&request);
        let lane = self.file.ranges.lane(1);
        let result = BOUNCE.with_borrow_mut(|bounce| {
            let bounce = bounce.get_or_insert_with(|| BounceBuffer::new(BounceBuffer::USUAL_LEN, ALIGNMENT));
            let mut workplace = Workplace { bounce, lane: &lane, slot: 0 };
            // SAFETY: the segments are slices that our caller keeps borrowed until we return.
            unsafe { self.file.execute(&mut job, &mut workplace) }
        });
        self.file.ranges.remove_lane(&lane);
        result.map_err(io::Error::from_raw_os_error)
    }
}

impl ImageFile for FileDisk {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let segments = [Segment { base: into.as_mut_ptr(), len: into.len() }];
        let (operation, len, flags) = (Operation::Read, into.len() as u64, RequestFlags::NONE);
        self.carry_out(Request { operation, offset, len, segments: &segments, flags, token: 0 })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A write only reads its segments.
        let segments = [Segment { base: data.as_ptr().cast_mut(), len: data.len() }];
        let (operation, len, flags) = (Operation::Write, data.len() as u64, RequestFlags::NONE);
        self.carry_out(Request { operation, offset, len, segments: &segments, flags, token: 0 })
    }

    fn zero_at(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let flags = if may_unmap { RequestFlags::MAY_UNMAP } else { RequestFlags::NONE };
        let operation = Operation::WriteZeroes;
        self.carry_out(Request { operation, offset, len, segments: &[], flags, token: 0 })
    }

    fn size(&self) -> io::Result<u64> {
        self.file.medium.size().map_err(io::Error::from_raw_os_error)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        match self.file.kind {
            Kind::Regular => loop {
                match self.file.medium.set_len(size) {
                    Err(libc::EINTR) => {}
                    outcome => return outcome.map_err(io::Error::from_raw_os_error),
                }
            },
            Kind::BlockDevice if size <= self.file.info.capacity => Ok(()),
            Kind::BlockDevice => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    fn open_beside(&self, path: &Path, read_only: bool) -> Result<Arc<dyn ImageFile>, OpenError> {
        let options = FileOptions {
            path: path.to_owned(),
            content: Content::Image,
            cache: self.file.cache,
            aio: self.aio,
            read_only,
            discard: self.file.discard,
        };
        match &self.file.medium {
            Medium::Host(_) => Ok(Arc::new(Self::open_with(options)?)),
            #[cfg(feature = "contract")]
            Medium::Simulated(file) => match file.named(path) {
                Ok(file) => Ok(Arc::new(file.open_with(options))),
                Err(errno) => Err(OpenError::Host {
                    location: path.display().to_string(),
                    action: "cannot open",
                    source: io::Error::from_raw_os_error(errno),
                }),
            },
        }
    }

    fn failed(&self) -> Option<i32> {
        self.file.writable().err()
    }

    fn cache_mode(&self) -> CacheMode {
        self.file.cache
    }

    fn path(&self) -> &Path {
        &self.file.path
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.medium.identity().map_err(io::Error::from_raw_os_error)
    }

    fn identity_of(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.file.medium.identity_of(path).map_err(io::Error::from_raw_os_error)
    }
}
