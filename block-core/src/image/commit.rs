//! An image's changes put into its backing file, as `qemu-img commit` does.

use super::chain::{Access, Chain, Layer};
use super::data::{Data, PIECE};
use super::map::Mapper;
use super::{Format, ImageError, Progress, Result};
use imago::format::PreallocateMode;
use std::path::Path;

/// Writes what an image has of its own into its backing file, and empties the image, unless `keep`.
///
/// # Errors
///
/// It has no backing file, one of the images is in use or cannot be written, or the host failed. What was written to
/// the backing file by then is what the image says too, so that the same can be done again.
pub fn commit(path: &Path, format: Option<Format>, keep: bool, progress: Progress<'_>) -> Result<()> {
    let chain = Chain::open(path, format, Access::Read)?;
    let Some(backing) = chain.layers().get(1) else {
        return Err(ImageError::refused(path, "has no backing file"));
    };
    chain.top().readable()?;
    if !keep {
        // It is to be emptied.
        chain.top().usable()?;
    }
    let (backing_path, backing_format) = (backing.path.clone(), backing.format);
    let size = chain.top().size();
    // The backing file is written to, so it cannot be held as somebody's backing file meanwhile.
    drop(chain);
    {
        let target = Chain::open(&backing_path, Some(backing_format), Access::Write)?;
        let mut target_data = Data::open(&target)?;
        if target_data.size() < size {
            target_data.resize(size, PreallocateMode::None)?;
        }
        // By itself: where it has nothing of its own, nothing is read.
        let top = Chain::of(Layer::open(path, format, Access::Read)?);
        let mut mapper = Mapper::new(&top)?;
        let mut buffer = vec![0; PIECE as usize];
        let mut at = 0;
        while at < size {
            progress(at, size);
            let (own, length) = mapper.own(at, size)?;
            let length = match own {
                None => length,
                Some(extent) if extent.zero => {
                    target_data.write_zeroes(at, length)?;
                    length
                }
                Some(_) => {
                    let length = length.min(PIECE);
                    let piece = &mut buffer[..length as usize];
                    mapper.read(at, piece)?;
                    target_data.write(at, piece)?;
                    length
                }
            };
            at += length;
        }
        target_data.sync()?;
    }
    progress(size, size);
    if keep || size == 0 {
        return Ok(());
    }
    let chain = Chain::open(path, format, Access::Write)?;
    let mut data = Data::open(&chain)?;
    data.discard_to_backing(0, size)?;
    data.sync()
}
