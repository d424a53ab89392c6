//! The layers of a disk: an image and what it needs, opened as disks are, by the rules of [`super::backing_chain`].

use super::backing_chain::{self, Backing, ChainError, ChainFile, Link, Need};
use super::image::Image;
use super::layout::Header;
use crate::format::Format;
use crate::image_file::ImageFile;
use crate::registry::OpenError;
use std::io;
use std::path::Path;
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

impl ChainFile for Arc<dyn ImageFile> {
    type Error = OpenError;

    fn path(&self) -> &Path {
        (**self).path()
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        (**self).identity()
    }

    fn identity_of(&self, path: &Path) -> io::Result<(u64, u64)> {
        (**self).identity_of(path)
    }

    fn start(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size()?.min(length as u64) as usize];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn open_beside(&self, path: &Path, need: Need) -> Result<Self, OpenError> {
        (**self).open_beside(path, need == Need::Backing || self.info().read_only)
    }

    fn accept(&self, header: &Header) -> Result<(), OpenError> {
        let writable = !self.info().read_only;
        match header.unsupported() {
            Some(unsupported) if writable || !unsupported.can_be_read() => Err(OpenError::Unusable {
                location: ChainFile::path(self).display().to_string(),
                reason: unsupported.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

impl From<ChainError> for OpenError {
    fn from(error: ChainError) -> Self {
        let location = |path: &Path| path.display().to_string();
        match error {
            ChainError::Refused { path, reason } => Self::Unusable { location: location(&path), reason },
            ChainError::NotQcow2 { path } => Self::Unusable {
                location: location(&path),
                reason: "is not a qcow2 image, which it should be (format=raw for a raw file of this name)"
                    .to_owned(),
            },
            ChainError::Host { path, action, source } => {
                Self::Host { location: location(&path), action, source }
            }
        }
    }
}

/// Opens the layers, the topmost one first.
pub(super) fn open(file: Arc<dyn ImageFile>, instead: Option<Backing>) -> Result<Vec<Layer>, OpenError> {
    backing_chain::open(file, Format::Qcow2, instead)?.into_iter().map(Layer::of).collect()
}

impl Layer {
    fn of(link: Link<Arc<dyn ImageFile>>) -> Result<Self, OpenError> {
        let Link { file, header, data_file } = link;
        let host = |action| {
            let location = ChainFile::path(&file).display().to_string();
            move |source| OpenError::Host { location, action, source }
        };
        let Some(header) = header else {
            let size = file.size().map_err(host("cannot find out its size"))?;
            return Ok(Self { content: Content::Raw(size), data: file });
        };
        let image = Image::open(file.clone(), header).map_err(host("cannot use its metadata"))?;
        Ok(Self { content: Content::Qcow2(Box::new(image)), data: data_file.unwrap_or(file) })
    }
}
