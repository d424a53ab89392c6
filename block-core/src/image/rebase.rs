//! Another backing file for an image, as `qemu-img rebase` gives it.

use super::chain::{Access, Chain, Layer, resolve};
use super::convert::is_zero;
use super::data::{Data, PIECE};
use super::map::Mapper;
use super::{Format, ImageError, Progress, Result};
use crate::qcow2::layout::Extension;
use crate::qcow2::offline::Image;
use std::path::Path;

/// The new backing file.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Its name, as it is to be in the image.
    pub name: String,
    /// Its format.
    pub format: Format,
}

/// Gives an image another backing file, or none. Its contents stay as they are: what the new one has otherwise is
/// copied into the image first. Unless `names_only`: then the image's contents are what the new one makes of them.
///
/// # Errors
///
/// The image is none that has backing files, one of the files is in use or cannot be read, or the host failed. The image is
/// what it was then.
pub fn rebase(
    path: &Path,
    format: Option<Format>,
    backing: Option<&Backing>,
    names_only: bool,
    progress: Progress<'_>,
) -> Result<()> {
    {
        let layer = Layer::open(path, format, Access::Write)?;
        let Some(header) = &layer.header else {
            return Err(ImageError::refused(path, "is raw, and has no backing file"));
        };
        if backing.is_some() && header.external_data_file() && !header.autoclear_features.is_empty() {
            return Err(ImageError::refused(
                path,
                "has a raw external data file, which goes with no backing file",
            ));
        }
        layer.usable()?;
    }
    if !names_only {
        copy_differences(path, backing, progress)?;
    }
    let layer = Layer::open(path, Some(Format::Qcow2), Access::Write)?;
    let failed = || ImageError::doing(path, "cannot write the header");
    let mut image = layer.file.try_clone().and_then(Image::open).map_err(failed())?;
    let change = image.update_header(|header| {
        header.backing_file = backing.map(|backing| backing.name.clone());
        header.extensions.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        header.extensions.extend(backing.map(|backing| Extension::BackingFormat(backing.format.to_string())));
    });
    change.map_err(failed())?;
    layer.file.sync_all().map_err(failed())
}

/// Copies into the image what it leaves to its backing file and the new one has otherwise.
fn copy_differences(path: &Path, backing: Option<&Backing>, progress: Progress<'_>) -> Result<()> {
    let chain = Chain::open(path, Some(Format::Qcow2), Access::Write)?;
    let new = match backing {
        None => None,
        Some(backing) => {
            let new_path = resolve(path, "backing file", &backing.name)?;
            let new = Chain::open(&new_path, Some(backing.format), Access::Read)?;
            if new.layers().iter().any(|layer| layer.path == path) {
                return Err(ImageError::refused(path, "would be its own backing file, in the end"));
            }
            Some(new)
        }
    };
    let mut new_mapper = new.as_ref().map(Mapper::new).transpose()?;
    let data = Data::open(&chain)?;
    let mut mapper = Mapper::new(&chain)?;
    let size = data.size();
    let (mut old_piece, mut new_piece) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let mut at = 0;
    while at < size {
        progress(at, size);
        let (own, length) = mapper.own(at, size)?;
        if own.is_some() {
            at += length;
            continue;
        }
        let old = mapper.at(at, at + length)?;
        let (new_zero, length) = match (&mut new_mapper, &new) {
            (Some(mapper), Some(new)) if at < new.top().size() => {
                let extent = mapper.at(at, (at + old.length).min(new.top().size()))?;
                (extent.zero, extent.length)
            }
            _ => (true, old.length),
        };
        if old.zero && new_zero {
            at += length;
            continue;
        }
        let length = length.min(PIECE);
        let (old_piece, new_piece) = (&mut old_piece[..length as usize], &mut new_piece[..length as usize]);
        mapper.read(at, old_piece)?;
        match &mut new_mapper {
            Some(mapper) => mapper.read(at, new_piece)?,
            None => new_piece.fill(0),
        }
        if old_piece != new_piece {
            match is_zero(old_piece) {
                true => data.write_zeroes(at, length)?,
                false => data.write(at, old_piece)?,
            }
        }
        at += length;
    }
    progress(size, size);
    data.sync()
}
