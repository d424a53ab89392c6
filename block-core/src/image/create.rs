//! New images, as `qemu-img create` makes them.

use super::chain::{Access, Chain, lock_file, resolve};
use super::{Format, ImageError, Result};
use crate::qcow2::layout::feature::{Autoclear, Compatible};
use crate::qcow2::layout::{Extension, Version};
use crate::qcow2::offline::Image;
use crate::spec::parse_size;
use imago::FormatCreateBuilder as _;
use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use rustix::fs::FallocateFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How much of a new image is there from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// qcow2's mappings.
    Metadata,
    /// Space in the file system as well.
    Falloc,
    /// Zeroes, written out.
    Full,
}

/// What a new image is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// `cluster_size`.
    pub cluster_size: u64,
    /// `refcount_bits`.
    pub refcount_bits: u32,
    /// `compat`.
    pub version: Version,
    /// `preallocation`.
    pub preallocation: Preallocation,
    /// `lazy_refcounts`.
    pub lazy_refcounts: bool,
    /// `data_file`.
    pub data_file: Option<String>,
    /// `data_file_raw`.
    pub data_file_raw: bool,
    /// `backing_file`.
    pub backing_file: Option<String>,
    /// `backing_fmt`.
    pub backing_format: Option<Format>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            cluster_size: 64 << 10,
            refcount_bits: 16,
            version: Version::V3,
            preallocation: Preallocation::Off,
            lazy_refcounts: false,
            data_file: None,
            data_file_raw: false,
            backing_file: None,
            backing_format: None,
        }
    }
}

impl CreateOptions {
    /// Takes `name=value,…` in, as qemu-img's `-o` has it. A comma in a value is written twice.
    ///
    /// # Errors
    ///
    /// Names the option that is wrong, and says what it takes.
    pub fn set_all(&mut self, text: &str, format: Format) -> Result<()> {
        for option in text.replace(",,", "\0").split(',').filter(|option| !option.is_empty()) {
            let option = option.replace('\0', ",");
            let Some((name, value)) = option.split_once('=') else {
                return Err(ImageError::Usage(format!("`{option}` is not an option=value")));
            };
            self.set(name, value, format)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str, format: Format) -> Result<()> {
        let wrong = |takes: &str| ImageError::Usage(format!("`{name}={value}`: {name} takes {takes}"));
        let unsupported = || ImageError::Usage(format!("`{name}={value}`: ringpair does not support that"));
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(wrong("on, off")),
        };
        if format == Format::Raw && name != "preallocation" {
            return Err(ImageError::Usage(format!("`{name}={value}`: a raw image only has preallocation=")));
        }
        match name {
            "preallocation" => {
                self.preallocation = match (value, format) {
                    ("off", _) => Preallocation::Off,
                    ("metadata", Format::Qcow2) => Preallocation::Metadata,
                    ("falloc", _) => Preallocation::Falloc,
                    ("full", _) => Preallocation::Full,
                    (_, Format::Raw) => return Err(wrong("off, falloc, full")),
                    (_, Format::Qcow2) => return Err(wrong("off, metadata, falloc, full")),
                }
            }
            "cluster_size" => {
                let size = parse_size(value).filter(|size| size.is_power_of_two());
                let size = size.filter(|size| (512..=2 << 20).contains(size));
                self.cluster_size = size.ok_or_else(|| wrong("a power of two from 512 to 2M"))?;
            }
            "refcount_bits" => {
                let bits = u32::from_str(value).ok().filter(|bits| bits.is_power_of_two() && *bits <= 64);
                self.refcount_bits = bits.ok_or_else(|| wrong("a power of two from 1 to 64"))?;
            }
            "compat" => {
                self.version = match value {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(wrong("0.10, 1.1")),
                }
            }
            "lazy_refcounts" => self.lazy_refcounts = switch()?,
            "data_file" => self.data_file = Some(value.to_owned()),
            "data_file_raw" => self.data_file_raw = switch()?,
            "backing_file" => self.backing_file = Some(value.to_owned()),
            "backing_fmt" => self.backing_format = Some(value.parse().map_err(ImageError::Usage)?),
            "compression_type" if value == "zlib" => {}
            "extended_l2" if !switch()? => {}
            "encryption" if !switch()? => {}
            "compression_type" | "extended_l2" | "encryption" => return Err(unsupported()),
            _ if name.starts_with("encrypt.") => return Err(unsupported()),
            _ => {
                return Err(ImageError::Usage(format!(
                    "there is no option `{name}` (there are: backing_file, backing_fmt, cluster_size, compat, data_file, \
                     data_file_raw, lazy_refcounts, preallocation, refcount_bits)"
                )));
            }
        }
        Ok(())
    }

    /// Which options go together.
    fn check(&self) -> Result<()> {
        let old = self.version < Version::V3;
        let usage = |text: &str| Err(ImageError::Usage(text.to_owned()));
        if old && self.refcount_bits != 16 {
            return usage("refcount_bits other than 16 need compat=1.1");
        }
        if old && self.lazy_refcounts {
            return usage("lazy_refcounts=on needs compat=1.1");
        }
        if old && self.data_file.is_some() {
            return usage("data_file needs compat=1.1");
        }
        if self.data_file_raw && self.data_file.is_none() {
            return usage("data_file_raw=on needs data_file");
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return usage("data_file_raw=on and a backing file contradict each other");
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return usage("the format of a backing file needs a backing file (-b FILE)");
        }
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off {
            return usage("preallocation of an image with a backing file would hide that");
        }
        Ok(())
    }
}

