//! The `ringpair` program: gives virtual machines NVMe disks, and drives and measures NVMe controllers.
//!
//! It composes the library crates and holds no logic of its own beyond that: a subcommand is a module. Start
//! reading at the one you are interested in.

mod bench;
mod controller;
mod count;
mod cpu_list;
mod disk;
mod failure;
mod identify;
mod img;
mod interruption;
mod io;
mod nvme;
mod query;
mod serve;
mod target;

use clap::{ArgAction, Parser, Subcommand};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Fast NVMe disks for virtual machines, over vfio-user, and a fast NVMe driver in userspace.
#[derive(Parser)]
#[command(name = "ringpair", version, max_term_width = 110)]
struct Arguments {
    /// Say more on standard error: -v what happens, -vv also why. RUST_LOG picks modules.
    #[arg(short, long, global = true, display_order = 100, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve disks as NVMe controllers that a virtual machine plugs in.
    Serve(serve::Arguments),
    /// Measure disks and servers, and hold them against what the machine can do.
    Bench(bench::Arguments),
    /// Show a controller and its namespaces.
    Identify(query::Query),
    /// Read, write, verify, flush, discard, compare: one command at a time.
    Io(io::Arguments),
    /// Make, look at, check, copy and change images, as qemu-img does
    #[command(subcommand)]
    Img(img::Command),
    /// Look after the NVMe controllers of this machine: list, bind, unbind, smart, format…
    #[command(subcommand)]
    Nvme(nvme::Command),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::of_arguments(&error),
    };
    listen_to_tracing(arguments.verbose);
    let done = match arguments.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Identify(query) => identify::run(&query),
        Command::Io(arguments) => io::run(&arguments),
        Command::Img(command) => img::run(&command),
        Command::Nvme(command) => nvme::run(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::of_running(&error),
    }
}

/// Sends events to standard error: those that `RUST_LOG` names, or else warnings and what `-v` adds.
fn listen_to_tracing(verbose: u8) {
    let default = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
