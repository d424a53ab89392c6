//! Where it is measured: a guest with all contestants, our server beside it, and what the host counts of both.

use super::contestant::{Contestant, SharedDisk};
use super::fio::{self, Found, Job, RAMP};
use crate::serve::{Poll, READY};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use fixtures::{Builder, Guest, Process};
use rustix::process::Signal;
use serde::Deserialize;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long our server may take to start, to write its counters, and to end.
const SOON: Duration = Duration::from_secs(20);

/// How long fio may take beyond its time: it is started, warms up and ends, on an emulated processor.
const FIO_AROUND: Duration = Duration::from_secs(60);

/// A contestant's run, as measured from inside and from outside.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// What fio found.
    pub found: Found,
    /// Processor time of the host for each I/O: QEMU, and our server if it is its turn.
    pub cpu_per_io: Duration,
    /// What our server counted for each I/O, if it is its turn.
    pub counted: Option<Counted>,
}

/// For each I/O.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Doorbell writes that were trapped and came as messages.
    pub doorbell_messages: f64,
    /// Interrupts.
    pub interrupts: f64,
    /// Sleeps of the reactor.
    pub sleeps: f64,
}

/// A guest that runs, and our server.
pub struct Arena {
    guest: RefCell<Guest>,
    server: RefCell<Process>,
    /// The device of each contestant in the guest.
    devices: Vec<String>,
    size: u64,
    stats: PathBuf,
    /// Removed last.
    _folder: TempDir,
}

