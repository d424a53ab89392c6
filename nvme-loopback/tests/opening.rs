//! Disks by name, on drives that are emulated controllers behind sockets: opened once, shared, and what comes of it when
//! that fails or takes long.

mod drive;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use block_core::Disk;
use nvme_emu::vfio_user::Server;
use nvme_emu::{ControllerOptions, Engine, FaultScript};
use nvme_vfio::disk::NvmeDisk;
use nvme_vfio::disk::open::open_vfio_user;

/// Far more than any of this takes, even on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);

/// A controller behind a socket, with two namespaces.
struct Served {
    socket: PathBuf,
    _engine: Engine,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new(options: ControllerOptions) -> Self {
        let disks = vec![drive::open("mem:16M"), drive::open("mem:16M")];
        let (engine, function) = drive::controller(disks, 512, &options);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        engine.serve(&function, Box::new(Server::bind(&socket, function.clone()).unwrap()));
        Self { socket, _engine: engine, _folder: folder }
    }

    fn faulty(script: &str) -> Self {
        let faults = Some(FaultScript::parse(script).unwrap());
        Self::new(ControllerOptions { faults, ..ControllerOptions::default() })
    }

    /// Begins to open a disk, on a thread of its own: nothing of it may hang for good.
    fn begin(&self, nsid: u32, options: &str) -> mpsc::Receiver<Result<NvmeDisk, String>> {
        let name = format!("vfio-user:{}/{nsid}{options}", self.socket.display());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let opened = open_vfio_user(name.parse().unwrap());
            // Fails only if the test has failed.
            let _ = sender.send(opened.map_err(|error| error.to_string()));
        });
        receiver
    }

    fn open(&self, nsid: u32, options: &str) -> Result<NvmeDisk, String> {
        self.begin(nsid, options).recv_timeout(LONG).expect("it hangs")
    }
}

#[test]
fn a_drive_that_fails_while_it_is_opened_is_an_error_and_can_be_tried_again() {
    // The second Identify is the first after the controller was opened; the third is in the reset that follows.
    let served = Served::faulty(
        "[[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnth = 2\ndo = 'gone'\nlasting = '2s'\n",
    );
    let start = Instant::now();
    let error = served.open(1, "").err().expect("it has gone");
    assert!(error.contains("gone"), "{error}");
    while let Err(error) = served.open(1, "") {
        assert!(error.contains("gone"), "{error}");
        assert!(start.elapsed() < LONG, "{error}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_drive_that_is_slow_to_open_keeps_nobody_from_another_one() {
    let slow = Served::faulty("[[fault]]\nqueue = 'admin'\nopcode = 'identify'\ndo = 'delay'\nby = '3s'\n");
    let opening = slow.begin(1, "");
    // It has its place in the table, or comes to it while others are opened and closed.
    let start = Instant::now();
    let other = Served::new(ControllerOptions::default());
    while start.elapsed() < Duration::from_millis(500) {
        other.open(1, "").unwrap();
    }
    assert!(opening.try_recv().is_err(), "the slow one is not open yet");
    opening.recv_timeout(LONG).unwrap().unwrap();
}

#[test]
fn disks_that_are_opened_at_the_same_time_share_the_drive() {
    let served =
        Served::faulty("[[fault]]\nqueue = 'admin'\nopcode = 'identify'\ndo = 'delay'\nby = '200ms'\n");
    let opening = [1, 2, 1, 2].map(|nsid| served.begin(nsid, ""));
    let opened = opening.map(|opening| opening.recv_timeout(LONG).unwrap().unwrap());
    assert!(opened.iter().all(|disk| Arc::ptr_eq(disk.drive(), opened[0].drive())));
}

#[test]
fn more_queues_than_a_drive_has_are_refused_before_anybody_needs_them() {
    let served = Served::new(ControllerOptions { queues: 4, ..ControllerOptions::default() });
    let (first, second) = (served.open(1, "").unwrap(), served.open(2, "").unwrap());
    // One of the four is kept for flushes.
    first.expect_queues(2).unwrap();
    let error = second.expect_queues(2).unwrap_err().to_string();
    assert!(error.contains("4 queue pairs are wanted, one for each reactor and disk on it, and there are 3"));
    assert!(error.contains("use fewer reactors or disks, or more queue pairs (queues=)"), "{error}");
    second.expect_queues(1).unwrap();
    first.expect_queues(1).unwrap();
    second.expect_queues(2).unwrap();
    drop(second);
    first.expect_queues(3).unwrap();
    assert!(first.expect_queues(4).is_err());
}

#[test]
fn flushes_do_not_wait_for_queues_to_be_given_back() {
    let served = Served::new(ControllerOptions { queues: 3, ..ControllerOptions::default() });
    let (first, second) = (served.open(1, "").unwrap(), served.open(2, "").unwrap());
    let _queues = [first.open_queue(4).unwrap(), second.open_queue(4).unwrap()];
    assert!(first.open_queue(4).is_err(), "all are in use");
    thread::scope(|scope| {
        for disk in [&first, &second, &first, &second] {
            scope.spawn(|| (0..20).for_each(|_| disk.flush().unwrap()));
        }
    });
}
