//! `ringpair serve` killed with SIGKILL at random moments of a guest-like workload, which our own driver sends over
//! vfio-user. The machine runs on, and with it the page cache: a raw disk has every write that was acknowledged, in every
//! cache mode; a qcow2 image is not corrupt, and has what its mode has promised to keep.
//!
//! `RINGPAIR_SEEDS=100` kills a hundred times as often, `RINGPAIR_SEED=n` begins with seed n.

mod program;

use block_core::Registry;
use block_core::contract::durability::{History, Mode, Promise, Workload, seeds};
use block_core::contract::{Client, Random};
use block_core::qcow2::offline::{Image, Repair, check};
use program::Served;
use rustix::process::Signal;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// Kills of each mode and engine.
const KILLS: u64 = 12;

const CAPACITY: u64 = 1 << 20;

/// The longest that a server lives, once it has something to do.
const LIFE: u64 = 30_000;

/// A folder beside the build, where there is O_DIRECT.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// Serves a disk, runs a workload on it, and kills the server in the middle.
fn kill(folder: &Path, disk: &str, workload: &Workload) -> History {
    let socket = folder.join("socket");
    let socket = socket.to_str().expect("a plain name");
    let served = Served::start(&["--socket", socket, disk]);
    let mut registry = Registry::default();
    nvme_vfio::disk::register(&mut registry);
    let name = format!("vfio-user:{socket}/1");
    let driven = registry.open(name.parse().expect("a disk")).unwrap_or_else(|error| panic!("{error}"));
    let life = Duration::from_micros(Random::new(workload.seed).below(LIFE));
    let (began, begins) = mpsc::channel();
    let served = &served;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if begins.recv().is_ok() {
                std::thread::sleep(life);
                served.signal(Signal::KILL);
            }
        });
        // Whatever has been acknowledged was so before the end, so one moment is enough.
        let clock = move || {
            let _ = began.send(());
            0
        };
        workload.run(&*driven, &clock)
    })
}

fn workload(seed: u64, blank: bool) -> Workload {
    Workload { blank, requests: usize::MAX, whole_pages: seed % 2 == 1, ..Workload::new(seed) }
}

fn raw(mode: Mode) {
    let folder = folder();
    let path = folder.path().join("disk.img");
    let mut acknowledged = 0;
    for seed in seeds(KILLS) {
        let workload = workload(seed, false);
        std::fs::write(&path, workload.initial(CAPACITY)).expect("a disk");
        let history = kill(folder.path(), &format!("{},{mode}", path.display()), &workload);
        acknowledged += history.succeeded();
        let left = std::fs::read(&path).expect("what is left");
        if let Err(loss) = history.check(0, Promise::EveryWrite, &left) {
            panic!("{mode}, RINGPAIR_SEED={seed}, of {} requests: {loss}", history.requests());
        }
    }
    assert!(acknowledged > 10 * KILLS as usize, "{acknowledged} requests are too few to tell");
}

fn qcow2(mode: Mode) {
    let Some(qemu_img) = fixtures::qemu_img_or_skip() else { return };
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    let text = path.to_str().expect("a plain name");
    for seed in seeds(KILLS) {
        let shape = ["cluster_size=4k", "cluster_size=64k"][(seed % 2) as usize];
        qemu_img.ok(&["create", "-q", "-f", "qcow2", "-o", shape, text, &CAPACITY.to_string()]);
        let history = kill(folder.path(), &format!("{text},{mode}"), &workload(seed, true));
        let what = format!("{mode}, {shape}, RINGPAIR_SEED={seed}, of {} requests", history.requests());
        let file = std::fs::File::open(&path).expect("the image");
        let mut image = Image::open(file).unwrap_or_else(|error| panic!("{what}: {error}"));
        let report = check(&mut image, Repair::Nothing, &mut |_, _| {}).expect("a check");
        assert_eq!(report.corruptions, 0, "{what}: {:?}", report.findings);
        let disk = Registry::default().open(format!("{text},readonly=on").parse().expect("a disk"));
        let disk = disk.unwrap_or_else(|error| panic!("{what}: {error}"));
        let left = Client::new(&*disk, 1).read(0, CAPACITY as usize);
        history.check(0, mode.promise(), &left).unwrap_or_else(|loss| panic!("{what}: {loss}"));
    }
}

block_core::every_mode!(a_raw_disk_has_every_acknowledged_write, raw);
block_core::every_mode!(a_qcow2_image_has_what_was_promised, qcow2);