impl Arena {
    /// Starts a server of the disk, and a guest with one processor and all contestants.
    ///
    /// # Errors
    ///
    /// The server does not start, or there is no guest to be had, and why.
    pub fn open(disk: &SharedDisk, poll: Poll) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ringpair-compare-")
            .tempdir()
            .context("making a temporary folder for the server's socket")?;
        let (socket, stats) = (folder.path().join("ringpair.sock"), folder.path().join("stats.json"));
        let server = start_server(disk, poll, &socket, &stats)?;
        let mut builder = Builder::default().cpus(1);
        for contestant in Contestant::ALL {
            let arguments = contestant.qemu_arguments(disk, &socket);
            builder = builder.qemu_arguments(arguments.iter().map(String::as_str));
        }
        let guest = builder.boot().context("no guest to compare in")?;
        guest.check("modprobe virtio_blk; sleep 1").context("loading the guest's virtio driver")?;
        let devices = Contestant::ALL.iter().map(|contestant| {
            let device = guest.check(&format!("d=$({}) && [ -b $d ] && echo $d", contestant.find_in_guest()));
            Ok(device.with_context(|| format!("the guest has no disk of {contestant}"))?.trim().to_owned())
        });
        Ok(Self {
            devices: devices.collect::<Result<_>>()?,
            guest: RefCell::new(guest),
            server: RefCell::new(server),
            size: disk.size,
            stats,
            _folder: folder,
        })
    }

    /// A contestant's turn.
    ///
    /// # Errors
    ///
    /// Reads fail, or the guest or the server is gone.
    pub fn run(&self, contestant: Contestant, job: &Job) -> Result<Measured> {
        let number = Contestant::ALL.iter().position(|it| *it == contestant).unwrap_or(0);
        let command = job.command(&self.devices[number], self.size);
        let ours = contestant == Contestant::Ringpair;
        let device = &self.devices[number];
        let before = self.reads(device)?;
        let started = self.guest.borrow().start(&command)?;
        // Starting and ending fio costs the guest's processor more than its reads do: only what is between is counted.
        // fio goes on for its ramp longer than that.
        self.wait_for_reads(device, before + 8)?;
        let (began, before) = (Instant::now(), self.sample(ours)?);
        std::thread::sleep(job.runtime);
        let (window, after) = (began.elapsed(), self.sample(ours)?);
        let output = self.guest.borrow().wait(started, RAMP + job.runtime + FIO_AROUND)?;
        ensure!(output.success(), "fio in the guest: {}{}", output.stdout, output.stderr);
        let found = fio::parse(&output.stdout)?;
        // All of them had the same time, so what each did in it follows from its rate.
        let ios = (found.iops * window.as_secs_f64()).max(1.0);
        Ok(Measured {
            found,
            cpu_per_io: (after.cpu.saturating_sub(before.cpu)).div_f64(ios),
            counted: before.counters.zip(after.counters).map(|(before, after)| before.until(&after)),
        })
    }

    /// How many reads of a device the guest has completed: its kernel counts (`Documentation/block/stat.rst`).
    fn reads(&self, device: &str) -> Result<u64> {
        let output = self.guest.borrow().check(&format!("cat {}", stat(device)))?;
        let reads = output.split_whitespace().next().and_then(|reads| reads.parse().ok());
        reads.with_context(|| format!("the guest's count of reads of {device}: {output}"))
    }

    /// Waits until it has completed more than so many.
    fn wait_for_reads(&self, device: &str, reads: u64) -> Result<()> {
        let stat = stat(device);
        let wait = format!("until read now _ <{stat}; [ $now -gt {reads} ]; do sleep 0.05; done");
        self.guest.borrow().check(&wait).with_context(|| format!("waiting for reads of {device}"))?;
        Ok(())
    }

    fn sample(&self, ours: bool) -> Result<Sample> {
        let qemu = self.guest.borrow_mut().process().cpu_time()?;
        if !ours {
            return Ok(Sample { cpu: qemu, counters: None });
        }
        let counters = self.counters()?;
        Ok(Sample { cpu: qemu + self.server.borrow().cpu_time()?, counters: Some(counters) })
    }

    /// Asks our server for its counters.
    fn counters(&self) -> Result<Counters> {
        let _ = std::fs::remove_file(&self.stats);
        self.server.borrow_mut().signal(Signal::USR1)?;
        let deadline = Instant::now() + SOON;
        loop {
            // It appears whole.
            if let Ok(text) = std::fs::read_to_string(&self.stats) {
                let stats: Statistics =
                    serde_json::from_str(&text).context("reading our server's counters")?;
                let [sleeps] = stats.sleeps;
                let [controller] = stats.controllers;
                return Ok(Counters { controller, sleeps });
            }
            ensure!(Instant::now() < deadline, "our server does not write its counters");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the guest and the server in order.
    ///
    /// # Errors
    ///
    /// One of them does not end well.
    pub fn close(self) -> Result<()> {
        self.guest.into_inner().power_off()?;
        let mut server = self.server.into_inner();
        server.signal(Signal::TERM)?;
        let status = server.wait(SOON)?;
        ensure!(status.success(), "our server ended with {status}: {}", server.output());
        Ok(())
    }
}

/// Where the guest's kernel counts what a device does.
fn stat(device: &str) -> String {
    format!("/sys/block/{}/stat", device.trim_start_matches("/dev/"))
}

fn start_server(disk: &SharedDisk, poll: Poll, socket: &Path, stats: &Path) -> Result<Process> {
    let program = std::env::current_exe().context("finding this program, to start it as a server")?;
    let mut command = Command::new(program);
    let poll = poll.to_possible_value().map(|word| word.get_name().to_owned()).unwrap_or_default();
    command.arg("serve").arg("--socket").arg(socket).arg("--stats").arg(stats);
    command.args(["--poll", &poll, "--"]).arg(&disk.ours);
    let server = Process::spawn("ringpair serve", command, &[])?;
    server.wait_for(READY, SOON)?;
    Ok(server)
}

struct Sample {
    cpu: Duration,
    counters: Option<Counters>,
}

/// What `--stats` writes, as far as it matters here.
#[derive(Deserialize)]
struct Statistics {
    controllers: [ControllerCounters; 1],
    sleeps: [u64; 1],
}

#[derive(Clone, Copy, Deserialize)]
struct ControllerCounters {
    reads: u64,
    doorbell_messages: u64,
    interrupts: u64,
}

#[derive(Clone, Copy)]
struct Counters {
    controller: ControllerCounters,
    sleeps: u64,
}

impl Counters {
    fn until(&self, later: &Self) -> Counted {
        let (now, then) = (&later.controller, &self.controller);
        let reads = (now.reads - then.reads).max(1) as f64;
        Counted {
            doorbell_messages: (now.doorbell_messages - then.doorbell_messages) as f64 / reads,
            interrupts: (now.interrupts - then.interrupts) as f64 / reads,
            sleeps: (later.sleeps - self.sleeps) as f64 / reads,
        }
    }
}
