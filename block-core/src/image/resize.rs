//! Another size for an image, as `qemu-img resize` gives it.

use super::chain::{Access, Chain, Layer};
use super::create::Preallocation;
use super::{Data, Format, ImageError, Result};
use crate::qcow2::layout::Version;
use crate::spec::parse_size;
use imago::format::PreallocateMode;
use std::path::Path;
use std::str::FromStr;

/// A size, or by how much to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many bytes.
    To(u64),
    /// So many more.
    More(u64),
    /// So many less.
    Less(u64),
}

impl FromStr for NewSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let size = |text: &str| {
            parse_size(text).ok_or_else(|| format!("`{text}` is no size such as 10G, +1G or -1G"))
        };
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => size(more).map(Self::More),
            (_, Some(less)) => size(less).map(Self::Less),
            _ => size(text).map(Self::To),
        }
    }
}

/// Resizes an image, and gives its new size. It only becomes smaller if `shrink`: what is cut off is lost.
///
/// # Errors
///
/// It would become smaller, or less than nothing; it has what does not go with that; or the host failed.
pub fn resize(
    path: &Path,
    format: Option<Format>,
    size: NewSize,
    shrink: bool,
    preallocation: Preallocation,
) -> Result<u64> {
    let layer = Layer::open(path, format, Access::Write)?;
    layer.usable()?;
    let old = layer.size();
    let new = match size {
        NewSize::To(size) => Some(size),
        NewSize::More(more) => old.checked_add(more),
        NewSize::Less(less) => old.checked_sub(less),
    };
    let Some(new) =
        new.filter(|new| *new <= i64::MAX as u64 / 512 * 512).map(|new| new.next_multiple_of(512))
    else {
        return Err(ImageError::refused(
            path,
            format_args!("has {old} bytes, and no disk can have that many then"),
        ));
    };
    if new < old && !shrink {
        return Err(ImageError::refused(
            path,
            format_args!(
                "has {old} bytes: --shrink makes it smaller, and what is behind {new} bytes is lost"
            ),
        ));
    }
    if new < old && preallocation != Preallocation::Off {
        return Err(ImageError::Usage("preallocation is for images that become larger".to_owned()));
    }
    match layer.format {
        Format::Raw => resize_raw(path, &layer, new, preallocation)?,
        Format::Qcow2 => resize_qcow2(path, layer, new, preallocation)?,
    }
    Ok(new)
}

fn resize_raw(path: &Path, layer: &Layer, size: u64, preallocation: Preallocation) -> Result<()> {
    let failed = || ImageError::doing(path, "cannot resize");
    match preallocation {
        Preallocation::Off => layer.file.set_len(size).map_err(failed())?,
        Preallocation::Falloc if size > layer.file_len => {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&layer.file, flags, layer.file_len, size - layer.file_len)
                .map_err(|errno| failed()(errno.into()))?;
        }
        Preallocation::Falloc => {}
        Preallocation::Metadata | Preallocation::Full => {
            return Err(ImageError::Usage("--preallocation of a raw image takes off, falloc".to_owned()));
        }
    }
    layer.file.sync_all().map_err(failed())
}

fn resize_qcow2(path: &Path, layer: Layer, size: u64, preallocation: Preallocation) -> Result<()> {
    if let Some(header) = layer.header.as_ref().filter(|header| header.nb_snapshots > 0) {
        if header.version < Version::V3 {
            return Err(ImageError::refused(path, "has snapshots that do not know their size (compat=0.10)"));
        }
        if size < header.size {
            return Err(ImageError::refused(path, "has snapshots: it cannot become smaller"));
        }
    }
    let mode = match preallocation {
        Preallocation::Off => PreallocateMode::None,
        Preallocation::Metadata => PreallocateMode::FormatAllocate,
        Preallocation::Falloc => PreallocateMode::FullAllocate,
        Preallocation::Full => PreallocateMode::WriteData,
    };
    let larger_than_backing = layer.backing_file().is_some();
    if larger_than_backing && preallocation != Preallocation::Off {
        return Err(ImageError::Usage(
            "preallocation of an image with a backing file would hide that".to_owned(),
        ));
    }
    let old = layer.size();
    let cluster_size = layer.header.as_ref().map_or(1, |header| header.cluster_size());
    let (mut data, mode) = if larger_than_backing {
        // What is behind its end must not show through.
        drop(layer);
        let chain = Chain::open(path, Some(Format::Qcow2), Access::Write)?;
        let shows = chain.layers().get(1).is_some_and(|backing| backing.size() > old);
        (Data::open(&chain)?, if shows && size > old { PreallocateMode::Zero } else { mode })
    } else {
        (Data::open(&Chain::of(layer))?, mode)
    };
    data.resize(size, mode)?;
    zero_rest_of_cluster(&data, old, old.next_multiple_of(cluster_size).min(size))?;
    data.sync()
}

/// The cluster that an image ended in may hold what was cut off when it became smaller: that must not come back.
fn zero_rest_of_cluster(data: &Data, from: u64, to: u64) -> Result<()> {
    let mut rest = vec![0; to.saturating_sub(from) as usize];
    data.read(from, &mut rest)?;
    if rest.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    rest.fill(0);
    data.write(from, &rest)
}
