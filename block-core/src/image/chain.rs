//! An image as a file, with the files that it needs: opened and locked, by the rules of
//! [`crate::qcow2`]'s `backing_chain.rs`.

use super::{Format, ImageError, Result};
use crate::file::lock::{self, LockError};
use crate::qcow2::backing_chain::{self, ChainError, ChainFile, Identity, Link, Need};
use crate::qcow2::layout::header::read_up_to;
use crate::qcow2::layout::{Header, Unsupported};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read. Others may read too, and nobody may write.
    Read,
    /// To read, whatever others do meanwhile (qemu-img's `-U`).
    Share,
    /// To write. Nobody else may use it.
    Write,
}

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The file, locked.
    pub file: File,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// The header, if it is qcow2.
    pub header: Option<Header>,
    /// The external data file, if it has one, and where that is.
    pub data_file: Option<(PathBuf, File)>,
    /// Whether it may be written to.
    pub writable: bool,
}

/// An image and its backing files: the image itself first.
#[derive(Debug)]
pub struct Chain {
    /// At least one.
    layers: Vec<Layer>,
}

impl Chain {
    /// Opens an image with its backing files, which are only read. Without a format, what the first bytes say decides.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be used, and says why.
    pub fn open(path: &Path, format: Option<Format>, access: Access) -> Result<Self> {
        let (file, format) = OpenedFile::find_format(path, format, access)?;
        let links = backing_chain::open(file, format, None)?;
        Ok(Self { layers: links.into_iter().map(Layer::of).collect::<Result<_>>()? })
    }

    /// A chain of one image that needs no other.
    pub fn of(layer: Layer) -> Self {
        Self { layers: vec![layer] }
    }

    /// The image itself.
    pub fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// All of it.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The backing files.
    pub fn backing(self) -> Option<Self> {
        let layers: Vec<_> = self.layers.into_iter().skip(1).collect();
        (!layers.is_empty()).then_some(Self { layers })
    }
}

impl Layer {
    /// Opens one image, without its backing files.
    ///
    /// # Errors
    ///
    /// Says why it cannot be used.
    pub fn open(path: &Path, format: Option<Format>, access: Access) -> Result<Self> {
        let (file, format) = OpenedFile::find_format(path, format, access)?;
        Self::of(backing_chain::open_one(file, format)?)
    }

    fn of(link: Link<OpenedFile>) -> Result<Self> {
        let Link { file: OpenedFile { path, file, access }, header, data_file } = link;
        let file_len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|errno| ImageError::doing(&path, "cannot find out its size")(errno.into()))?;
        Ok(Self {
            path,
            format: if header.is_some() { Format::Qcow2 } else { Format::Raw },
            file,
            file_len,
            header,
            data_file: data_file.map(|data| (data.path, data.file)),
            writable: access == Access::Write,
        })
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.header.as_ref().map_or(self.file_len, |header| header.size)
    }

    /// Name of the backing file, as the image says it.
    pub fn backing_file(&self) -> Option<&str> {
        self.header.as_ref()?.backing_file.as_deref()
    }

    /// A reason not to read the image's data, in the words of [`Header::unsupported`].
    ///
    /// # Errors
    ///
    /// There is one.
    pub fn readable(&self) -> Result<()> {
        match self.header.as_ref().and_then(Header::unsupported) {
            None | Some(Unsupported::ExtendedL2) => Ok(()),
            Some(unsupported) => Err(ImageError::refused(&self.path, unsupported)),
        }
    }

    /// A reason not to write the image, or one that lies above it.
    ///
    /// # Errors
    ///
    /// There is one.
    pub fn usable(&self) -> Result<()> {
        self.readable()?;
        let only_read = |what| {
            Err(ImageError::refused(
                &self.path,
                format!("image uses {what}, which ringpair img only reads: qemu-img writes it"),
            ))
        };
        match &self.header {
            Some(header) if header.extended_l2() => only_read("extended L2 entries (subclusters)"),
            Some(header) if header.compression_type != 0 => only_read("zstd compression"),
            _ => Ok(()),
        }
    }
}

/// A file of a chain, and how it was opened.
struct OpenedFile {
    path: PathBuf,
    file: File,
    access: Access,
}

impl OpenedFile {
    fn open(path: &Path, access: Access) -> Result<Self> {
        Ok(Self { path: path.to_owned(), file: open_file(path, access)?, access })
    }

    /// Opens an image. Without a format, what its first bytes say decides: whoever named it can see what comes of that.
    fn find_format(path: &Path, format: Option<Format>, access: Access) -> Result<(Self, Format)> {
        let file = Self::open(path, access)?;
        let format = match format {
            Some(format) => format,
            None if backing_chain::looks_like_qcow2(&file)? => Format::Qcow2,
            None => Format::Raw,
        };
        Ok((file, format))
    }
}

impl ChainFile for OpenedFile {
    type Error = ImageError;

    fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> io::Result<Identity> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn identity_of(&self, path: &Path) -> io::Result<Identity> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn start(&self, length: usize) -> io::Result<Vec<u8>> {
        read_up_to(&self.file, length)
    }

    fn open_beside(&self, path: &Path, need: Need) -> Result<Self> {
        let access = match (need, self.access) {
            (Need::Backing, Access::Write) => Access::Read,
            (_, access) => access,
        };
        Self::open(path, access)
    }

    /// What cannot be used can still be looked at: see [`Layer::usable`].
    fn accept(&self, _: &Header) -> Result<()> {
        Ok(())
    }
}

impl From<ChainError> for ImageError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Refused { path, reason } => Self::refused(&path, reason),
            ChainError::NotQcow2 { path } => Self::refused(&path, "is not a qcow2 image"),
            ChainError::Host { path, action, source } => Self::doing(&path, action)(source),
        }
    }
}

/// Where the name of an image's backing file or data file (`what`) leads: relative to the image, if it is relative.
///
/// # Errors
///
/// It is no file's name, but QEMU's for something else.
pub(super) fn resolve(image: &Path, what: &str, name: &str) -> Result<PathBuf> {
    Ok(backing_chain::resolve(image, what, name)?)
}

/// Opens a file or block device, and locks it as QEMU does.
pub(super) fn open_file(path: &Path, access: Access) -> Result<File> {
    let mode = if access == Access::Write { OFlags::RDWR } else { OFlags::RDONLY };
    // Non-blocking at first, so that opening a FIFO by mistake does not hang.
    let fd = rustix::fs::open(path, mode | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| ImageError::doing(path, "cannot open")(errno.into()))?;
    let stat =
        rustix::fs::fstat(&fd).map_err(|errno| ImageError::doing(path, "cannot look at it")(errno.into()))?;
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::BlockDevice) {
        return Err(ImageError::refused(path, "is neither a regular file nor a block device"));
    }
    let file = File::from(fd);
    lock_file(path, &file, access)?;
    Ok(file)
}

/// Locks a file as QEMU does.
pub(super) fn lock_file(path: &Path, file: &File, access: Access) -> Result<()> {
    let access = match access {
        Access::Share => return Ok(()),
        Access::Read => lock::Access::Read,
        Access::Write => lock::Access::WriteAndResize,
    };
    lock::lock(file.as_fd(), access).map_err(|error| match error {
        LockError::Host(error) => ImageError::doing(path, "cannot lock it")(error),
        LockError::Written => ImageError::refused(
            path,
            "another process writes to it (a QEMU, qemu-img or ringpair): end that one first",
        ),
        LockError::InUse => ImageError::refused(
            path,
            "another process uses it (a QEMU, qemu-img or ringpair): end that one first",
        ),
    })
}
