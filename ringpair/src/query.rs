//! A question to a controller, and how its answer is printed.

use crate::controller::Opened;
use crate::failure::OutputClosed;
use crate::interruption::Interruption;
use crate::target::Target;
use anyhow::{Context, Result};
use nvme_vfio::{Controller, Options};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write as _;

/// Options of commands that ask a controller something.
#[derive(clap::Args)]
pub struct Query {
    /// nvme://BDF[/NSID] or BDF, vfio-user:SOCKET[/NSID], or a DISK, for which a controller is started in this process
    #[arg(value_name = "TARGET")]
    pub target: Target,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Query {
    /// A question to this target, answered in text.
    #[cfg(test)]
    pub fn to(target: &str) -> Self {
        Self { target: target.parse().unwrap(), json: false }
    }

    /// Asks the target's controller, and lets go of it, also when the program is told to end meanwhile.
    ///
    /// # Errors
    ///
    /// The target cannot be reached, or what the question fails with.
    pub fn ask<T>(&self, question: impl FnOnce(&Controller) -> Result<T>) -> Result<T> {
        let interruption = Interruption::watch()?;
        let opened = Opened::target(&self.target, Options::default())?;
        let answer = question(&opened.controller);
        let closed = opened.close();
        let answer = answer?;
        closed?;
        interruption.check()?;
        Ok(answer)
    }

    /// Prints an answer, as JSON or as text.
    ///
    /// # Errors
    ///
    /// There is nobody to print it to.
    pub fn print(&self, answer: &impl Serialize, text: impl Display) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let written = if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(answer)?)
        } else {
            writeln!(out, "{text}")
        };
        written.context(OutputClosed)
    }
}
