//! Opening a file or block device: options, flags, locks, what it is like.

use super::alignment::Alignment;
use super::bounce::BounceBuffer;
use super::cache_mode::CacheMode;
use super::lock::{Access, LockError, lock};
use super::medium::Medium;
use super::open_file::{Kind, OpenFile};
use super::transfer::MAX_BYTES;
use crate::disk::{DiskInfo, Unmapped};
use crate::format::{self, Format};
use crate::registry::OpenError;
use crate::spec::DiskSpec;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::fs::{fallocate, fcntl_getfl, fcntl_setfl, fstat, open, seek};
use rustix::io::Errno;
use std::fmt::Display;
use std::path::PathBuf;

/// Which engine moves the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Aio {
    /// io_uring where it works, threads elsewhere.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// What the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A raw disk, as far as its name goes: not if it begins like an image of another format.
    Raw,
    /// A raw disk, because somebody has said so: whatever it begins with is the guest's data.
    SaidRaw,
    /// The image of a format, which grows as the format wants.
    Image,
}

/// What the name of a file disk says.
pub(super) struct FileOptions {
    pub path: PathBuf,
    pub content: Content,
    pub cache: CacheMode,
    pub aio: Aio,
    pub read_only: bool,
    pub discard: bool,
}

impl FileOptions {
    /// Takes the options of a raw disk out of a spec, of which nothing may then be left.
    pub fn take(mut spec: DiskSpec) -> Result<Self, OpenError> {
        let content = match (format::take(&mut spec)?, format::of_name(spec.location())) {
            (Some(Format::Raw), _) => Content::SaidRaw,
            (None, Format::Raw) => Content::Raw,
            (Some(Format::Qcow2), _) | (None, Format::Qcow2) => {
                return Err(unusable(spec.location(), "is a qcow2 image, not a raw disk"));
            }
        };
        let options = Self::take_some(&mut spec, content)?;
        spec.finish()?;
        Ok(options)
    }

    /// Takes a file's options out of a spec and leaves others there.
    pub fn take_some(spec: &mut DiskSpec, content: Content) -> Result<Self, OpenError> {
        Ok(Self {
            path: PathBuf::from(spec.location()),
            content,
            cache: spec.take_word("cache", CacheMode::WORDS)?.unwrap_or_default(),
            aio: spec
                .take_word(
                    "aio",
                    &[("auto", Aio::Auto), ("io_uring", Aio::Uring), ("threads", Aio::Threads)],
                )?
                .unwrap_or_default(),
            read_only: spec.take_switch("readonly")?.unwrap_or(false),
            discard: spec.take_word("discard", &[("unmap", true), ("ignore", false)])?.unwrap_or(true),
        })
    }

    /// Opens the file.
    pub fn open(self) -> Result<OpenFile, OpenError> {
        self.open_with(|alignment| alignment)
    }

