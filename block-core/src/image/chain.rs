//! An image, and the files that it needs: its backing files and external data files, opened and locked.

use super::{Format, ImageError, Result};
use crate::file::lock::{self, LockError};
use crate::qcow2::layout::{Header, LayoutError, MAGIC};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most images of a chain: more than anybody has, and few enough to hold open.
pub const MAX_LAYERS: usize = 256;

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
        let mut layers = vec![Layer::open(path, format, access)?];
        loop {
            let last = &layers[layers.len() - 1];
            let Some(name) = last.backing_file() else { return Ok(Self { layers }) };
            let path = resolve(&last.path, name)?;
            if layers.len() >= MAX_LAYERS {
                return Err(ImageError::refused(
                    &path,
                    format_args!("more than {MAX_LAYERS} images are a chain"),
                ));
            }
            let format = last.backing_format(&path)?;
            let access = if access == Access::Share { Access::Share } else { Access::Read };
            // Looked at before it is opened: our own lock would be in the way, and say something else.
            let identity = identity(&path).map_err(ImageError::doing(&path, "cannot open"))?;
            for layer in &layers {
                let metadata =
                    layer.file.metadata().map_err(ImageError::doing(&layer.path, "cannot look at it"))?;
                if (metadata.dev(), metadata.ino()) == identity {
                    return Err(ImageError::refused(&path, "is its own backing file, in the end"));
                }
            }
            layers.push(Layer::open(&path, Some(format), access)?);
        }
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
        let file = open_file(path, access)?;
        let mut magic = [0; 4];
        let looks = match file.read_at(&mut magic, 0) {
            Ok(4) if magic == MAGIC => Format::Qcow2,
            Ok(_) => Format::Raw,
            Err(error) => return Err(ImageError::doing(path, "cannot read")(error)),
        };
        let format = format.unwrap_or(looks);
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Header::read(&file).map_err(|error| unreadable(path, error))?),
        };
        let file_len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|errno| ImageError::doing(path, "cannot find out its size")(errno.into()))?;
        let data_file = match header.as_ref().filter(|header| header.external_data_file()) {
            None => None,
            Some(header) => {
                let Some(name) = header.data_file() else {
                    return Err(ImageError::refused(
                        path,
                        "has an external data file, but does not say which",
                    ));
                };
                let data_path = resolve(path, name)?;
                let file = open_file(&data_path, access)?;
                Some((data_path, file))
            }
        };
        Ok(Self {
            path: path.to_owned(),
            format,
            file,
            file_len,
            header,
            data_file,
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

    /// The format of the backing file, which is at `path`. If the image does not say, the file's name has to agree with its first
    /// bytes: whoever could write those must not decide which files are read.
    fn backing_format(&self, path: &Path) -> Result<Format> {
        let said = self.header.as_ref().and_then(Header::backing_format);
        if let Some(said) = said {
            return said
                .parse()
                .map_err(|reason| ImageError::refused(&self.path, format_args!("backing file: {reason}")));
        }
        let file = open_file(path, Access::Share)?;
        let mut magic = [0; 4];
        let looks_qcow2 = file.read_at(&mut magic, 0).is_ok_and(|n| n == 4 && magic == MAGIC);
        let named_qcow2 = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
        match (looks_qcow2, named_qcow2) {
            (false, _) => Ok(Format::Raw),
            (true, true) => Ok(Format::Qcow2),
            (true, false) => Err(ImageError::refused(
                &self.path,
                format_args!(
                    "does not say which format its backing file {} has, and its name is not .qcow2: say it with \
                     `ringpair img rebase -u -b FILE -F FORMAT`",
                    path.display()
                ),
            )),
        }
    }

    /// A reason not to read the image's data or write it, in the words of [`Header::unsupported`].
    ///
    /// # Errors
    ///
    /// There is one.
    pub fn usable(&self) -> Result<()> {
        match self.header.as_ref().and_then(Header::unsupported) {
            Some(unsupported) => Err(ImageError::refused(&self.path, unsupported)),
            None => Ok(()),
        }
    }
}

/// Where a name in an image's header leads: relative to the image, if it is relative.
///
/// # Errors
///
/// It is no file's name, but QEMU's for something else.
pub fn resolve(image: &Path, name: &str) -> Result<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let scheme = name.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    if scheme {
        let name = name.escape_debug();
        return Err(ImageError::refused(image, format_args!("needs `{name}`, which is no file's name")));
    }
    Ok(image.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name)))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
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

/// A header that cannot be read, in one line.
fn unreadable(path: &Path, error: io::Error) -> ImageError {
    let layout = error.get_ref().and_then(|inner| inner.downcast_ref::<LayoutError>());
    match layout {
        Some(layout) => ImageError::refused(path, layout),
        None => ImageError::doing(path, "cannot read")(error),
    }
}
