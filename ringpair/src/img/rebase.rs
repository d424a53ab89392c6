//! `ringpair img rebase`.

use super::progress::Progress;
use super::{format, told};
use crate::failure::Usage;
use anyhow::Result;
use block_core::image::Format;
use block_core::image::rebase::{Backing, rebase};
use std::path::PathBuf;

/// Options of `ringpair img rebase`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// The new backing file; a relative name is relative to the image, and an empty one is none
    #[arg(short, value_name = "FILE")]
    backing: String,
    /// The format of the new backing file
    #[arg(short = 'F', value_name = "FORMAT", value_parser = format)]
    backing_format: Option<Format>,
    /// Change the name only, for a backing file that was moved or changed: the image's contents are what comes of it
    #[arg(short = 'u')]
    names_only: bool,
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
/// One of the images cannot be used.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { format, backing, backing_format, names_only, image, .. } = arguments;
    let backing = match (backing.is_empty(), backing_format) {
        (true, None) => None,
        (true, Some(_)) => return Err(Usage("-F needs a backing file (-b FILE)".to_owned()).into()),
        (false, None) => {
            return Err(Usage(format!("say which format `{backing}` has: -F raw or -F qcow2")).into());
        }
        (false, Some(format)) => Some(Backing { name: backing.clone(), format: *format }),
    };
    let mut progress = Progress::new(arguments.progress);
    rebase(image, *format, backing.as_ref(), *names_only, &mut |done, of| progress.show(done, of))
        .map_err(told)
}
