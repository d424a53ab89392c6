//! What an image is like, as `qemu-img info` says it.

use super::chain::{Layer, resolve};
use super::{Format, ImageError, Result};
use crate::qcow2::layout::bitmap::BitmapFlags;
use crate::qcow2::layout::feature::{Autoclear, Compatible, Incompatible};
use crate::qcow2::layout::{Bitmap, Crypt, Header, Snapshot, Version};
use crate::qcow2::offline::Image;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// An image.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// What the file system has given the file, in bytes.
    pub actual_size: u64,
    /// What qcow2 says.
    pub qcow2: Option<Qcow2Info>,
}

/// What a qcow2 image says of itself.
#[derive(Clone, Debug)]
pub struct Qcow2Info {
    /// Cluster size in bytes.
    pub cluster_size: u64,
    /// The version.
    pub version: Version,
    /// How guest data is encrypted.
    pub encryption: Crypt,
    /// How compressed clusters are: `zlib` or `zstd`.
    pub compression_type: &'static str,
    /// Width of a refcount in bits.
    pub refcount_bits: u32,
    /// Whether refcounts may be updated late.
    pub lazy_refcounts: bool,
    /// Whether somebody found it corrupt.
    pub corrupt: bool,
    /// Whether it was not closed.
    pub dirty: bool,
    /// Whether it has subclusters.
    pub extended_l2: bool,
    /// The external data file, and whether that is a raw image by itself.
    pub data_file: Option<(String, bool)>,
    /// The backing file, as the image says it, and where that is.
    pub backing_file: Option<(String, Option<PathBuf>)>,
    /// Its format, if the image says it.
    pub backing_format: Option<String>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Persistent bitmaps.
    pub bitmaps: Vec<Bitmap>,
}

impl ImageInfo {
    /// Looks at an image.
    ///
    /// # Errors
    ///
    /// It cannot be read, or what it has beside its header is not what it should be.
    pub fn of(layer: &Layer) -> Result<Self> {
        let failed = || ImageError::doing(&layer.path, "cannot read");
        let metadata = layer.file.metadata().map_err(failed())?;
        let qcow2 = layer.header.as_ref().map(|header| Qcow2Info::of(layer, header)).transpose()?;
        Ok(Self {
            path: layer.path.clone(),
            format: layer.format,
            virtual_size: layer.size(),
            file_size: layer.file_len,
            actual_size: metadata.blocks() * 512,
            qcow2,
        })
    }
}

impl Qcow2Info {
    fn of(layer: &Layer, header: &Header) -> Result<Self> {
        let failed = || ImageError::doing(&layer.path, "cannot read");
        let image = layer.file.try_clone().and_then(Image::open).map_err(failed())?;
        let has = |feature| header.incompatible_features.contains(feature);
        let raw = header.autoclear_features.contains(Autoclear::RAW_EXTERNAL_DATA);
        Ok(Self {
            cluster_size: header.cluster_size(),
            version: header.version,
            encryption: header.crypt_method,
            compression_type: match header.compression_type {
                0 => "zlib",
                1 => "zstd",
                _ => "unknown",
            },
            refcount_bits: header.refcount_bits(),
            lazy_refcounts: header.compatible_features.contains(Compatible::LAZY_REFCOUNTS),
            corrupt: has(Incompatible::CORRUPT),
            dirty: has(Incompatible::DIRTY),
            extended_l2: header.extended_l2(),
            data_file: header.data_file().map(|name| (name.to_owned(), raw)),
            backing_file: header
                .backing_file
                .as_ref()
                .map(|name| (name.clone(), resolve(&layer.path, "backing file", name).ok())),
            backing_format: header.backing_format().map(str::to_owned),
            snapshots: image.snapshots().map_err(failed())?.0,
            bitmaps: image.bitmaps().map_err(failed())?,
        })
    }
}

impl Bitmap {
    /// QEMU's names of its flags.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let names = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
        names.into_iter().filter(|(flag, _)| self.flags.contains(*flag)).map(|(_, name)| name).collect()
    }
}
