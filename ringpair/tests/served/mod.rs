//! A `ringpair serve` for guests to use, in a directory of its own.

// Each file of tests is a program of its own, and uses its own part of this.
#![allow(dead_code)]

use fixtures::{Builder, Process};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long the program may take to listen, and to end.
const SOON: Duration = Duration::from_secs(20);

/// A directory with disks, and a server of them.
pub struct Served {
    directory: TempDir,
    pub process: Process,
}

impl Served {
    /// Creates raw disk files of `sizes` bytes (`disk0`, `disk1`…) and serves all of them as one controller.
    pub fn files(sizes: &[u64]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut arguments = vec!["--socket".to_owned(), path_text(&directory.path().join("socket"))];
        for (number, size) in sizes.iter().enumerate() {
            let path = directory.path().join(format!("disk{number}"));
            std::fs::File::create(&path).and_then(|f| f.set_len(*size)).expect("a disk file");
            arguments.push(path_text(&path));
        }
        Self::launch(directory, &arguments)
    }

    /// Serves one disk, named as on the command line.
    pub fn disk(disk: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = path_text(&directory.path().join("socket"));
        Self::launch(directory, &["--socket".to_owned(), socket, disk.to_owned()])
    }

    /// Serves one new raw disk file per controller, from a configuration file: `socket0` with `disk0`, and so on.
    pub fn configured(sizes: &[u64]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut configuration = String::new();
        for (number, size) in sizes.iter().enumerate() {
            let disk = directory.path().join(format!("disk{number}"));
            std::fs::File::create(&disk).and_then(|f| f.set_len(*size)).expect("a disk file");
            let socket = path_text(&directory.path().join(format!("socket{number}")));
            configuration.push_str(&format!(
                "[[controller]]\nsocket = {socket:?}\ndisks = [{:?}]\n\n",
                path_text(&disk)
            ));
        }
        let file = directory.path().join("ringpair.toml");
        std::fs::write(&file, configuration).expect("a configuration file");
        Self::launch(directory, &["--config".to_owned(), path_text(&file)])
    }

    fn launch(directory: TempDir, arguments: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpair"));
        command.arg("serve").args(arguments);
        let process = Process::spawn("ringpair serve", command, &[]).expect("ringpair starts");
        process.wait_for("ready", SOON).expect("it listens");
        Self { directory, process }
    }

    /// The socket of the only controller.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The socket of one of several controllers.
    pub fn socket_of(&self, controller: usize) -> PathBuf {
        self.path(&format!("socket{controller}"))
    }

    /// A path in the server's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds the only controller to a guest.
    pub fn plug(&self, guest: Builder) -> Builder {
        guest.vfio_user(&self.socket())
    }

    /// Ends the server as an administrator does, checks that it ended well, and leaves the disks.
    pub fn stop(mut self) -> TempDir {
        self.process.signal(Signal::TERM).expect("it still runs");
        let status = self.process.wait(SOON).expect("it ends");
        assert!(status.success(), "{status}\n{}", self.process.output());
        self.directory
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("temporary directories have plain names").to_owned()
}
