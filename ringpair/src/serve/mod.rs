//! `ringpair serve`: disks as NVMe controllers behind sockets, until a signal.

pub mod config;
mod options_to_paste;

use crate::count::count;
use crate::cpu_list::CpuList;
use crate::disk;
use crate::failure::{OutputClosed, Usage};
use anyhow::{Context, Result, ensure};
pub use config::Poll;
use config::{Controller, Plan};
use nvme_emu::subsystem::Subsystem;
use nvme_emu::vfio_user::Server;
use nvme_emu::{
    ControllerCounters, ControllerOptions, Engine, EngineError, EngineOptions, FaultScript, PollMode,
};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The line on standard output that says that every socket can be connected to.
pub const READY: &str = "ready";

/// Options of `ringpair serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the virtual machine connects: a UNIX socket that is made here, for this user only
    #[arg(long, value_name = "PATH", required_unless_present = "config", conflicts_with = "config")]
    pub socket: Option<PathBuf>,
    /// Serve the controllers that this TOML file describes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Threads that run the data path [default: 1, or one for each of --cpus]
    #[arg(long, value_name = "N", value_parser = count)]
    pub reactors: Option<NonZeroU16>,
    /// How they wait for work [default: adaptive]
    #[arg(long)]
    pub poll: Option<Poll>,
    /// Where they run, such as 2-3: the first reactor on the first CPU, and so on
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// I/O queue pairs that the guest may create [default: 8]
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "config")]
    pub queues: Option<NonZeroU16>,
    /// Misbehave as this TOML script says, to test the driver on the other side: see docs/faults.md
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub faults: Option<PathBuf>,
    /// Write counters to this file, as JSON, on SIGUSR1 and at the end
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Take the time of one command in some hundred, so that the counters say where it goes: queued, decode, disk, post
    #[arg(long, requires = "stats")]
    pub explain: bool,
    /// End when this process, the parent, does
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<i32>,
    /// Each a namespace: a file, or scheme:location, with options after commas: disk.img,cache=none, mem:1G
    #[arg(value_name = "DISK", required_unless_present = "config", conflicts_with = "config")]
    pub disks: Vec<String>,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
///
/// What cannot be served, and why; or that data could not be made durable at the end.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(parent) = arguments.parent {
        end_with(parent)?;
    }
    let plan = Plan::of(&arguments)?;
    // From here on a signal is kept until there is something to end.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1]).context("catching signals")?;
    raise_descriptor_limit();
    let served = Served::start(&plan, arguments.explain)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}{READY}", served.describe()).and_then(|()| out.flush()).context(OutputClosed)?;
    for signal in signals.forever() {
        if signal != SIGUSR1 {
            tracing::info!(signal, "ending");
            break;
        }
        if let Some(path) = &arguments.stats {
            served.write_stats(path)?;
        }
    }
    if let Some(path) = &arguments.stats {
        served.write_stats(path)?;
    }
    served.stop()
}

/// A running engine and what it serves.
struct Served {
    engine: Engine,
    controllers: Vec<(PathBuf, Arc<Subsystem>)>,
}

impl Served {
    fn start(plan: &Plan, explain: bool) -> Result<Self> {
        let poll = match plan.poll {
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Always => PollMode::Always,
        };
        // Disks before threads: what a user got wrong is found before anything runs.
        let mut subsystems = Vec::new();
        for controller in &plan.controllers {
            let subsystem = disk::subsystem(&controller.disks)?;
            disk::expect_queues(&subsystem, plan.reactors)?;
            subsystems.push(subsystem);
        }
        let options = EngineOptions { reactors: plan.reactors, poll, cpus: plan.cpus.clone() };
        let engine = Engine::start(options).map_err(wrong_number)?;
        let mut served = Self { engine, controllers: Vec::new() };
        for (controller, subsystem) in plan.controllers.iter().zip(subsystems) {
            served.add(controller, subsystem, explain)?;
        }
        Ok(served)
    }

