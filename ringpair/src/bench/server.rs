//! The controller under test, in a process of its own: this program again, as `ringpair serve`.

use super::explain::Stages;
use crate::failure::AlreadyTold;
use crate::serve::READY;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an orderly end may take: it flushes the disk.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that ends with this value, and with this process, however that ends.
pub struct Server {
    process: Child,
    socket: PathBuf,
    /// Where it writes its counters, if it was started to explain.
    stats: Option<PathBuf>,
    /// Removed last.
    _folder: TempDir,
}

impl Server {
    /// Starts a server of one disk whose only reactor polls on `cpu`, and waits until it listens. With `explain`, it
    /// takes the time of some commands: see [`Server::stages`].
    ///
    /// # Errors
    ///
    /// It does not come up; if so, it has told the user why.
    pub fn start(disk: &str, queues: u16, cpu: usize, explain: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ringpair-bench-")
            .tempdir()
            .context("making a temporary folder for the server's socket")?;
        let socket = folder.path().join("bench.sock");
        let stats = explain.then(|| folder.path().join("stats.json"));
        let program = std::env::current_exe().context("finding this program, to start it as a server")?;
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .args(["--poll", "always", "--reactors", "1", "--cpus", &cpu.to_string()])
            .args(["--queues", &queues.to_string(), "--parent", &std::process::id().to_string()]);
        if let Some(stats) = &stats {
            command.arg("--explain").arg("--stats").arg(stats);
        }
        let mut process = command
            .args(["--", disk])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {} as a server", program.display()))?;
        let output = process.stdout.take().context("reading what the server says")?;
        let server = Self { process, socket, stats, _folder: folder };
        server.wait_until_ready(BufReader::new(output))
    }

    fn wait_until_ready(mut self, output: impl BufRead) -> Result<Self> {
        for line in output.lines() {
            if line.context("reading what the server says")? == READY {
                return Ok(self);
            }
        }
        let status = self.process.wait().context("waiting for the server")?;
        let status = status.code().and_then(|code| u8::try_from(code).ok());
        match status.filter(|&code| code != 0) {
            Some(status) => Err(AlreadyTold(status).into()),
            None => anyhow::bail!("the server ended before it was ready"),
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where its commands have spent their time so far; `None` if it was not started to say that.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub fn stages(&self) -> Result<Option<Stages>> {
        let Some(path) = &self.stats else { return Ok(None) };
        // Written as a whole, each time that it is asked for.
        let _ = std::fs::remove_file(path);
        self.signal(Signal::USR1);
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            ensure!(Instant::now() < deadline, "the server does not write its counters");
            std::thread::sleep(Duration::from_millis(1));
        }
        let json = std::fs::read(path).context("reading the server's counters")?;
        Stages::of_statistics(&json).map(Some)
    }

    /// CPU time that it has used, to the hundredth of a second.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).ok()?;
        // The program's name, in parentheses, may hold anything; utime and stime are the 12th and 13th after it.
        let (_, fields) = stat.rsplit_once(") ")?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Stops its threads until the value is dropped: its reactor never sleeps, and while a limit is measured on
    /// the same CPU, it must not take half of it.
    pub fn pause(&self) -> Paused<'_> {
        self.signal(Signal::STOP);
        Paused(self)
    }

    fn signal(&self, signal: Signal) {
        // The process has not been waited for, so the number is still its own.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::debug!(?signal, "signalling the server: {error}");
        }
    }
}

/// A [`Server`] that stands still.
pub struct Paused<'a>(&'a Server);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        tracing::warn!("the server under test did not end within {PATIENCE:?} of SIGTERM: killing it");
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
