//! What an image format asks of the disk below it.

use crate::disk::Disk;
use crate::file::CacheMode;
use crate::registry::OpenError;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A disk that can hold an image: beside its queues, which carry the guest's data, it can be reached blocking, for the
/// image's metadata, and it grows.
///
/// Requests on its queues may lie behind its end: reads find zeroes there, writes move it. Everything here may block, is
/// safe to call from any thread, and takes any offset and length.
pub trait ImageFile: Disk {
    /// Fills `into` from `offset`; what lies behind the end reads as zeroes.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`, and makes the file longer where it has to.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeroes, with a hole where `may_unmap` lets it and the host has them.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn zero_at(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;

    /// Its size now, in bytes.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn size(&self) -> io::Result<u64>;

    /// Makes it `size` bytes long. New bytes are zeroes.
    ///
    /// # Errors
    ///
    /// What the host said; `ENOSPC` for a block device, which is as long as it is.
    fn resize(&self, size: u64) -> io::Result<()>;

    /// Opens another one the way this one was opened: the backing file or the data file that an image names.
    ///
    /// # Errors
    ///
    /// As for any disk: it is not there, it is in use, it may not be written.
    fn open_beside(&self, path: &Path, read_only: bool) -> Result<Arc<dyn ImageFile>, OpenError>;

    /// The errno that all its writes fail with since something could not be made durable; `None` while they do not.
    fn failed(&self) -> Option<i32>;

    /// How it is cached.
    fn cache_mode(&self) -> CacheMode;

    /// Where it is, for messages and for names that are relative to it.
    fn path(&self) -> &Path;

    /// What tells it from every other file of this host, whatever its names: two that have the same are one.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn identity(&self) -> io::Result<(u64, u64)>;

    /// The same of another file, which [`ImageFile::open_beside`] would open: without opening it.
    ///
    /// # Errors
    ///
    /// What the host said.
    fn identity_of(&self, path: &Path) -> io::Result<(u64, u64)>;
}