    fn add(&mut self, controller: &Controller, subsystem: Arc<Subsystem>, explain: bool) -> Result<()> {
        let socket = std::path::absolute(&controller.socket)
            .with_context(|| format!("socket {}", controller.socket.display()))?;
        let faults = controller.faults.as_deref().map(read_faults).transpose()?;
        let queues = controller.queues.get();
        let options = ControllerOptions { queues, faults, explain, ..ControllerOptions::default() };
        let function = self.engine.add_controller(&subsystem, &options).map_err(wrong_number)?;
        if let Some(script) = &controller.faults {
            tracing::warn!("the controller at {} misbehaves as {} says", socket.display(), script.display());
        }
        let server = Server::bind(&socket, function.clone())?;
        self.engine.serve(&function, Box::new(server));
        self.controllers.push((socket, subsystem));
        Ok(())
    }

    /// For a person: what is served where, and how to plug it in.
    fn describe(&self) -> String {
        let mut text = String::new();
        for (socket, subsystem) in &self.controllers {
            let _ = writeln!(text, "serving at {}", socket.display());
            for namespace in subsystem.namespaces() {
                let access = if namespace.read_only() { ", read-only" } else { "" };
                let _ = writeln!(
                    text,
                    "  namespace {}: {} blocks of {} bytes{access}, uuid {}",
                    namespace.nsid(),
                    namespace.capacity_lbas(),
                    namespace.block_size(),
                    namespace.uuid(),
                );
            }
            let _ = writeln!(text, "  QEMU:             {}", options_to_paste::qemu(socket));
            let _ = writeln!(text, "  Cloud Hypervisor: {}", options_to_paste::cloud_hypervisor(socket));
        }
        text
    }

    /// Replaces the file as a whole, so that a reader finds the old counters or the new ones.
    fn write_stats(&self, path: &Path) -> Result<()> {
        let context = || format!("writing counters to {}", path.display());
        let counters = self.engine.counters();
        let sockets = self.controllers.iter().map(|(socket, _)| socket.as_path());
        let controllers = sockets.zip(&counters.controllers).zip(&self.controllers);
        let controllers = controllers.map(|((socket, counters), (_, subsystem))| Named {
            socket,
            counters,
            disks: disk_counters(subsystem),
        });
        let statistics = Statistics { controllers: controllers.collect(), sleeps: &counters.sleeps };
        let json = serde_json::to_vec_pretty(&statistics).with_context(context)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
        file.write_all(&json).with_context(context)?;
        file.persist(path).with_context(context)?;
        Ok(())
    }

    /// Stops the data path, then makes what it completed durable, on every disk even if one of them fails.
    fn stop(self) -> Result<()> {
        self.engine.shutdown();
        let flushed: Vec<Result<()>> =
            self.controllers.iter().map(|(_, subsystem)| disk::flush(subsystem)).collect();
        flushed.into_iter().collect()
    }
}

fn read_faults(path: &Path) -> Result<FaultScript> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(FaultScript::parse(&text).map_err(|wrong| Usage(format!("{}: {wrong}", path.display())))?)
}

/// What `--stats` writes.
#[derive(Serialize)]
struct Statistics<'a> {
    controllers: Vec<Named<'a>>,
    /// How often each reactor slept.
    sleeps: &'a [u64],
}

#[derive(Serialize)]
struct Named<'a> {
    socket: &'a Path,
    #[serde(flatten)]
    counters: &'a ControllerCounters,
    /// By namespace, what those disks count that count anything. Disks on one drive count together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    disks: BTreeMap<u32, BTreeMap<&'static str, u64>>,
}

fn disk_counters(subsystem: &Subsystem) -> BTreeMap<u32, BTreeMap<&'static str, u64>> {
    let namespaces = subsystem.namespaces().iter();
    let counters =
        namespaces.map(|it| (it.nsid(), it.disk().counters().into_iter().collect::<BTreeMap<_, _>>()));
    counters.filter(|(_, counters)| !counters.is_empty()).collect()
}

/// Numbers out of range are a mistake in the call.
fn wrong_number(error: EngineError) -> anyhow::Error {
    match error {
        EngineError::Reactors(_) | EngineError::Queues(_) => Usage(error.to_string()).into(),
        _ => error.into(),
    }
}

/// Asks the kernel to end this process with its parent, however that ends.
fn end_with(parent: i32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking to end with --parent")?;
    let alive = rustix::process::getppid() == Pid::from_raw(parent);
    ensure!(alive, "--parent {parent} is not the parent of this process, or has ended");
    Ok(())
}

/// Every vector of every controller may be an eventfd, and the customary soft limit of 1024 is there for `select`.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
}
