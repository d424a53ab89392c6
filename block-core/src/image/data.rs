//! The data of a chain, written by the `imago` crate: what a guest would see of it. What is only read is read by
//! [`super::map`], which knows more kinds of images.
//!
//! imago does not order what it writes, so a qcow2 image that is written to carries the dirty bit from the first write to
//! [`Data::sync`]: whoever is killed in between leaves an image that nobody takes for a good one, and that `check -r all`
//! makes good. Version 2 has no such bit.

use super::chain::{Chain, Layer};
use super::{Format, ImageError, Result};
use crate::qcow2::offline::Image;
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How much is read or written at once.
pub const PIECE: u64 = 2 << 20;

/// The data of an image, with what its backing files have.
#[derive(Debug)]
pub struct Data {
    access: FormatAccess<Storage>,
    path: PathBuf,
    /// The file of a qcow2 image that is written to.
    written: Option<File>,
    /// It has its dirty bit.
    dirty: Cell<bool>,
}

impl Data {
    /// Opens the data of a chain. Only its first image is ever written to.
    ///
    /// # Errors
    ///
    /// One of its images uses something that ringpair does not support, or cannot be read.
    pub fn open(chain: &Chain) -> Result<Self> {
        let mut backing = None;
        for layer in chain.layers().iter().rev() {
            backing = Some(open(layer, backing)?);
        }
        let top = chain.top();
        let path = top.path.clone();
        let Some(access) = backing else { return Err(ImageError::refused(&path, "is empty")) };
        let is_written = top.writable && top.format == Format::Qcow2;
        let written = is_written.then(|| top.file.try_clone()).transpose();
        let written = written.map_err(|source| failed(&path, "cannot open", source))?;
        Ok(Self { access, path, written, dirty: Cell::new(false) })
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// Fills a buffer from `offset`; what lies behind the end is zero.
    ///
    /// # Errors
    ///
    /// What the host said, or what is wrong with the image there.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let there = self.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.done("cannot read", self.access.read(there, offset))
    }

    /// Writes at `offset`.
    ///
    /// # Errors
    ///
    /// What the host said, or what is wrong with the image there.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.begin()?;
        self.done("cannot write", self.access.write(data, offset))
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`Data::write`].
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.begin()?;
        self.done("cannot write", self.access.write_zeroes(offset, length))
    }

    /// Gives a range back to the backing file.
    ///
    /// # Errors
    ///
    /// As [`Data::write`].
    pub fn discard_to_backing(&mut self, offset: u64, length: u64) -> Result<()> {
        self.begin()?;
        let done = self.access.discard_to_backing(offset, length);
        self.done("cannot discard", done)
    }

    /// Makes it another size.
    ///
    /// # Errors
    ///
    /// As [`Data::write`].
    pub fn resize(&mut self, size: u64, preallocate: imago::format::PreallocateMode) -> Result<()> {
        self.begin()?;
        let done = self.access.resize(size, preallocate);
        self.done("cannot resize", done)
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    ///
    /// What the host said.
    pub fn sync(&self) -> Result<()> {
        self.done("cannot flush", self.access.flush())?;
        self.done("cannot flush", self.access.sync())?;
        self.mark(false)
    }

    /// Something is written from now on.
    fn begin(&self) -> Result<()> {
        if self.dirty.get() { Ok(()) } else { self.mark(true) }
    }

    fn mark(&self, dirty: bool) -> Result<()> {
        if let Some(file) = self.written.as_ref().filter(|_| self.dirty.get() != dirty) {
            // Read anew: imago may have moved tables meanwhile.
            let marked = file.try_clone().and_then(Image::open).and_then(|mut image| image.set_dirty(dirty));
            self.done("cannot write its header", marked)?;
            self.dirty.set(dirty);
        }
        Ok(())
    }

    fn done(&self, action: &'static str, result: io::Result<()>) -> Result<()> {
        result.map_err(|source| failed(&self.path, action, source))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.dirty.get() {
            // After a failure. What can be made good here need not be repaired.
            let _ = self.sync();
        }
    }
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> ImageError {
    ImageError::Failed { path: path.display().to_string(), action, source }
}

fn open(layer: &Layer, backing: Option<FormatAccess<Storage>>) -> Result<FormatAccess<Storage>> {
    layer.usable()?;
    let failed = |source| failed(&layer.path, "cannot open", source);
    // The same open file, and so the same locks.
    let storage = |file: &File| file.try_clone().and_then(Storage::try_from).map_err(failed);
    let file = storage(&layer.file)?;
    match layer.format {
        Format::Raw => Ok(FormatAccess::new(Raw::open_image(file, layer.writable).map_err(failed)?)),
        Format::Qcow2 => {
            let data_file = layer.data_file.as_ref().map(|(_, file)| storage(file)).transpose()?;
            let builder = Qcow2::<Storage>::builder(file).write(layer.writable);
            let builder = builder.backing(backing).data_file(data_file);
            Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).map_err(failed)?))
        }
    }
}
