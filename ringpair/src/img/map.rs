//! `ringpair img map`.

use super::{Output, format, looking, told};
use crate::failure::OutputClosed;
use anyhow::{Context, Result};
use block_core::image::map::{Extent, Mapper};
use block_core::image::{Chain, Format, ImageError};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Options of `ringpair img map`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// For people (ranges with data) or for programs (all ranges)
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Look at it even while somebody writes to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
}

/// Either side of printing a map.
enum MapError {
    Image(ImageError),
    Output(std::io::Error),
}

impl From<ImageError> for MapError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// Carries it out.
///
/// # Errors
///
/// The image cannot be read.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { format, output, force_share, image } = arguments;
    let chain = Chain::open(image, *format, looking(*force_share)).map_err(told)?;
    let mut mapper = Mapper::new(&chain).map_err(told)?;
    // As it is found: there may be very much of it.
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mapped = match output {
        Output::Json => json(&mut mapper, &mut out),
        Output::Human => text(&mut mapper, &chain, &mut out),
    };
    match mapped {
        Ok(()) => out.flush().context(OutputClosed),
        Err(MapError::Output(error)) => Err(error).context(OutputClosed),
        Err(MapError::Image(error)) => Err(told(error)),
    }
}

fn json(mapper: &mut Mapper<'_>, out: &mut impl Write) -> Result<(), MapError> {
    let mut before = "[";
    mapper.each(|extent| {
        let written = write!(out, "{before}{}", to_json(&extent));
        before = ",\n";
        written.map_err(MapError::Output)
    })?;
    let nothing = if before == "[" { "[" } else { "" };
    writeln!(out, "{nothing}]").map_err(MapError::Output)
}

fn to_json(extent: &Extent) -> Value {
    let mut json = json!({
        "start": extent.start,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.present,
        "zero": extent.zero,
        "data": extent.data,
        "compressed": extent.compressed,
    });
    if let Some(offset) = extent.offset {
        json["offset"] = json!(offset);
    }
    json
}

fn text(mapper: &mut Mapper<'_>, chain: &Chain, out: &mut impl Write) -> Result<(), MapError> {
    let row = |out: &mut dyn Write, columns: [&str; 4]| {
        let [start, length, offset, file] = columns;
        writeln!(out, "{start:<16}{length:<16}{offset:<16}{file}").map_err(MapError::Output)
    };
    row(out, ["offset", "length", "mapped to", "file"])?;
    mapper.each(|extent| {
        if !extent.data || extent.zero {
            return Ok(());
        }
        let layer = &chain.layers()[extent.depth];
        let path = layer.data_file.as_ref().map_or(&layer.path, |(path, _)| path);
        let offset = extent.offset.map_or("compressed".to_owned(), |offset| format!("{offset:#x}"));
        let (start, length) = (format!("{:#x}", extent.start), format!("{:#x}", extent.length));
        row(out, [&start, &length, &offset, &path.display().to_string()])
    })
}
