//! A controller on a memory disk and a driver for it, in one process or in two.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::mem::MemDisk;
use nvme_emu::namespace::{Identity, Namespace, NamespaceOptions};
use nvme_emu::pci::PciFunction;
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::vfio_user::Server;
use nvme_emu::{ControllerOptions, Engine, EngineOptions, FaultScript, PollMode};
use nvme_loopback::Loopback;
use nvme_spec::Status;
use nvme_vfio::transport::VfioUser;
use nvme_vfio::{Controller, Options, QueuePair};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Where the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Loopback,
    /// In a process of its own, reached over vfio-user.
    VfioUser,
}

pub const PLACES: [Place; 2] = [Place::Loopback, Place::VfioUser];

/// What the controller is like.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    pub poll: PollMode,
    pub block_size: u32,
    pub capacity: u64,
    pub mdts: u8,
    pub queues: u16,
}

impl Default for Emulated {
    fn default() -> Self {
        Self { poll: PollMode::Adaptive, block_size: 512, capacity: 64 << 20, mdts: 8, queues: 8 }
    }
}

impl Emulated {
    fn start(self) -> (Engine, PciFunction) {
        self.start_with(None)
    }

    pub fn start_with(self, faults: Option<FaultScript>) -> (Engine, PciFunction) {
        let engine = Engine::start(EngineOptions { poll: self.poll, ..EngineOptions::default() }).unwrap();
        let disk = Arc::new(MemDisk::with_capacity(self.capacity).unwrap());
        let options = NamespaceOptions { block_size: Some(self.block_size), identity: Identity::Fresh };
        let namespace = Namespace::new(1, disk, &options).unwrap();
        let subsystem = Subsystem::new(SubsystemOptions::default(), vec![namespace]).unwrap();
        let options = ControllerOptions {
            queues: self.queues,
            mdts: self.mdts,
            faults,
            ..ControllerOptions::default()
        };
        let function = engine.add_controller(&subsystem, &options).unwrap();
        (engine, function)
    }

    fn to_arguments(self) -> String {
        let Self { poll, block_size, capacity, mdts, queues } = self;
        let always = poll == PollMode::Always;
        format!("{always} {block_size} {capacity} {mdts} {queues}")
    }

    fn from_arguments(arguments: &str) -> Self {
        let fields: Vec<&str> = arguments.split(' ').collect();
        Self {
            poll: if fields[0] == "true" { PollMode::Always } else { PollMode::Adaptive },
            block_size: fields[1].parse().unwrap(),
            capacity: fields[2].parse().unwrap(),
            mdts: fields[3].parse().unwrap(),
            queues: fields[4].parse().unwrap(),
        }
    }
}

/// The running controller and the driver for it.
pub struct Rig {
    /// The driver; before what it drives.
    pub controller: Controller,
    _behind: Behind,
}

enum Behind {
    Engine(#[expect(dead_code, reason = "kept running")] Engine),
    Server(#[expect(dead_code, reason = "kept running")] ServerProcess),
}

impl Rig {
    /// A controller in this process that misbehaves as the script says.
    pub fn faulty(script: &str, emulated: Emulated, options: Options) -> Self {
        let script = FaultScript::parse(script).unwrap();
        let (engine, function) = emulated.start_with(Some(script));
        let transport = Loopback::new("loopback", function).unwrap();
        let controller = Controller::open(Box::new(transport), options).unwrap();
        Self { controller, _behind: Behind::Engine(engine) }
    }

    pub fn new(place: Place, emulated: Emulated, options: Options) -> Self {
        match place {
            Place::Loopback => {
                let (engine, function) = emulated.start();
                let transport = Loopback::new("loopback", function).unwrap();
                let controller = Controller::open(Box::new(transport), options).unwrap();
                Self { controller, _behind: Behind::Engine(engine) }
            }
            Place::VfioUser => {
                let server = ServerProcess::start(emulated);
                let transport = VfioUser::connect(&server.socket()).unwrap();
                let controller = Controller::open(Box::new(transport), options).unwrap();
                Self { controller, _behind: Behind::Server(server) }
            }
        }
    }
}

const SOCKET: &str = "RINGPAIR_TEST_SOCKET";
const EMULATED: &str = "RINGPAIR_TEST_EMULATED";

/// This test's program once more, as a server; it ends when this end of its standard input does.
pub struct ServerProcess {
    child: Child,
    _output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl ServerProcess {
    pub fn start(emulated: Emulated) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rig::server_process", "--ignored", "--nocapture"])
            .env(SOCKET, folder.path().join("socket"))
            .env(EMULATED, emulated.to_arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "no server");
        }
        Self { child, _output: output, folder }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("socket")
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[test]
#[ignore = "started by the other tests, as their server"]
fn server_process() {
    let (Ok(socket), Ok(emulated)) = (std::env::var(SOCKET), std::env::var(EMULATED)) else { return };
    let (engine, function) = Emulated::from_arguments(&emulated).start();
    let server = Server::bind(Path::new(&socket), function.clone()).unwrap();
    engine.serve(&function, Box::new(server));
    println!("listening");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    engine.shutdown();
}

/// Kicks, and polls until so many commands have completed; sleeps on the interrupt if there is one.
pub fn complete(queue: &mut QueuePair, count: usize) -> Vec<(u64, Result<(), Status>)> {
    queue.kick();
    let mut completed = Vec::with_capacity(count);
    let start = Instant::now();
    while completed.len() < count {
        let found = queue.poll(|token, result| completed.push((token, result))).unwrap();
        if found == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "{} of {count} completed", completed.len());
            sleep(queue);
        }
    }
    completed
}

/// Sleeps until the interrupt, if the queue pair has one; gives the CPU away otherwise.
pub fn sleep(queue: &QueuePair) {
    let Some(fd) = queue.wait_fd() else { return std::thread::yield_now() };
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "no interrupt in 10 s");
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

/// Runs one command to its end.
pub fn run(
    queue: &mut QueuePair,
    submit: impl FnOnce(&mut QueuePair) -> Result<(), nvme_vfio::SubmitError>,
) -> Result<(), Status> {
    submit(queue).unwrap();
    complete(queue, 1)[0].1
}

/// Bytes that are different for each seed and place, so that whatever is in the wrong place shows.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
