//! A file that is not there, below the engines: what the page cache holds, what the medium holds, and a power cut at any
//! moment in between.
//!
//! A [`SimulatedFile`] takes the kernel's place under a [`FileDisk`]: its system calls (`medium.rs`) and its rings
//! (`ring.rs`), nothing above them. Both engines, every cache mode and what is stacked on a file disk run as they are.
//! It keeps a *log* of what it was asked: when each operation was handed over, when it took effect in the page cache,
//! when it was reported done. From the log a [`PowerCut`] works out what the medium may hold at a moment: like Linux's
//! dm-log-writes, but for the calls that a file's user makes.
//!
//! What it promises is what Linux promises, and no more:
//!
//! * an `fdatasync` that succeeds makes durable what had been reported done before it was handed over;
//! * a write with `RWF_DSYNC` makes its own range durable, and nothing else;
//! * everything else may be on the medium or not, sector by sector (512 bytes), whatever its order: a write in part, a
//!   later write without an earlier one, a hole punched here but not there, the file as long as it was or as it is.
//!   `O_DIRECT` changes nothing of that: the drive has a cache;
//! * after an `fdatasync` or an `RWF_DSYNC` write has failed, what was to be made durable is lost for later ones too: the
//!   kernel reports it once;
//! * a ring completes its entries in any order, and moves no data before it has them.
//!
//! A [hook](SimulatedFile::hook) decides, operation by operation, what fails, falls short or *lies*: reports durable
//! what is not. [`moody`] is a medium that no disk's user may notice. Lies are for checking the checkers: a disk on a
//! medium that ignores fdatasync loses what one loses that never sends it.
//!
//! Several files can be on one medium, which has one clock ([`SimulatedFile::beside`]): an image finds its data file by
//! its name, and the power fails for both at the same moment.
//!
//! Where to start reading: `log.rs`, then `power_cut.rs`. Workloads and what a disk has promised of them are in
//! [`crate::contract::durability`].

mod calls;
mod contents;
mod folder;
mod log;
mod moody;
mod power_cut;
mod ring;

pub use contents::Contents;
pub use log::{Asked, Verdict, once};
pub use moody::moody;
pub use power_cut::PowerCut;

pub(super) use calls::Descriptor;
pub(super) use ring::SimulatedRing;

use super::FileDisk;
use super::alignment::Alignment;
use super::medium::Medium;
use super::open::{Content, FileOptions};
use super::open_file::{Kind, OpenFile};
use super::pool::Pool;
use crate::disk::{DiskInfo, Unmapped};
use crate::registry::OpenError;
use crate::spec::DiskSpec;
use folder::Folder;
use log::Log;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a medium writes as a whole or not at all.
pub const SECTOR: usize = 512;

/// What `O_DIRECT` asks of ranges on a simulated file: as a drive with 4096-byte sectors, so that guests' 512-byte blocks
/// are read, changed and written back.
const REQUEST_ALIGNMENT: u32 = 4096;

/// What `O_DIRECT` asks of memory.
const MEMORY_ALIGNMENT: u32 = 512;

/// The name of the first file on a medium.
const NAME: &str = "simulated";

/// A simulated file. Clones are the same file.
#[derive(Clone)]
pub struct SimulatedFile {
    log: Arc<Mutex<Log>>,
    /// The files on its medium.
    folder: Arc<Folder>,
}

impl SimulatedFile {
    /// A file that holds `contents`, durably. `seed` decides the order of what rings do.
    pub fn new(contents: impl Into<Contents>, seed: u64) -> Self {
        Self::in_folder(Arc::default(), NAME, contents.into(), seed)
    }

    /// Another file on the same medium: the one that an image in this one means by `name`.
    pub fn beside(&self, name: &str, contents: impl Into<Contents>, seed: u64) -> Self {
        Self::in_folder(self.folder.clone(), name, contents.into(), seed)
    }

    fn in_folder(folder: Arc<Folder>, name: &str, contents: Contents, seed: u64) -> Self {
        let log = Arc::new(Mutex::new(Log::new(contents, seed, folder.clock())));
        folder.add(name, log.clone());
        Self { log, folder }
    }

    /// The file on its medium that has this name.
    fn named(&self, path: &Path) -> Option<Self> {
        Some(Self { log: self.folder.find(path)?, folder: self.folder.clone() })
    }

    /// Opens it as a raw disk. `options` are those of a file, as in `cache=none,aio=io_uring`; `aio=auto` is io_uring.
    ///
    /// # Errors
    ///
    /// Options that are none.
    pub fn open(&self, options: &str) -> Result<FileDisk, OpenError> {
        Ok(self.open_with(FileOptions::take(self.spec(options)?)?))
    }

    /// Opens it as the file of an image, as [`FileDisk::open_image`] does.
    ///
    /// # Errors
    ///
    /// Options that are none of a file's.
    pub fn open_image(&self, options: &str) -> Result<FileDisk, OpenError> {
        let mut spec = self.spec(options)?;
        let options = FileOptions::take_some(&mut spec, Content::Image)?;
        spec.finish()?;
        Ok(self.open_with(options))
    }

    fn spec(&self, options: &str) -> Result<DiskSpec, OpenError> {
        Ok(format!("{NAME},{options}").parse()?)
    }

    pub(super) fn open_with(&self, options: FileOptions) -> FileDisk {
        let direct = options.cache.direct();
        let alignment = if direct {
            Alignment { request: REQUEST_ALIGNMENT, memory: MEMORY_ALIGNMENT }
        } else {
            Alignment::NONE
        };
        let capacity = self.log().contents().len() as u64;
        let info = DiskInfo {
            capacity,
            logical_block_size: 512,
            physical_block_size: 4096,
            request_alignment: alignment.request,
            memory_alignment: alignment.memory,
            max_transfer: super::transfer::MAX_BYTES as u32,
            volatile_cache: options.cache.volatile_cache(),
            read_only: options.read_only,
            unmapped: if options.discard { Unmapped::Zeroes } else { Unmapped::Ignored },
            discard_granularity: 4096,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: SECTOR as u32,
        };
        let medium = Medium::Simulated(Descriptor::new(self, direct.then_some(alignment)));
        let image = options.content == Content::Image;
        let has_tail = !image && !capacity.is_multiple_of(u64::from(alignment.request));
        let tail = has_tail.then(|| Medium::Simulated(Descriptor::new(self, None)));
        let (path, kind, cache) = (options.path, Kind::Regular, options.cache);
        let file = OpenFile::new(path, medium, tail, kind, cache, alignment, info, image);
        FileDisk { file: Arc::new(file), pool: Arc::new(Pool::new()), aio: options.aio }
    }

    /// Asks `hook` what becomes of each operation from now on.
    pub fn hook(&self, hook: impl FnMut(&Asked) -> Verdict + Send + 'static) {
        self.log().set_hook(Box::new(hook));
    }

    /// The moment: how many entries the logs of its medium's files have.
    pub fn now(&self) -> u64 {
        self.log().now()
    }

    /// What the page cache holds: what is left when the process is killed and the machine runs on.
    pub fn contents(&self) -> Contents {
        self.log().contents().clone()
    }

    /// What the medium may hold at any moment from the beginning until now.
    pub fn power_cut(&self) -> PowerCut {
        PowerCut::new(&self.log())
    }

    fn address(&self) -> u64 {
        Arc::as_ptr(&self.log).addr() as u64
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
