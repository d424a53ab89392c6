//! `ringpair img create`.

use super::{format, size, told};
use anyhow::Result;
use block_core::image::Format;
use block_core::image::create::{CreateOptions, create};
use std::path::PathBuf;

/// Options of `ringpair img create`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format: raw or qcow2
    #[arg(short, value_name = "FORMAT", value_parser = format, default_value = "raw")]
    format: Format,
    /// What it is to be like: cluster_size=, refcount_bits=, compat=, preallocation=, lazy_refcounts=, data_file=,
    /// data_file_raw=, backing_file=, backing_fmt=
    #[arg(short, value_name = "NAME=VALUE,…")]
    options: Vec<String>,
    /// The backing file; a relative name is relative to the image
    #[arg(short, value_name = "FILE")]
    backing: Option<String>,
    /// The format of the backing file
    #[arg(short = 'F', value_name = "FORMAT", value_parser = format)]
    backing_format: Option<Format>,
    /// Do not look at the backing file, which may not be there
    #[arg(short = 'u')]
    unsafe_backing: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// How large its disk is, such as 20G; without it, as large as its backing file
    #[arg(value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
}

/// Carries it out.
///
/// # Errors
///
/// The image cannot be made.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { format, backing, backing_format, unsafe_backing, image, size, .. } = arguments;
    let mut options = CreateOptions::default();
    for text in &arguments.options {
        options.set_all(text, *format).map_err(told)?;
    }
    options.backing_file = backing.clone().or(options.backing_file);
    options.backing_format = backing_format.or(options.backing_format);
    create(image, *format, *size, &options, *unsafe_backing).map_err(told)
}
