//! The program, run as a user runs it.

// Each file of tests is a program of its own, and uses its own part of this.
#![allow(dead_code)]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before the test is sure that it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Starts it, to be waited for.
fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_ringpair"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// Runs it to its end.
pub fn ringpair(arguments: &[&str]) -> Output {
    start(arguments).wait_with_output().expect("it ends")
}

/// Runs it, kills it after a while, and says whether it was still running then.
pub fn kill_after(delay: Duration, arguments: &[&str]) -> bool {
    let start = Instant::now();
    signal_when(|| start.elapsed() >= delay, Signal::KILL, arguments).status.code().is_none()
}

/// Runs it, sends it a signal as soon as it may come, and waits for its end.
pub fn signal_when(ready: impl Fn() -> bool, signal: Signal, arguments: &[&str]) -> Output {
    let child = start(arguments);
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < PATIENCE, "{arguments:?}: never ready for {signal:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Until somebody has waited for it, the number is its own.
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, signal).expect("it is ours");
    child.wait_with_output().expect("it ends")
}

/// Runs it and expects success; what it printed.
pub fn succeed(arguments: &[&str]) -> String {
    let output = ringpair(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Runs it and expects one line of error and a status; the line.
pub fn fail(status: i32, arguments: &[&str]) -> String {
    let output = ringpair(arguments);
    let errors = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    assert!(errors.starts_with("ringpair: "), "{errors}");
    errors
}

/// Runs `ringpair img` with arguments that have it print JSON; what it printed, whatever its status.
pub fn img_json(arguments: &[&str]) -> serde_json::Value {
    let output = ringpair(&[&["img"], arguments].concat());
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A running `ringpair serve`, killed when dropped.
pub struct Served {
    child: Child,
    /// What it printed up to `ready`.
    pub output: String,
}

impl Served {
    /// Starts it and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(Stdio::inherit(), arguments)
    }

    /// The same, with its standard error somewhere else.
    pub fn start_with(errors: impl Into<Stdio>, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringpair"))
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut output = String::new();
        for line in stdout.lines() {
            let line = line.expect("text");
            if line == "ready" {
                return Self { child, output };
            }
            output.push_str(&line);
            output.push('\n');
        }
        panic!("it ended before it was ready: {:?}", child.wait());
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
    }

    /// Has it write its counters to `path`, which it was given as `--stats`, and reads them.
    pub fn stats(&self, path: &str) -> serde_json::Value {
        let _ = std::fs::remove_file(path);
        self.signal(Signal::USR1);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // It may be half written.
            let json = std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(json) = json {
                return json;
            }
            assert!(Instant::now() < deadline, "no counters");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by a signal and says how it ended.
    pub fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it did not end");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A temporary folder with a way to name what is in it.
pub struct Folder(TempDir);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a plain name").to_owned()
    }

    /// A file of `size` zeroes; its path.
    pub fn file(&self, name: &str, size: u64) -> String {
        std::fs::File::create(self.path(name)).and_then(|file| file.set_len(size)).expect("a file");
        self.text(name)
    }

    /// A file with this in it; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("a file");
        self.text(name)
    }
}

/// A file's contents.
pub fn contents(path: &Path) -> Vec<u8> {
    let mut data = Vec::new();
    std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut data)).expect("a file");
    data
}
