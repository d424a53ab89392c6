//! How the program ends when something is wrong: one line, and a status of 2 for a mistake in how it was called, 1 for
//! anything else.

use clap::error::ErrorKind;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// A mistake in how the program was called.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error of a process that this one started, which has told the user itself.
#[derive(Debug)]
pub struct AlreadyTold(pub u8);

impl fmt::Display for AlreadyTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for AlreadyTold {}

/// Ends on what `clap` found: help goes to standard output, a mistake is one line.
pub fn of_arguments(error: &clap::Error) -> ExitCode {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand) {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    eprintln!("ringpair: {}", one_line(&error.to_string()));
    ExitCode::from(2)
}

/// Ends on what a subcommand returned.
pub fn of_running(error: &anyhow::Error) -> ExitCode {
    if let Some(AlreadyTold(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    let reader_left = error
        .chain()
        .any(|cause| cause.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe));
    if reader_left && error.downcast_ref::<OutputClosed>().is_some() {
        return ExitCode::SUCCESS;
    }
    eprintln!("ringpair: {}", one_line(&format!("{error:#}")));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

/// Standard output could not be written to.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("writing to standard output")
    }
}

/// `clap`'s message without its prefix, its usage and its line breaks.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|mark| message.find(mark)).min();
    let lines =
        message[..end.unwrap_or(message.len())].lines().map(str::trim).filter(|line| !line.is_empty());
    let mut all = String::new();
    for line in lines {
        let line = line.strip_prefix("tip: ").unwrap_or(line);
        if !all.is_empty() {
            all.push_str(if all.ends_with(':') { " " } else { "; " });
        }
        all.push_str(line);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arguments;
    use clap::{CommandFactory, Parser};

    fn refused(arguments: &str) -> String {
        match Arguments::try_parse_from(arguments.split(' ')) {
            Ok(_) => panic!("{arguments} was accepted"),
            Err(error) => one_line(&error.to_string()),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_option_and_what_would_be_right() {
        let error = refused("ringpair serve --sokcet /x null:1G");
        assert!(error.contains("'--sokcet'") && error.contains("'--socket'"), "{error}");
        let error = refused("ringpair serve --socket /x --poll never null:1G");
        assert!(error.contains("never") && error.contains("adaptive, always"), "{error}");
        let error = refused("ringpair serve null:1G");
        assert!(error.contains("--socket"), "{error}");
        for error in [refused("ringpair srve"), refused("ringpair serve --socket /x --queues 0 null:1G")] {
            assert!(!error.contains('\n') && !error.contains("Usage"), "{error}");
        }
    }
}
