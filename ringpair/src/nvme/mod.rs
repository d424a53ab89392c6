//! `ringpair nvme`: the NVMe controllers of this machine, and what only an administrator asks a controller.
//!
//! * `list`, `bind`, `unbind`: who has which controller, and giving them to VFIO and back; `host` is where the machine
//!   is looked at, `in_use` what keeps a controller from being given away, with `label`.
//! * `smart`, `error_log`: what the controller keeps a record of (`log_page`); `format`: Format NVM.

mod bind;
mod error_log;
mod format;
mod host;
mod in_use;
mod label;
mod list;
mod log_page;
#[cfg(test)]
mod machine;
mod smart;

use crate::failure::OutputClosed;
use crate::identify;
use crate::query::Query;
use anyhow::{Context, Result};
use std::fmt::Display;
use std::io::Write as _;

/// Commands of `ringpair nvme`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show every NVMe controller of this machine, and whether it can be used
    List(list::Arguments),
    /// Take a controller from its driver and give it to VFIO, for programs to use
    Bind(bind::Arguments),
    /// Give a controller back to the driver that it had before
    Unbind(bind::Arguments),
    /// Show a controller and its namespaces
    Identify(Query),
    /// Show a controller's health (SMART / Health Information log page)
    Smart(Query),
    /// Show a controller's last errors (Error Information log page)
    ErrorLog(Query),
    /// Erase a namespace, and choose the size of its blocks (Format NVM)
    Format(format::Arguments),
}

/// Carries it out.
///
/// # Errors
///
/// What cannot be done, and what would be right.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list::run(arguments),
        Command::Bind(arguments) => bind::run_bind(arguments),
        Command::Unbind(arguments) => bind::run_unbind(arguments),
        Command::Identify(query) => identify::run(query),
        Command::Smart(query) => smart::run(query),
        Command::ErrorLog(query) => error_log::run(query),
        Command::Format(arguments) => format::run(arguments),
    }
}

/// Prints something and ends the line.
fn print(text: &impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context(OutputClosed)
}
