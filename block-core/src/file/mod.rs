//! Files and block devices of the host: `PATH`, or `file:PATH` (QEMU's file-posix).
//!
//! | option | |
//! |---|---|
//! | `cache=` | `writeback` (default), `none`, `writethrough`, `directsync`, `unsafe`: see [`CacheMode`] |
//! | `aio=` | `auto` (default: io_uring where it works), `io_uring`, `threads` |
//! | `readonly=` | `off` (default), `on` |
//! | `discard=` | `unmap` (default): a discard gives the range back; `ignore` |
//! | `format=` | `raw`; without it a file that begins like a qcow2 image is refused |
//!
//! What a request meets, in order: `open_file.rs` says what can be said at once; then an engine takes it, `uring.rs` or
//! `threads.rs`. `blocking.rs` carries out, on the threads of `pool.rs`, what the kernel does not take as it is, among
//! it everything that is not aligned for `O_DIRECT`; `write_ranges.rs` keeps that apart from other writes. Below them are
//! the kernel's system calls, `medium.rs`, and its rings, `ring.rs`.

mod alignment;
mod blocking;
mod bounce;
mod cache_mode;
mod discard;
mod image;
pub(crate) mod lock;
mod medium;
mod open;
mod open_file;
mod pool;
mod ring;
#[cfg(feature = "contract")]
pub mod simulated;
mod threads;
pub(crate) mod transfer;
mod uring;

pub use cache_mode::CacheMode;

use crate::disk::{Disk, DiskInfo};
use crate::queue::Queue;
use crate::registry::OpenError;
use crate::spec::DiskSpec;
use medium::Medium;
use open::{Aio, FileOptions};
use open_file::OpenFile;
use pool::Pool;
use ring::KernelRing;
use std::io;
use std::sync::Arc;
use uring::UringQueue;

/// A file or block device of the host.
pub struct FileDisk {
    file: Arc<OpenFile>,
    pool: Arc<Pool>,
    aio: Aio,
}

impl FileDisk {
    /// The disk that `PATH[,option=value…]` names.
    ///
    /// # Errors
    ///
    /// An option that is wrong, a file that is not there, in use by somebody else, or not what its name says.
    pub fn open(spec: DiskSpec) -> Result<Self, OpenError> {
        Self::open_with(FileOptions::take(spec)?)
    }

    fn open_with(options: FileOptions) -> Result<Self, OpenError> {
        let asked = options.aio;
        let file = options.open()?;
        let aio = match asked {
            Aio::Threads => Aio::Threads,
            asked => match (ring::probe(), asked) {
                (Ok(()), asked) => asked,
                (Err(error), Aio::Auto) => {
                    tracing::info!(%error, path = %file.path.display(), "no io_uring here: using threads");
                    Aio::Threads
                }
                (Err(source), _) => {
                    return Err(OpenError::Host {
                        location: file.path.display().to_string(),
                        action: "aio=io_uring does not work here (aio=threads does)",
                        source,
                    });
                }
            },
        };
        Ok(Self { file: Arc::new(file), pool: Arc::new(Pool::new()), aio })
    }

    /// The engine that moves the data: `io_uring` or `threads`.
    pub fn engine(&self) -> &'static str {
        match self.aio {
            Aio::Threads => "threads",
            Aio::Uring | Aio::Auto => "io_uring",
        }
    }
}

fn open_ring(file: Arc<OpenFile>, pool: Arc<Pool>, depth: u16) -> io::Result<Box<dyn Queue>> {
    Ok(match file.medium {
        Medium::Host(_) => Box::new(UringQueue::<KernelRing>::open(file, pool, depth)?),
        #[cfg(feature = "contract")]
        Medium::Simulated(_) => Box::new(UringQueue::<simulated::SimulatedRing>::open(file, pool, depth)?),
    })
}

impl Disk for FileDisk {
    fn info(&self) -> DiskInfo {
        self.file.info.clone()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        let (file, pool) = (self.file.clone(), self.pool.clone());
        let threads = |file, pool| -> io::Result<Box<dyn Queue>> {
            Ok(Box::new(threads::ThreadsQueue::open(file, pool, depth)?))
        };
        if self.aio == Aio::Threads {
            return threads(file, pool);
        }
        match open_ring(file.clone(), pool.clone(), depth) {
            Ok(queue) => Ok(queue),
            // The first ring worked; this one may have met a limit on memory or descriptors.
            Err(error) if self.aio == Aio::Auto => {
                tracing::warn!(%error, path = %file.path.display(), "no ring for this queue: using threads");
                threads(file, pool)
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.file.cache == CacheMode::Unsafe {
            return Ok(());
        }
        self.file.sync().map_err(io::Error::from_raw_os_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alignment::Alignment;

    /// A file with `O_DIRECT` that we hold to coarser alignment than its drive does: so that bounces, and blocks that
    /// are read, changed and written back, are tested whatever the drive. Finer than the drive would not work, so 4096.
    fn coarse(aio: &str, size: u64, read_only: bool) -> Option<Arc<dyn Disk>> {
        // Beside the tests: /tmp may be a tmpfs, which is not what disks are on.
        let exe = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap();
        file.as_file().set_len(size).unwrap();
        let switch = if read_only { "on" } else { "off" };
        let name = format!("{},cache=none,aio={aio},readonly={switch}", file.path().display());
        let options = FileOptions::take(name.parse().unwrap()).unwrap();
        let aio = options.aio;
        let coarse = Alignment { request: 4096, memory: 4096 };
        match options.open_with(|probed| Alignment { request: probed.request.max(4096), ..coarse }) {
            Ok(file) => Some(Arc::new(FileDisk { file: Arc::new(file), pool: Arc::new(Pool::new()), aio })),
            Err(error) if error.to_string().contains("no O_DIRECT") => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    crate::contract_suite!(uring_coarse, |read_only| coarse("io_uring", 8 << 20, read_only));
    crate::contract_suite!(threads_coarse, |read_only| coarse("threads", 8 << 20, read_only));
    crate::contract_suite!(uring_coarse_odd_size, |read_only| coarse("io_uring", (8 << 20) + 777, read_only));
    crate::contract_suite!(threads_coarse_odd_size, |read_only| coarse(
        "threads",
        (8 << 20) + 777,
        read_only
    ));
}