/// Makes an image of `size` bytes, or as large as its backing file. A file that is there is overwritten; unless
/// `unsafe_backing`, the backing file has to be there and to be of the format that is said.
///
/// # Errors
///
/// Options contradict each other, the image file is in use, or the host failed.
pub fn create(
    path: &Path,
    format: Format,
    size: Option<u64>,
    options: &CreateOptions,
    unsafe_backing: bool,
) -> Result<()> {
    options.check()?;
    let backing_size = backing_size(path, options, unsafe_backing)?;
    let Some(size) = size.or(backing_size) else {
        return Err(ImageError::Usage("the image needs a size".to_owned()));
    };
    if size > i64::MAX as u64 / 512 * 512 {
        return Err(ImageError::Usage(format!("{size} is more than a disk can have")));
    }
    let file = new_file(path)?;
    match format {
        Format::Raw => create_raw(path, &file, size, options.preallocation),
        Format::Qcow2 => create_qcow2(path, file, size.next_multiple_of(512), options),
    }
}

fn backing_size(path: &Path, options: &CreateOptions, unsafe_backing: bool) -> Result<Option<u64>> {
    let Some(name) = &options.backing_file else { return Ok(None) };
    let Some(format) = options.backing_format else {
        return Err(ImageError::Usage(format!(
            "say which format the backing file `{name}` has: -F raw or -F qcow2"
        )));
    };
    if unsafe_backing {
        return Ok(None);
    }
    let chain = Chain::open(&resolve(path, "backing file", name)?, Some(format), Access::Read)?;
    Ok(Some(chain.top().size()))
}

/// An empty file that nobody else uses; one that is there is only emptied once it is locked.
fn new_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(ImageError::doing(path, "cannot create"))?;
    lock_file(path, &file, Access::Write)?;
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.set_len(0).map_err(ImageError::doing(path, "cannot create"))?;
    }
    Ok(file)
}

fn create_raw(path: &Path, file: &File, size: u64, preallocation: Preallocation) -> Result<()> {
    let failed = || ImageError::doing(path, "cannot create");
    let is_file = file.metadata().map_err(failed())?.is_file();
    if !is_file {
        return Ok(());
    }
    file.set_len(size).map_err(failed())?;
    match preallocation {
        Preallocation::Falloc if size > 0 => {
            let flags = FallocateFlags::empty();
            rustix::fs::fallocate(file, flags, 0, size).map_err(|errno| failed()(errno.into()))?;
        }
        Preallocation::Full => {
            let zeroes = vec![0; 1 << 20];
            for at in (0..size).step_by(zeroes.len()) {
                let length = (size - at).min(zeroes.len() as u64) as usize;
                file.write_all_at(&zeroes[..length], at).map_err(failed())?;
            }
        }
        _ => {}
    }
    file.sync_all().map_err(failed())
}

fn create_qcow2(path: &Path, file: File, size: u64, options: &CreateOptions) -> Result<()> {
    let failed = || ImageError::doing(path, "cannot create");
    let storage = file.try_clone().and_then(Storage::try_from).map_err(failed())?;
    let mut builder = Qcow2::<Storage>::create_builder(storage)
        .size(size)
        .cluster_size(options.cluster_size as usize)
        .refcount_width(options.refcount_bits as usize)
        .preallocate(match options.preallocation {
            Preallocation::Off => PreallocateMode::None,
            Preallocation::Metadata => PreallocateMode::FormatAllocate,
            Preallocation::Falloc => PreallocateMode::FullAllocate,
            Preallocation::Full => PreallocateMode::WriteData,
        });
    if let (Some(name), Some(format)) = (&options.backing_file, options.backing_format) {
        builder = builder.backing(name.clone(), format.to_string());
    }
    if let Some(name) = &options.data_file {
        let data_path: PathBuf = resolve(path, "data file", name)?;
        let data = new_file(&data_path)?;
        data.set_len(size).map_err(ImageError::doing(&data_path, "cannot create"))?;
        let data = Storage::try_from(data).map_err(ImageError::doing(&data_path, "cannot create"))?;
        builder = builder.data_file(name.clone(), data);
    }
    builder.create().map_err(failed())?;

    // What that does not know: older versions, and two feature bits.
    let mut image = Image::open(file.try_clone().map_err(failed())?).map_err(failed())?;
    let change = image.update_header(|header| {
        header.version = options.version;
        if options.version < Version::V3 {
            header.unknown_fields.clear();
            header.extensions.retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
        }
        header.compatible_features.set(Compatible::LAZY_REFCOUNTS, options.lazy_refcounts);
        header.autoclear_features.set(Autoclear::RAW_EXTERNAL_DATA, options.data_file_raw);
    });
    change.map_err(failed())?;
    file.sync_all().map_err(failed())
}
