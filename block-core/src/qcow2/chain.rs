//! The layers of a disk: the image, the data file that it may have, its backing file, the backing file of that, and so on.
//!
//! Names in an image are relative to the image. A backing file is raw or qcow2, as its overlay's header says; where that
//! does not say, its name does, and then its own header has to agree: nobody who could write into a raw disk shall be
//! able to make an image of it that names other files.

use super::image::Image;
use super::layout::{Header, LayoutError, MAX_CLUSTER_SIZE};
use super::mapping::MAX_LAYERS;
use crate::format::{self, Format, QCOW2_MAGIC};
use crate::image_file::ImageFile;
use crate::registry::OpenError;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A layer.
pub(super) struct Layer {
    /// What it is.
    pub content: Content,
    /// Where the guest's data is.
    pub data: Arc<dyn ImageFile>,
}

/// What a layer is.
pub(super) enum Content {
    /// The data itself, of so many bytes.
    Raw(u64),
    /// An image.
    Qcow2(Box<Image>),
}

/// A backing file that takes the place of the one that the header names.
pub(super) struct Backing {
    pub path: PathBuf,
    pub format: Option<Format>,
}

fn unusable(file: &dyn ImageFile, reason: impl Display) -> OpenError {
    OpenError::Unusable { location: file.path().display().to_string(), reason: reason.to_string() }
}

fn host(file: &dyn ImageFile, action: &'static str, source: io::Error) -> OpenError {
    OpenError::Host { location: file.path().display().to_string(), action, source }
}

/// Opens the layers, the topmost one first.
pub(super) fn open(file: Arc<dyn ImageFile>, mut instead: Option<Backing>) -> Result<Vec<Layer>, OpenError> {
    let mut layers = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some((file, Format::Qcow2));
    while let Some((file, format)) = next.take() {
        let identity = file.identity().map_err(|e| host(&*file, "cannot look at it", e))?;
        if seen.contains(&identity) {
            return Err(unusable(&*file, "is its own backing file, directly or through others"));
        }
        if layers.len() == MAX_LAYERS {
            return Err(unusable(&*file, format_args!("is layer {MAX_LAYERS} of a chain that is too long")));
        }
        seen.push(identity);
        if format != Format::Qcow2 {
            let size = file.size().map_err(|e| host(&*file, "cannot find out its size", e))?;
            layers.push(Layer { content: Content::Raw(size), data: file });
            break;
        }
        let writable = layers.is_empty() && !file.info().read_only;
        let header = read_header(&*file, writable)?;
        next = open_backing(&*file, &header, instead.take())?;
        let data = open_data_file(&file, &header, writable)?;
        let image =
            Image::open(file.clone(), header).map_err(|e| host(&*file, "cannot use its metadata", e))?;
        layers.push(Layer { content: Content::Qcow2(Box::new(image)), data });
    }
    Ok(layers)
}

/// Reads the header of an image, and refuses what ringpair cannot use.
fn read_header(file: &dyn ImageFile, writable: bool) -> Result<Header, OpenError> {
    let size = file.size().map_err(|e| host(file, "cannot find out its size", e))?;
    let mut bytes = vec![0; size.min(MAX_CLUSTER_SIZE as u64) as usize];
    file.read_at(0, &mut bytes).map_err(|e| host(file, "cannot read", e))?;
    let header = Header::parse(&bytes).map_err(|error| match error {
        LayoutError::NotQcow2 => unusable(
            file,
            "is not a qcow2 image, which it should be (format=raw for a raw file of this name)",
        ),
        error => unusable(file, error),
    })?;
    match header.unsupported() {
        Some(unsupported) if writable || !unsupported.can_be_read() => Err(unusable(file, unsupported)),
        _ => Ok(header),
    }
}

/// The data file: an external one where the image has one, or else the image itself.
fn open_data_file(
    file: &Arc<dyn ImageFile>,
    header: &Header,
    writable: bool,
) -> Result<Arc<dyn ImageFile>, OpenError> {
    if !header.external_data_file() {
        return Ok(file.clone());
    }
    let Some(name) = header.data_file() else {
        return Err(unusable(&**file, "its data is in another file, whose name it does not say"));
    };
    let data = file.open_beside(&resolve(&**file, "data file", name)?, !writable)?;
    let same =
        |a: &dyn ImageFile, b: &dyn ImageFile| -> io::Result<bool> { Ok(a.identity()? == b.identity()?) };
    match same(&**file, &*data) {
        Ok(false) => Ok(data),
        Ok(true) => Err(unusable(&**file, "is its own data file")),
        Err(error) => Err(host(&*data, "cannot look at it", error)),
    }
}

/// A backing file and what it is.
type Below = (Arc<dyn ImageFile>, Format);

fn open_backing(
    file: &dyn ImageFile,
    header: &Header,
    instead: Option<Backing>,
) -> Result<Option<Below>, OpenError> {
    let (path, format) = match (instead, &header.backing_file) {
        (Some(backing), _) => (backing.path, backing.format),
        (None, Some(name)) => {
            let format = match header.backing_format() {
                None => None,
                Some("qcow2") => Some(Format::Qcow2),
                Some("raw" | "file" | "host_device") => Some(Format::Raw { said: true }),
                Some(other) => {
                    let other = other.escape_debug();
                    return Err(unusable(
                        file,
                        format_args!(
                            "its backing file has the format `{other}`: raw and qcow2 are supported"
                        ),
                    ));
                }
            };
            (resolve(file, "backing file", name)?, format)
        }
        (None, None) => return Ok(None),
    };
    let backing = file.open_beside(&path, true)?;
    let format = match format {
        Some(format) => format,
        None => probe(&*backing, file)?,
    };
    Ok(Some((backing, format)))
}

/// The format of a backing file when nobody has said it: what its name says and its header does not deny.
fn probe(backing: &dyn ImageFile, overlay: &dyn ImageFile) -> Result<Format, OpenError> {
    let mut magic = [0; 4];
    backing.read_at(0, &mut magic).map_err(|e| host(backing, "cannot read", e))?;
    let format = format::of_name(&backing.path().to_string_lossy());
    let (name, header) = match (format, magic == QCOW2_MAGIC) {
        (Format::Qcow2, false) => ("qcow2", "raw"),
        (Format::Raw { .. }, true) => ("raw", "qcow2"),
        _ => return Ok(format),
    };
    Err(unusable(
        backing,
        format_args!(
            "its name says {name}, its header {header}, and {} does not say what it is: say it with backing-format=, or \
             for good with `qemu-img rebase -u -b FILE -F FORMAT IMAGE`",
            overlay.path().display()
        ),
    ))
}

/// What a name in an image means: a path, relative to the image.
fn resolve(image: &dyn ImageFile, what: &str, name: &str) -> Result<PathBuf, OpenError> {
    let scheme = name.split_once(':').filter(|(scheme, _)| !scheme.is_empty() && !scheme.contains('/'));
    let name = match scheme {
        Some(("file", path)) => path,
        Some(_) => {
            let name = name.escape_debug();
            return Err(unusable(
                image,
                format_args!("its {what} is `{name}`: only files of this host are supported"),
            ));
        }
        None => name,
    };
    if name.is_empty() || name.contains('\0') {
        return Err(unusable(
            image,
            format_args!("its {what} has the name {name:?}, which no file can have"),
        ));
    }
    Ok(image.path().parent().unwrap_or(Path::new("")).join(name))
}
