//! `ringpair img convert`.

use super::progress::Progress;
use super::{format, size, told};
use anyhow::Result;
use block_core::image::Format;
use block_core::image::convert::{ConvertOptions, convert};
use block_core::image::create::CreateOptions;
use std::path::PathBuf;

/// Options of `ringpair img convert`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Format of the source; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// Format of the target
    #[arg(short = 'O', value_name = "FORMAT", value_parser = format, default_value = "raw")]
    target_format: Format,
    /// What the target is to be like, as of `ringpair img create`
    #[arg(short, value_name = "NAME=VALUE,…")]
    options: Vec<String>,
    /// So many zeroes together are left out of the target; 0 writes everything out
    #[arg(short = 'S', value_name = "SIZE", value_parser = size, default_value = "4k")]
    sparse_size: u64,
    /// Compress it (qcow2): clusters that are all zeroes are left out, others that do not become smaller are not compressed
    #[arg(short)]
    compress: bool,
    /// Read the source even while somebody writes to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Show how far it is
    #[arg(short)]
    progress: bool,
    /// The image to read
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The image to make
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// Carries it out.
///
/// # Errors
///
/// One of the images cannot be read or written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut create = CreateOptions::default();
    for text in &arguments.options {
        create.set_all(text, arguments.target_format).map_err(told)?;
    }
    let options = ConvertOptions {
        source_format: arguments.format,
        format: arguments.target_format,
        create,
        sparse_size: arguments.sparse_size,
        share: arguments.force_share,
        compress: arguments.compress,
    };
    let mut progress = Progress::new(arguments.progress);
    convert(&arguments.source, &arguments.target, &options, &mut |done, of| progress.show(done, of))
        .map_err(told)
}
