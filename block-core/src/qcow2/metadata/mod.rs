//! What is done to an image by whoever holds its metadata: one thread at a time, which may block.
//!
//! `lookup.rs` says what clusters are, and reads those that the queues cannot; `allocation.rs` gives them a place when they
//! are written to; `zeroes.rs` takes it away. Here is what goes for all of them: how much metadata is kept in memory, and
//! when it goes to the file.

mod allocation;
mod lookup;
mod zeroes;

use super::chain::{Content, Layer};
use super::disk::Shared;
use super::image::Image;
use super::mailbox::{Answer, Job};
use super::mapping::Mapping;
use super::zeroed::Waiting;
use crate::file::CacheMode;
use crate::image_file::ImageFile;
use crate::request::Operation;
use std::io;
use std::sync::atomic::Ordering;

/// Tables that there is room for in memory whatever their size, so that a request does not read and write its own over and
/// over.
const MIN_TABLES: u64 = 8;

/// The layers of a disk, and what is to be done about them.
pub(super) struct Metadata {
    layers: Vec<Layer>,
    /// Size of the data file.
    data_end: u64,
    /// The end of what is in use of it.
    used_end: u64,
    zeroed: Waiting,
    /// As much metadata as there may be in memory, of each layer.
    memory_limit: u64,
    cluster: Box<[u8]>,
}

fn corrupt(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

impl Metadata {
    pub fn new(layers: Vec<Layer>, memory_limit: u64) -> io::Result<Self> {
        let mut metadata = Self {
            layers,
            data_end: 0,
            used_end: 0,
            zeroed: Waiting::default(),
            memory_limit,
            cluster: Box::default(),
        };
        let size = metadata.data().size()?;
        let cluster = metadata.image()?.header.cluster_size();
        metadata.cluster = vec![0; cluster as usize].into_boxed_slice();
        metadata.memory_limit = memory_limit.max(MIN_TABLES * cluster);
        metadata.data_end = size;
        metadata.used_end = size.next_multiple_of(cluster);
        Ok(metadata)
    }

    /// The topmost image.
    fn image(&self) -> io::Result<&Image> {
        match self.layers.first() {
            Some(Layer { content: Content::Qcow2(image), .. }) => Ok(image),
            _ => Err(corrupt("no image")),
        }
    }

    #[cfg(feature = "contract")]
    pub fn set_fault(&self, fault: super::fault::Fault) {
        self.images().for_each(|image| image.pages.faults.set(fault));
    }

    fn images(&self) -> impl Iterator<Item = &Image> {
        self.layers.iter().filter_map(|layer| match &layer.content {
            Content::Qcow2(image) => Some(&**image),
            Content::Raw(_) => None,
        })
    }

    /// The data file of the topmost image.
    fn data(&self) -> &dyn ImageFile {
        &*self.layers[0].data
    }

    pub fn pages_written(&self) -> u64 {
        self.image().map_or(0, |image| image.pages.writes())
    }

    /// Metadata in memory, our own pages and what imago may keep.
    pub fn bytes_in_memory(&self) -> u64 {
        self.images().map(|image| image.pages.dirty_bytes() + image.pages.bytes_known()).sum()
    }

    /// Does what a queue could not do, or finds out what it did not know.
    ///
    /// # Safety
    ///
    /// The job's segments are valid.
    pub unsafe fn carry_out(&mut self, shared: &Shared, job: &mut Job) -> io::Result<Answer> {
        if job.operation != Operation::Read {
            shared.writable().map_err(io::Error::from_raw_os_error)?;
        }
        let mapping = match job.operation {
            // SAFETY: handed on from the caller.
            Operation::Read => unsafe { self.read(shared, &mut job.transfer) },
            // SAFETY: as above.
            Operation::Write => unsafe { self.write(shared, &mut job.transfer) },
            Operation::WriteZeroes | Operation::Discard => {
                self.write_zeroes(shared, &mut job.transfer, job.flags)
            }
            Operation::Flush => self.flush(shared).map(|()| Mapping::UNKNOWN),
        }?;
        Ok(Answer::GoOn(mapping))
    }

    /// Keeps the metadata in memory within its limit: what has changed is written back, and then what imago knows can be
    /// forgotten.
    fn trim(&mut self, shared: &Shared) -> io::Result<()> {
        for image in self.images().skip(1) {
            if image.pages.bytes_known() > self.memory_limit {
                image.forget()?;
            }
        }
        let image = self.image()?;
        if image.pages.dirty_bytes() + image.pages.bytes_known() <= self.memory_limit {
            return Ok(());
        }
        if !shared.dirty.load(Ordering::SeqCst) {
            return image.forget();
        }
        // What can never be written back stays.
        if shared.writable().is_ok() { self.write_back(shared) } else { Ok(()) }
    }

    /// Makes the metadata, and all data that has been written, durable; as far as the cache mode does that.
    pub fn flush(&mut self, shared: &Shared) -> io::Result<()> {
        if shared.info.read_only {
            return Ok(());
        }
        shared.writable().map_err(io::Error::from_raw_os_error)?;
        self.give_away(shared)?;
        self.write_back(shared)
    }

    fn write_back(&mut self, shared: &Shared) -> io::Result<()> {
        shared.counters().flushes.fetch_add(1, Ordering::Relaxed);
        let durable = shared.cache != CacheMode::Unsafe;
        let image = self.image()?;
        image.write_back(self.data(), durable).inspect_err(|error| end_writing(shared, error))?;
        shared.dirty.store(false, Ordering::SeqCst);
        if image.pages.bytes_known() > self.memory_limit {
            image.forget()?;
        }
        Ok(())
    }

    /// Leaves the image as it should be found.
    pub fn close(&mut self, shared: &Shared) -> io::Result<()> {
        self.flush(shared)?;
        let image = self.image()?;
        let end = self.used_end.max(image.pages.end());
        if !image.header.external_data_file() && end < self.data_end {
            self.data().resize(end)?;
        }
        Ok(())
    }
}

/// The metadata is wrong, or could not be changed or written as it should have been.
fn end_writing(shared: &Shared, error: &io::Error) {
    shared.fail(error.raw_os_error().unwrap_or(libc::EIO), error);
}
