//! Block devices, under the shared contract and in what is special about them. Needs loop devices and the right to set
//! them up; elsewhere each test says that it was skipped.

use block_core::contract::{Client, pattern};
use block_core::{Disk, Operation, Registry, RequestFlags, Unmapped};
use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

const SIZE: u64 = 8 << 20;

/// A loop device over a file, gone when this is.
struct Loop {
    device: String,
    dir: TempDir,
}

impl Loop {
    fn new(sector: u32) -> Option<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("device.img");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size"])
            .arg(sector.to_string())
            .arg(&path)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
                Some(Self { device, dir })
            }
            Ok(output) => {
                eprintln!("skipped: losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: losetup: {error}");
                None
            }
        }
    }

    fn open(&self, options: &str) -> Arc<dyn Disk> {
        let name = format!("{},{options}", self.device);
        Registry::default().open(name.parse().unwrap()).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The device lets go of its file when the last who has it open closes it.
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A disk on a loop device, for the contract suite: the device goes when the disk is closed.
fn device(sector: u32, options: &str, read_only: bool) -> Option<Arc<dyn Disk>> {
    let switch = if read_only { "on" } else { "off" };
    Some(Loop::new(sector)?.open(&format!("{options},readonly={switch}")))
}

block_core::contract_suite!(buffered, |read_only| device(512, "cache=writeback", read_only));
block_core::contract_suite!(direct, |read_only| device(512, "cache=none", read_only));
block_core::contract_suite!(direct_4096, |read_only| device(4096, "cache=none", read_only));
block_core::contract_suite!(direct_4096_threads, |read_only| device(
    4096,
    "cache=none,aio=threads",
    read_only
));

#[test]
fn sizes_and_limits_are_the_devices() {
    let Some(device) = Loop::new(4096) else { return };
    for options in ["cache=none", "cache=writeback"] {
        let info = device.open(options).info();
        assert_eq!((info.capacity, info.logical_block_size), (SIZE, 4096));
        assert!(info.physical_block_size >= 4096);
    }
    assert_eq!(device.open("cache=none").info().request_alignment, 4096);
}

#[test]
fn a_discard_reaches_the_device_unless_it_is_ignored() {
    use std::os::unix::fs::MetadataExt;
    let Some(device) = Loop::new(512) else { return };
    let allocated = || std::fs::metadata(device.dir.path().join("device.img")).unwrap().blocks() * 512;
    for (options, given_back) in [("cache=none,discard=ignore", false), ("cache=none", true)] {
        let disk = device.open(options);
        let data = pattern(1, 0, SIZE as usize);
        let mut client = Client::new(&*disk, 4);
        client.write(0, &data);
        disk.flush().unwrap();
        if given_back && disk.info().unmapped == Unmapped::Ignored {
            eprintln!("skipped: the loop device has no discard");
            return;
        }
        let before = allocated();
        assert!(before >= SIZE);
        assert_eq!(client.run(Operation::Discard, (1000, SIZE / 2), RequestFlags::NONE), Ok(()));
        assert_eq!(allocated() < before - SIZE / 4, given_back, "{options}: {before}, then {}", allocated());
        assert!(client.read(0, 1000) == data[..1000], "before the discarded range");
        let after = 1000 + SIZE as usize / 2;
        assert!(client.read(after as u64, 4096) == data[after..after + 4096], "after it");
    }
}
