//! An image's metadata: imago, with our [`Pages`] below it; or, where imago does not know what the image has,
//! [`Entries`], which only reads.

use super::compressed::{Compression, read_clusters};
use super::entries::Entries;
use super::layout::feature::Autoclear;
use super::layout::{Header, L2Entry, Version};
use super::mapping::Mapping;
use super::pages::Pages;
use super::storage::{Storage, whole_size};
use crate::image_file::ImageFile;
use imago::ShallowMapping;
use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use std::io;
use std::sync::Arc;

/// An open image.
pub(super) struct Image {
    pub header: Header,
    pub pages: Arc<Pages>,
    entries: Entries,
    compression: Option<Compression>,
    /// `None` if there are subclusters.
    imago: Option<Qcow2<Storage>>,
}

/// What a range of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Data, from this offset of the data file on; to be written there only if it is `ours` alone.
    Data {
        /// Where.
        offset: u64,
        /// Whether its refcount is one.
        ours: bool,
    },
    /// Zeroes, whatever the backing file has.
    Zero,
    /// What the backing file has.
    Unallocated,
    /// Compressed data.
    Compressed,
}

/// Why clusters were not given a place.
#[derive(Debug)]
pub(super) enum MapError {
    /// The data could not be put there. What they were before, they still are.
    Data(io::Error),
    /// The metadata could not be changed, and nobody knows how far that got.
    Metadata(io::Error),
}

