//! `ringpair img commit`.

use super::progress::Progress;
use super::{format, told};
use anyhow::Result;
use block_core::image::Format;
use block_core::image::commit::commit;
use std::path::PathBuf;

/// Options of `ringpair img commit`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// Leave the image as it is, and do not empty it
    #[arg(short = 'd')]
    keep: bool,
    /// Show how far it is
    #[arg(short)]
    progress: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
}

/// Carries it out.
///
/// # Errors
///
/// The image has no backing file, or one of them cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut progress = Progress::new(arguments.progress);
    let Arguments { format, keep, image, .. } = arguments;
    commit(image, *format, *keep, &mut |done, of| progress.show(done, of)).map_err(told)
}
