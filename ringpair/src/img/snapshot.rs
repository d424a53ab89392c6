//! `ringpair img snapshot`.

use super::info::{snapshot_json, snapshot_table};
use super::progress::Progress;
use super::{Output, looking, print, print_json, told};
use anyhow::{Context, Result, bail};
use block_core::image::{Access, Format, Layer};
use block_core::qcow2::offline::{Image, apply_snapshot, create_snapshot, delete_snapshot};
use std::path::PathBuf;

/// Options of `ringpair img snapshot`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    action: Action,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// List them even while somebody writes to the image
    #[arg(short = 'U', long, conflicts_with_all = ["create", "apply", "delete"])]
    force_share: bool,
    /// Show how far it is
    #[arg(short)]
    progress: bool,
    /// The image, which is qcow2
    #[arg(value_name = "FILE")]
    image: PathBuf,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct Action {
    /// List them (which is done without any of these)
    #[arg(short)]
    list: bool,
    /// Take one
    #[arg(short, value_name = "NAME")]
    create: Option<String>,
    /// Make the image what it was when one was taken
    #[arg(short, value_name = "NAME")]
    apply: Option<String>,
    /// Delete one
    #[arg(short, value_name = "NAME")]
    delete: Option<String>,
}

/// Carries it out.
///
/// # Errors
///
/// There is no such snapshot, or the image cannot have it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (path, action) = (&arguments.image, &arguments.action);
    let changes = action.create.is_some() || action.apply.is_some() || action.delete.is_some();
    let access = if changes { Access::Write } else { looking(arguments.force_share) };
    let layer = Layer::open(path, None, access).map_err(told)?;
    if layer.format != Format::Qcow2 {
        bail!("{}: is {}, which has no snapshots", path.display(), layer.format);
    }
    let failed = || format!("{}", path.display());
    let mut image = layer.file.try_clone().and_then(Image::open).with_context(failed)?;
    let mut progress = Progress::new(arguments.progress);
    let mut show = |done, of| progress.show(done, of);
    if let Some(name) = &action.create {
        return create_snapshot(&mut image, name, &mut show).with_context(failed);
    }
    if let Some(name) = &action.apply {
        return apply_snapshot(&mut image, name, &mut show).with_context(failed);
    }
    if let Some(name) = &action.delete {
        return delete_snapshot(&mut image, name, &mut show).with_context(failed);
    }
    let (snapshots, _) = image.snapshots().with_context(failed)?;
    match arguments.output {
        Output::Json => print_json(&snapshots.iter().map(snapshot_json).collect()),
        Output::Human if snapshots.is_empty() => Ok(()),
        Output::Human => print(&snapshot_table(&snapshots)),
    }
}