pub(super) fn corrupt(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

impl Image {
    /// Opens the image in a file whose header is this.
    pub fn open(file: Arc<dyn ImageFile>, header: Header) -> io::Result<Self> {
        let writable = !file.info().read_only;
        if writable {
            clear_autoclear(&*file, &header)?;
        }
        let pages = Arc::new(Pages::open(file, &header)?);
        let open = || {
            let mut imago = Qcow2::<Storage>::open_image(Storage::new(pages.clone(), &header), writable)?;
            // Backing and data files are ours to look into.
            imago.set_backing(None);
            imago.set_data_file(None);
            Ok::<_, io::Error>(imago)
        };
        let imago = if header.extended_l2() { None } else { Some(open()?) };
        let (entries, compression) = (Entries::of(&header), Compression::of(header.compression_type));
        Ok(Self { header, pages, entries, compression, imago })
    }

    /// imago, to change the image with.
    fn imago(&self) -> io::Result<&Qcow2<Storage>> {
        self.imago.as_ref().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What `len` bytes from `offset` on are, as far as they go on the same way: at least to the end of the cluster,
    /// unless that is more than `len`.
    pub fn look_up(&self, offset: u64, len: u64) -> io::Result<(Run, u64)> {
        let Some(imago) = &self.imago else { return self.entries.look_up(&self.pages, offset, len) };
        let (mapping, len) = imago.get_mapping(offset, len)?;
        let run = match mapping {
            ShallowMapping::Raw { offset, writable, .. } => Run::Data { offset, ours: writable },
            ShallowMapping::Zero { explicit: true, .. } => Run::Zero,
            ShallowMapping::Zero { explicit: false, .. } => Run::Unallocated,
            ShallowMapping::Special { .. } => Run::Compressed,
            _ => return Err(corrupt("a mapping that an image cannot have")),
        };
        if len == 0 { Err(corrupt("a mapping of nothing")) } else { Ok((run, len)) }
    }

    /// Reads what is compressed: a part of one cluster, or several.
    pub fn read_compressed(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let read = |offset, cluster: &mut [u8]| self.read_compressed_cluster(offset, cluster);
        read_clusters(self.header.cluster_size(), offset, into, read)
    }

    fn read_compressed_cluster(&self, offset: u64, cluster: &mut [u8]) -> io::Result<()> {
        // imago does not say where the data is. An entry of compressed data is in the file as it is in imago's memory: what
        // changes it makes it another kind.
        let entry = self.entries.read(&self.pages, offset, 1)?;
        let Some(L2Entry::Compressed { offset, length }) = entry.first() else {
            return Err(corrupt("a cluster is compressed, and then it is not"));
        };
        let mut data = vec![0; *length as usize];
        self.pages.file().read_at(*offset, &mut data)?;
        let compression = self.compression.ok_or_else(|| corrupt("compressed, and nobody knows how"))?;
        compression.decompress(&data, cluster)
    }

    /// Gives the clusters of a range, all of them or as many as are contiguous in the data file, a place of their own:
    /// `write` gets its offset and length and puts the data there; then they are mapped to it. Says where and how much.
    ///
    /// What they were before is still there while `write` runs, and afterwards if it fails.
    ///
    /// # Errors
    ///
    /// What `write` said, or else the image is not to be changed any more.
    pub fn map(
        &self,
        offset: u64,
        len: u64,
        write: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> Result<(u64, u64), MapError> {
        let imago = self.imago().map_err(MapError::Metadata)?;
        let prepared = imago.prepare_data_mapping(offset, len, true).map_err(MapError::Metadata)?;
        let (host, len) = (prepared.offset(), prepared.length().min(len));
        if len == 0 {
            return Err(MapError::Metadata(corrupt("a mapping of nothing")));
        }
        write(host, len).map_err(MapError::Data)?;
        imago.commit_data_mapping(prepared).map_err(MapError::Metadata)?;
        Ok((host, len))
    }

    /// Makes whole clusters read as zeroes and leaves them where they are: nobody else gets them. Says how many bytes of
    /// the range that was, from its beginning. After an error the image is not to be changed any more.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<u64> {
        self.made(offset, self.imago()?.ensure_zero_mapping(offset, len)?)
    }

    /// Makes whole clusters read as zeroes and gives away where they were. Says how many bytes of the range that was,
    /// from its beginning. After an error the image is not to be changed any more.
    ///
    /// # Safety
    ///
    /// Nobody uses where they were any more.
    pub unsafe fn give_away(&self, offset: u64, len: u64) -> io::Result<u64> {
        // SAFETY: handed on from the caller.
        self.made(offset, unsafe { self.imago()?.discard_to_zero_unsafe(offset, len)? })
    }

    fn made(&self, offset: u64, (at, len): (u64, u64)) -> io::Result<u64> {
        if at == offset && len > 0 { Ok(len) } else { Err(corrupt("clusters that cannot be zeroed")) }
    }

    /// Writes the metadata to the file; with `durable` it is on the medium afterwards, and so is the data.
    pub fn write_back(&self, data_file: &dyn ImageFile, durable: bool) -> io::Result<()> {
        self.imago()?.flush()?;
        self.pages.write_back(data_file, durable)
    }

    /// Whether a cluster has been freed that is still in use on the medium, which then nobody may take. A reference that has
    /// gone is not enough, if there are others: each copy of a cluster that is a snapshot's too takes one away.
    pub fn frees_a_cluster(&self) -> io::Result<bool> {
        if !self.pages.freed() {
            return Ok(false);
        }
        // So that its refcounts are in our pages.
        self.imago()?.flush()?;
        let frees = self.pages.frees_a_cluster()?;
        if !frees {
            self.pages.looked_at();
        }
        Ok(frees)
    }

    /// Lets imago forget what it has read. Nothing may be dirty.
    pub fn forget(&self) -> io::Result<()> {
        self.pages.forget_bytes_known();
        let Some(imago) = &self.imago else { return Ok(()) };
        // SAFETY: the caller has just written everything back, so that the file says what imago knows.
        unsafe { imago.invalidate_cache() }
    }

    /// The size that imago knows: whole clusters.
    pub fn whole_size(&self) -> u64 {
        whole_size(&self.header)
    }

    /// Whether clusters can be marked as zeroes.
    pub fn has_zero_clusters(&self) -> bool {
        self.header.version >= Version::V3
    }

    /// Whether the data file is to be a raw image by itself.
    pub fn data_file_is_raw(&self) -> bool {
        self.header.autoclear_features.contains(Autoclear::RAW_EXTERNAL_DATA)
    }

    /// The mapping of data that may be written in place.
    ///
    /// # Errors
    ///
    /// It is not inside the data file, or is where metadata is: the image is corrupt.
    pub fn writable(&self, host: u64, len: u64, data_file_size: u64) -> io::Result<Mapping> {
        let bits = self.header.cluster_bits;
        let end = host.checked_add(len).ok_or_else(|| corrupt("data beyond the largest file"))?;
        if !self.header.external_data_file() {
            if end > data_file_size.next_multiple_of(1 << bits) {
                return Err(corrupt(format!("data at {host:#x}, beyond the end of the file")));
            }
            if (host >> bits..end.div_ceil(1 << bits)).any(|cluster| self.pages.is_metadata(cluster)) {
                return Err(corrupt(format!("data at {host:#x}, where metadata is")));
            }
        }
        Mapping::data(host).ok_or_else(|| corrupt(format!("data at {host:#x}")))
    }
}

/// A writer that does not keep up what these bits stand for clears them first (the bitmaps, for instance).
fn clear_autoclear(file: &dyn ImageFile, header: &Header) -> io::Result<()> {
    let kept = header.autoclear_features & Autoclear::RAW_EXTERNAL_DATA;
    if header.version < Version::V3 || kept == header.autoclear_features {
        return Ok(());
    }
    file.write_at(88, &kept.bits().to_be_bytes())?;
    file.flush()
}
