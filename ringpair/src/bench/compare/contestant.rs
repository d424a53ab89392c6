//! Who is compared, and the disk that all of them open.

use crate::disk;
use crate::failure::Usage;
use anyhow::{Context, Result};
use block_core::Registry;
use block_core::spec::parse_size;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;

/// A device of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contestant {
    /// Our controller, through `vfio-user-pci`.
    Ringpair,
    /// QEMU's `nvme`.
    QemuNvme,
    /// QEMU's `virtio-blk-pci` with an iothread.
    QemuVirtioBlk,
}

impl Contestant {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Ringpair, Self::QemuNvme, Self::QemuVirtioBlk];

    /// Where it is on the guest's PCI bus 0.
    fn slot(self) -> u8 {
        match self {
            Self::Ringpair => 0x10,
            Self::QemuNvme => 0x11,
            Self::QemuVirtioBlk => 0x12,
        }
    }

    /// A shell command that prints the path of its block device in the guest.
    pub fn find_in_guest(self) -> String {
        let device = format!("/sys/bus/pci/devices/0000:00:{:02x}.0", self.slot());
        match self {
            Self::Ringpair | Self::QemuNvme => format!("echo /dev/$(ls {device}/nvme)n1"),
            Self::QemuVirtioBlk => format!("echo /dev/$(ls {device}/virtio*/block)"),
        }
    }

    /// QEMU's arguments for it, with the disk or the socket of our server behind it.
    pub fn qemu_arguments(self, disk: &SharedDisk, socket: &Path) -> Vec<String> {
        let addr = format!("{:#x}", self.slot());
        let (driver, extra) = match self {
            Self::Ringpair => {
                let socket = json!({"type": "unix", "path": socket});
                let device = json!({"driver": "vfio-user-pci", "socket": socket, "addr": addr});
                return vec!["-device".to_owned(), device.to_string()];
            }
            Self::QemuNvme => ("nvme", json!({"serial": "qemu"})),
            Self::QemuVirtioBlk => ("virtio-blk-pci", json!({"iothread": "iothread"})),
        };
        let node = format!("disk-{driver}");
        let mut device = json!({"driver": driver, "drive": node, "addr": addr});
        merge(&mut device, extra);
        let mut arguments = vec!["-blockdev".to_owned(), disk.blockdev(&node).to_string()];
        if self == Self::QemuVirtioBlk {
            arguments.extend(["-object".to_owned(), "iothread,id=iothread".to_owned()]);
        }
        arguments.extend(["-device".to_owned(), device.to_string()]);
        arguments
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ringpair => "ringpair",
            Self::QemuNvme => "QEMU nvme",
            Self::QemuVirtioBlk => "QEMU virtio-blk",
        })
    }
}

/// A disk that ringpair and QEMU open alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDisk {
    /// What it is called in tables.
    pub name: String,
    /// As `ringpair serve` takes it.
    pub ours: String,
    /// What QEMU's -blockdev takes, without a node name.
    theirs: Value,
    /// Bytes.
    pub size: u64,
}

impl SharedDisk {
    /// Reads a disk's name: a raw file with `cache=none` or `writeback`, or `null:SIZE`.
    ///
    /// # Errors
    ///
    /// Something that QEMU has no counterpart of.
    pub fn parse(text: &str) -> Result<Self> {
        let mut spec = disk::parse(text)?;
        let wrong = |what: &str| {
            Err(Usage(format!(
                "--compare takes a raw file with cache=none or cache=writeback, or null:SIZE: {text} {what}"
            ))
            .into())
        };
        let cache = spec.take("cache").unwrap_or_else(|| "writeback".to_owned());
        if spec.finish().is_err() {
            return wrong("has other options");
        }
        if spec.scheme() == Some("null") {
            let Some(size) = parse_size(spec.location()) else { return wrong("has no size") };
            // Both leave what they do not read as it is.
            let theirs = json!({"driver": "null-co", "size": size, "read-zeroes": false});
            return Ok(Self { name: text.to_owned(), ours: text.to_owned(), theirs, size });
        }
        if !matches!(spec.scheme(), None | Some(Registry::FILE)) || spec.location().ends_with(".qcow2") {
            return wrong("is neither");
        }
        if !matches!(cache.as_str(), "none" | "writeback") {
            return wrong("has another cache mode");
        }
        let path = std::path::absolute(spec.location())
            .with_context(|| format!("the path of {}", spec.location()))?;
        let size = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        let theirs = json!({
            "driver": "file",
            "filename": path,
            "aio": if io_uring::IoUring::new(2).is_ok() { "io_uring" } else { "threads" },
            "cache": {"direct": cache == "none"},
            "read-only": true,
        });
        let ours = format!("file:{},cache={cache},readonly=on", escaped(&path));
        Ok(Self { name: text.to_owned(), ours, theirs, size })
    }

    /// The same disk by a shorter name.
    pub fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    fn blockdev(&self, node: &str) -> Value {
        let mut blockdev = self.theirs.clone();
        merge(&mut blockdev, json!({"node-name": node}));
        blockdev
    }
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_by_both_with_the_same_cache_and_never_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for (cache, direct) in [("none", true), ("writeback", false)] {
            let disk = SharedDisk::parse(&format!("{},cache={cache}", file.path().display())).unwrap();
            assert_eq!(disk.size, 1 << 20);
            assert!(disk.ours.ends_with(&format!(",cache={cache},readonly=on")), "{}", disk.ours);
            let theirs = disk.blockdev("node");
            assert_eq!((&theirs["cache"]["direct"], &theirs["read-only"]), (&direct.into(), &true.into()));
        }
    }

    #[test]
    fn disks_that_qemu_has_no_counterpart_of_are_refused_by_name() {
        for text in
            ["mem:1G", "disk.qcow2", "a.img,cache=unsafe", "null:1G,read-zeroes=on", "nvme://0000:01:00.0/1"]
        {
            let error = SharedDisk::parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn each_contestant_has_a_place_and_a_disk_of_its_own_name() {
        let disk = SharedDisk::parse("null:1G").unwrap();
        let all: Vec<String> =
            Contestant::ALL.map(|it| it.qemu_arguments(&disk, Path::new("/s")).join(" ")).into();
        assert!(all[0].contains("vfio-user-pci") && all[0].contains("\"/s\""), "{}", all[0]);
        assert!(all[1].contains("disk-nvme") && all[1].contains("null-co"), "{}", all[1]);
        assert!(all[2].contains("disk-virtio-blk-pci") && all[2].contains("iothread,id"), "{}", all[2]);
    }
}
