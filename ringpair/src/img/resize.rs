//! `ringpair img resize`.

use super::{format, told};
use anyhow::Result;
use block_core::image::Format;
use block_core::image::create::Preallocation;
use block_core::image::resize::{NewSize, resize};
use std::path::PathBuf;

/// Options of `ringpair img resize`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// How much of what is new is there from the beginning
    #[arg(long, value_name = "MODE", value_enum, default_value = "off")]
    preallocation: Mode,
    /// Let it become smaller; what is behind its new end is lost
    #[arg(long)]
    shrink: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Its new size, or by how much it changes: 20G, +1G, -1G
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    size: NewSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Off,
    Metadata,
    Falloc,
    Full,
}

/// Carries it out.
///
/// # Errors
///
/// The image cannot have that size.
pub fn run(arguments: &Arguments) -> Result<()> {
    let preallocation = match arguments.preallocation {
        Mode::Off => Preallocation::Off,
        Mode::Metadata => Preallocation::Metadata,
        Mode::Falloc => Preallocation::Falloc,
        Mode::Full => Preallocation::Full,
    };
    let Arguments { format, shrink, image, size, .. } = arguments;
    resize(image, *format, *size, *shrink, preallocation).map_err(told)?;
    Ok(())
}