    /// Opens the file; `adjust` may ask for more alignment than the file does.
    pub fn open_with(self, adjust: impl FnOnce(Alignment) -> Alignment) -> Result<OpenFile, OpenError> {
        let fd = self.open_fd()?;
        let stat = fstat(&fd).map_err(|e| self.host("cannot look at it", e))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::BlockDevice => Kind::BlockDevice,
            _ => return Err(self.unusable("is neither a regular file nor a block device")),
        };
        let access = match (self.read_only, self.content) {
            (true, _) => Access::Read,
            (false, Content::Image) => Access::WriteAndResize,
            (false, _) => Access::Write,
        };
        lock(fd.as_fd(), access).map_err(|error| match error {
            LockError::Written => self
                .unusable("another process writes to it (a QEMU, qemu-img or ringpair): end that one first"),
            LockError::InUse if self.read_only => {
                self.unusable("another process has it for itself: end that one first")
            }
            LockError::InUse => self.unusable(
                "another process uses it (a QEMU, qemu-img or ringpair): end that one first, or open it with \
                 readonly=on in both",
            ),
            LockError::Host(error) => self.host("cannot lock it", error),
        })?;
        let capacity = seek(&fd, SeekFrom::End(0)).map_err(|e| self.host("cannot find out its size", e))?;
        if capacity == 0 {
            return Err(self.unusable("is empty: give it a size first, as in `truncate -s 10G FILE`"));
        }
        let alignment = adjust(self.alignment(&fd)?);
        let info = self.info(&fd, &stat, kind, capacity, alignment);
        let tail = self.open_tail(&fd, &info)?;
        self.check_header(&fd)?;
        let image = self.content == Content::Image;
        let (medium, tail) = (Medium::Host(fd), tail.map(Medium::Host));
        let mut file = OpenFile::new(self.path, medium, tail, kind, self.cache, alignment, info, image);
        file.discard = self.discard;
        Ok(file)
    }

    fn open_fd(&self) -> Result<OwnedFd, OpenError> {
        // Non-blocking at first, so that opening a FIFO by mistake does not hang.
        let mut flags = self.access() | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if self.cache.direct() {
            flags |= OFlags::DIRECT;
        }
        let fd = open(&self.path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::INVAL if self.cache.direct() => self.no_direct(),
            Errno::ACCESS | Errno::ROFS | Errno::PERM if !self.read_only => {
                self.host("cannot open it for writing (readonly=on opens it for reading)", errno)
            }
            Errno::ISDIR => self.unusable("is a directory"),
            errno => self.host("cannot open", errno),
        })?;
        let blocking = fcntl_getfl(&fd).and_then(|flags| fcntl_setfl(&fd, flags - OFlags::NONBLOCK));
        blocking.map_err(|errno| self.host("cannot open", errno))?;
        Ok(fd)
    }

    fn access(&self) -> OFlags {
        if self.read_only { OFlags::RDONLY } else { OFlags::RDWR }
    }

    fn no_direct(&self) -> OpenError {
        self.unusable("its file system has no O_DIRECT: use cache=writeback or cache=writethrough")
    }

    fn alignment(&self, fd: &OwnedFd) -> Result<Alignment, OpenError> {
        if !self.cache.direct() {
            return Ok(Alignment::NONE);
        }
        match Alignment::probe(fd.as_fd()) {
            Ok(Some(alignment)) => Ok(alignment),
            Ok(None) => Err(self.no_direct()),
            Err(error) => Err(self.host("cannot read", error)),
        }
    }

    /// A second descriptor, through the page cache, for a file whose last block `O_DIRECT` cannot write.
    fn open_tail(&self, fd: &OwnedFd, info: &DiskInfo) -> Result<Option<OwnedFd>, OpenError> {
        // An image may just grow to the end of that block.
        let whole = info.capacity.is_multiple_of(u64::from(info.request_alignment));
        if self.read_only || whole || self.content == Content::Image {
            return Ok(None);
        }
        // By descriptor: the path may name another file by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map(Some)
            .map_err(|errno| self.host("cannot open it a second time, through the page cache", errno))
    }

    /// A guest can write what it likes into its raw disk; that must not turn it into an image that names other files.
    fn check_header(&self, fd: &OwnedFd) -> Result<(), OpenError> {
        if self.content != Content::Raw {
            return Ok(());
        }
        let buffer = BounceBuffer::new(64 << 10, 64 << 10);
        // SAFETY: reads into a buffer of that length, of which no slice exists yet.
        let n = unsafe { libc::pread(fd.as_raw_fd(), buffer.base().cast(), buffer.len(), 0) };
        if n < 0 {
            return Err(self.host("cannot read", std::io::Error::last_os_error()));
        }
        if buffer.bytes()[..n as usize].starts_with(&format::QCOW2_MAGIC) {
            return Err(self.unusable(
                "its name says raw, its header says qcow2: say which with format= (raw keeps the header as data)",
            ));
        }
        Ok(())
    }

    fn info(&self, fd: &OwnedFd, stat: &Stat, kind: Kind, capacity: u64, alignment: Alignment) -> DiskInfo {
        let mut info = DiskInfo {
            capacity,
            logical_block_size: 512,
            physical_block_size: block_size(stat.st_blksize as u64),
            request_alignment: alignment.request,
            memory_alignment: alignment.memory,
            max_transfer: MAX_BYTES as u32,
            volatile_cache: self.cache.volatile_cache(),
            read_only: self.read_only,
            unmapped: Unmapped::Ignored,
            discard_granularity: block_size(stat.st_blksize as u64),
            fast_write_zeroes: false,
            optimal_io: 0,
            atomic_write: 512,
        };
        match kind {
            Kind::Regular => {
                // Beyond the end there is nothing to punch, so this only says whether the file system can.
                let beyond = capacity.next_multiple_of(1 << 20);
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let can_punch = !self.read_only && fallocate(fd, hole, beyond, 4096).is_ok();
                info.fast_write_zeroes = can_punch;
                if can_punch && self.discard {
                    info.unmapped = Unmapped::Zeroes;
                }
            }
            Kind::BlockDevice => {
                let limit = |name| device_limit(stat.st_rdev, name);
                info.logical_block_size = limit("logical_block_size").map_or(512, block_size);
                info.physical_block_size =
                    limit("physical_block_size").map_or(4096, block_size).max(info.logical_block_size);
                info.atomic_write = info.logical_block_size;
                info.optimal_io = limit("optimal_io_size").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
                info.discard_granularity = limit("discard_granularity")
                    .map_or(info.logical_block_size, block_size)
                    .max(info.logical_block_size);
                info.fast_write_zeroes = limit("write_zeroes_max_bytes").unwrap_or(0) > 0;
                if self.discard && !self.read_only && limit("discard_max_bytes").unwrap_or(0) > 0 {
                    info.unmapped = Unmapped::Unspecified;
                }
            }
        }
        info
    }

    fn unusable(&self, reason: &str) -> OpenError {
        unusable(self.path.display(), reason)
    }

    fn host(&self, action: &'static str, source: impl Into<std::io::Error>) -> OpenError {
        OpenError::Host { location: self.path.display().to_string(), action, source: source.into() }
    }
}

fn unusable(location: impl Display, reason: &str) -> OpenError {
    OpenError::Unusable { location: location.to_string(), reason: reason.to_owned() }
}

/// A block size as the host gives it, made one that can be counted with: a power of two from 512 to 64 KiB.
fn block_size(said: u64) -> u32 {
    if said.is_power_of_two() { said.clamp(512, 64 << 10) as u32 } else { 4096 }
}

/// A limit of a block device's queue, from sysfs; a partition has its drive's.
fn device_limit(device: u64, name: impl Display) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    ["queue", "../queue"].iter().find_map(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}
