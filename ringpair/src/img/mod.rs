//! `ringpair img`: images as files, with qemu-img's words and defaults.
//!
//! A file here is a command; what it does is in [`block_core::image`] and [`block_core::qcow2::offline`].

mod check;
mod commit;
mod convert;
mod create;
mod info;
mod map;
mod progress;
mod rebase;
mod resize;
mod snapshot;

use crate::failure::{OutputClosed, Usage};
use anyhow::{Context, Result, anyhow};
use block_core::image::{Access, Format, ImageError};
use block_core::spec::parse_size;
use serde_json::Value;
use std::fmt::Display;
use std::io::Write as _;

/// Commands of `ringpair img`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make an image
    Create(create::Arguments),
    /// Show what an image is like
    Info(info::Arguments),
    /// Look for leaks and corruption in a qcow2 image, and repair them. Exit status: 0 none, 2 corruption, 3 leaks, 63
    /// a format that cannot be checked
    Check(check::Arguments),
    /// Show where each range of an image comes from
    Map(map::Arguments),
    /// Copy an image's data into another image
    Convert(convert::Arguments),
    /// Make an image larger or smaller
    Resize(resize::Arguments),
    /// List, take, apply or delete internal snapshots
    Snapshot(snapshot::Arguments),
    /// Put an image's changes into its backing file
    Commit(commit::Arguments),
    /// Give an image another backing file
    Rebase(rebase::Arguments),
}

/// Carries it out.
///
/// # Errors
///
/// What cannot be done, and what would be right.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Create(arguments) => create::run(arguments),
        Command::Info(arguments) => info::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Map(arguments) => map::run(arguments),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Resize(arguments) => resize::run(arguments),
        Command::Snapshot(arguments) => snapshot::run(arguments),
        Command::Commit(arguments) => commit::run(arguments),
        Command::Rebase(arguments) => rebase::run(arguments),
    }
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Human,
    /// For programs, as qemu-img prints it.
    Json,
}

/// How an image is opened to look at it.
fn looking(force_share: bool) -> Access {
    if force_share { Access::Share } else { Access::Read }
}

/// An image's error, as this program's.
fn told(error: ImageError) -> anyhow::Error {
    match error {
        ImageError::Usage(text) => Usage(text).into(),
        error => anyhow!("{error}"),
    }
}

/// A size on the command line.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("`{text}` is no size such as 512M or 10G"))
}

/// A format on the command line.
fn format(text: &str) -> Result<Format, String> {
    text.parse()
}

/// Prints something and ends the line.
fn print(text: &impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context(OutputClosed)
}

/// Prints JSON.
fn print_json(value: &Value) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}
