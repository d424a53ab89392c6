//! An image's data in another image, as `qemu-img convert` copies it.

use super::chain::{Access, Chain, Layer};
use super::create::{CreateOptions, Preallocation, create};
use super::data::{Data, PIECE};
use super::map::Mapper;
use super::{Format, ImageError, Progress, Result};
use crate::qcow2::layout::feature::Autoclear;
use crate::qcow2::offline::{CompressedWriter, Image};
use std::path::Path;

/// What is copied, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Format of the source; without it, what its first bytes say.
    pub source_format: Option<Format>,
    /// Format of the target.
    pub format: Format,
    /// What the target is to be like.
    pub create: CreateOptions,
    /// So many zeroes together are left out of the target, in bytes; 0 writes everything out.
    pub sparse_size: u64,
    /// The source may be in use.
    pub share: bool,
    /// Clusters are compressed; what is left out then is whole clusters.
    pub compress: bool,
}

/// Copies the data of an image and its backing files into a new one.
///
/// # Errors
///
/// Names the image that cannot be read or written.
pub fn convert(source: &Path, target: &Path, options: &ConvertOptions, progress: Progress<'_>) -> Result<()> {
    let access = if options.share { Access::Share } else { Access::Read };
    let chain = Chain::open(source, options.source_format, access)?;
    chain.layers().iter().try_for_each(Layer::readable)?;
    let mut mapper = Mapper::new(&chain)?;
    let size = mapper.size();
    if options.create.backing_file.is_some() {
        return Err(ImageError::Usage("convert makes images without backing files".to_owned()));
    }
    if options.compress {
        can_be_compressed(options)?;
    }
    if same_file(source, target) {
        return Err(ImageError::refused(target, "is the source as well"));
    }
    create(target, options.format, Some(size), &options.create, false)?;
    let target_path = target;
    let target_chain = Chain::open(target, Some(options.format), Access::Write)?;
    if options.compress {
        return copy_compressed(&mut mapper, &target_chain, options.sparse_size == 0, progress);
    }
    let target = Data::open(&target_chain)?;
    let write_zeroes = options.sparse_size == 0 && options.create.preallocation != Preallocation::Full;
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        progress(at, size);
        let extent = mapper.at(at, size)?;
        if extent.zero && !write_zeroes {
            at += extent.length;
            continue;
        }
        let length = extent.length.min(PIECE);
        let piece = &mut buffer[..length as usize];
        mapper.read(at, piece)?;
        match options.sparse_size {
            0 => target.write(at, piece)?,
            sparse => write_sparse(&target, at, piece, sparse)?,
        }
        at += length;
    }
    progress(size, size);
    target.sync()?;
    drop(target);
    if !options.create.data_file_raw {
        return Ok(());
    }
    // Whoever writes takes that back, for it does not know that nothing else was written.
    let failed = || ImageError::doing(target_path, "cannot write the header");
    let mut image = target_chain.top().file.try_clone().and_then(Image::open).map_err(failed())?;
    image
        .update_header(|header| header.autoclear_features |= Autoclear::RAW_EXTERNAL_DATA)
        .map_err(failed())?;
    target_chain.top().file.sync_all().map_err(failed())
}

/// Which options go with compression.
fn can_be_compressed(options: &ConvertOptions) -> Result<()> {
    let refused = match options {
        ConvertOptions { format: Format::Raw, .. } => "a raw image cannot be compressed: -O qcow2",
        ConvertOptions { create: CreateOptions { data_file: Some(_), .. }, .. } => {
            "what is in a data file cannot be compressed"
        }
        ConvertOptions { create: CreateOptions { preallocation, .. }, .. }
            if *preallocation != Preallocation::Off =>
        {
            "compressed clusters and preallocation contradict each other"
        }
        _ => return Ok(()),
    };
    Err(ImageError::Usage(refused.to_owned()))
}

/// Copies all clusters, but those that are zero unless they are wanted too.
fn copy_compressed(
    mapper: &mut Mapper<'_>,
    target: &Chain,
    zeroes: bool,
    progress: Progress<'_>,
) -> Result<()> {
    let layer = target.top();
    let failed = || ImageError::doing(&layer.path, "cannot write");
    let mut image = layer.file.try_clone().and_then(Image::open).map_err(failed())?;
    let cluster_size = image.header().cluster_size();
    let mut writer = CompressedWriter::begin(&mut image).map_err(failed())?;
    let size = mapper.size();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        progress(at, size);
        let extent = mapper.at(at, size)?;
        let whole = if at + extent.length == size {
            extent.length
        } else {
            extent.length / cluster_size * cluster_size
        };
        if extent.zero && !zeroes && whole > 0 {
            at += whole;
            continue;
        }
        // A piece is whole clusters, whatever their size.
        let length = extent.length.next_multiple_of(cluster_size).min(PIECE);
        let piece = &mut buffer[..length as usize];
        mapper.read(at, piece)?;
        for (offset, cluster) in
            (at..).step_by(cluster_size as usize).zip(piece.chunks(cluster_size as usize))
        {
            if zeroes || !is_zero(cluster) {
                writer.write(offset, cluster).map_err(failed())?;
            }
        }
        at += length;
    }
    progress(size, size);
    writer.end().map_err(failed())
}

fn same_file(one: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    canonical(one).is_some() && canonical(one) == canonical(other)
}

/// Writes what is not zero, of a piece of a disk that is zero so far: blocks of `sparse` bytes, aligned.
fn write_sparse(target: &Data, offset: u64, piece: &[u8], sparse: u64) -> Result<()> {
    let mut pending: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < piece.len() {
        let until_aligned = sparse - (offset + at as u64) % sparse;
        let length = (piece.len() - at).min(usize::try_from(until_aligned).unwrap_or(usize::MAX));
        if is_zero(&piece[at..at + length]) {
            if let Some((start, end)) = pending.take() {
                target.write(offset + start as u64, &piece[start..end])?;
            }
        } else {
            pending = Some((pending.map_or(at, |(start, _)| start), at + length));
        }
        at += length;
    }
    match pending {
        Some((start, end)) => target.write(offset + start as u64, &piece[start..end]),
        None => Ok(()),
    }
}

/// Whether there are only zeroes.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
