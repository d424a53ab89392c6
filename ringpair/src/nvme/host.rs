//! This machine's NVMe controllers, as its kernel shows them in sysfs and procfs: under a root folder, so that
//! tests can make up machines.

use anyhow::{Context, Result, anyhow};
use nvme_vfio::transport::vfio::{PciAddress, PciDevice, sysfs::CLASS_NVME};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A machine.
pub struct Host {
    root: PathBuf,
    write: fn(&Path, &str) -> io::Result<()>,
}

impl Host {
    /// The machine that this program runs on.
    pub fn this() -> Self {
        Self { root: PathBuf::from("/"), write: write_file }
    }

    /// One that is made up: its files are under `root`, and `write` does what its kernel does when one is written.
    #[cfg(test)]
    pub fn at(root: &Path, write: fn(&Path, &str) -> io::Result<()>) -> Self {
        Self { root: root.to_owned(), write }
    }

    /// The path of `sys/…`, `proc/…`, `dev/…` or `run/…`.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The path of something named by an absolute path.
    pub fn absolute(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The lines of a file; none if it cannot be read.
    pub fn lines(&self, relative: &str) -> Vec<String> {
        let text = fs::read(self.path(relative)).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// A file of one line, as sysfs has them; `None` if it cannot be read or is empty.
    pub fn line(&self, path: &Path) -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Writes a file of sysfs; being refused is explained.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        (self.write)(path, text).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                anyhow!(
                    "no permission to write {}: this needs root, as in `sudo ringpair nvme …`",
                    path.display()
                )
            }
            _ => anyhow!("writing {} to {}: {error}", text.trim(), path.display()),
        })
    }

    /// The PCI function at an address.
    pub fn device(&self, address: PciAddress) -> Option<PciDevice> {
        PciDevice::find_in(&self.path("sys"), address)
    }

    /// Its NVMe controllers, by address.
    ///
    /// # Errors
    ///
    /// There is no sysfs.
    pub fn controllers(&self) -> Result<Vec<PciDevice>> {
        let folder = self.path("sys/bus/pci/devices");
        let entries = match fs::read_dir(&folder) {
            // A machine without PCI has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path("sys/bus").is_dir() => {
                return Ok(Vec::new());
            }
            entries => entries.with_context(|| format!("{}: looking for controllers", folder.display()))?,
        };
        let addresses: BTreeSet<PciAddress> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let devices = addresses.into_iter().filter_map(|address| self.device(address));
        Ok(devices.filter(|device| device.class().is_ok_and(|class| class == CLASS_NVME)).collect())
    }

    /// The block devices of a controller's namespaces, as the kernel's nvme driver names them: `nvme0n1`, …
    pub fn disks(&self, controller: &PciDevice) -> Vec<String> {
        let Some((_, folder)) = kernel_controller(controller) else { return Vec::new() };
        let mut disks: Vec<_> = names(&folder).iter().filter_map(|name| disk_name(name)).collect();
        disks.sort();
        disks.dedup();
        disks
    }

    /// What the kernel's nvme driver has read from a controller that it is bound to: an attribute such as `model`.
    pub fn attribute(&self, controller: &PciDevice, name: &str) -> Option<String> {
        self.line(&kernel_controller(controller)?.1.join(name))
    }

    /// `VENDOR:DEVICE`, in hexadecimal.
    pub fn pci_id(&self, device: &PciDevice) -> Option<String> {
        let part = |name| {
            let text = self.line(&device.directory().join(name))?;
            Some(text.trim_start_matches("0x").to_owned())
        };
        Some(format!("{}:{}", part("vendor")?, part("device")?))
    }

    /// The files in /dev by which programs have a device through VFIO.
    pub fn vfio_files(&self, device: &PciDevice) -> Vec<String> {
        let group = device.iommu_group().map(|group| {
            let prefix = if group.is_no_iommu() { "noiommu-" } else { "" };
            format!("/dev/vfio/{prefix}{}", group.number())
        });
        let cdev = device.vfio_cdev().map(|name| format!("/dev/vfio/devices/{name}"));
        group.into_iter().chain(cdev).collect()
    }

    /// The devices of its IOMMU group for which VFIO gives none of them to programs: `0000:00:1f.0 (ahci)`, …
    pub fn in_the_way(&self, device: &PciDevice) -> Vec<String> {
        let Some(group) = device.iommu_group() else { return Vec::new() };
        let others = group.devices().into_iter().filter(|other| *other != device.address());
        let others = others.filter_map(|other| self.device(other));
        others
            .filter(PciDevice::is_in_the_way)
            .filter_map(|other| Some(format!("{} ({})", other.address(), other.driver()?)))
            .collect()
    }

    /// The files in /dev that other processes have open. Those of other users are seen by root only.
    pub fn open_devices(&self) -> OpenDevices {
        let this = std::process::id().to_string();
        let is_other = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != this;
        let mut opened = BTreeSet::new();
        for pid in names(&self.path("proc")).into_iter().filter(is_other) {
            let folder = self.path(&format!("proc/{pid}/fd"));
            let files = names(&folder).into_iter().filter_map(|fd| fs::read_link(folder.join(fd)).ok());
            for file in files.filter(|file| file.starts_with("/dev")) {
                let name = self.line(&self.path(&format!("proc/{pid}/comm")));
                opened.insert((file, format!("{pid} ({})", name.as_deref().unwrap_or("?"))));
            }
        }
        OpenDevices(opened)
    }
}

/// Files in /dev, each with a process that has it open.
pub struct OpenDevices(BTreeSet<(PathBuf, String)>);

impl OpenDevices {
    /// The processes that have one of these files open: `123 (qemu)`, …
    pub fn processes_with(&self, files: &[String]) -> Vec<String> {
        let with = self.0.iter().filter(|(opened, _)| files.iter().any(|file| opened == Path::new(file)));
        let mut processes: Vec<_> = with.map(|(_, process)| process.clone()).collect();
        processes.sort();
        processes.dedup();
        processes
    }
}

/// Opens a file for writing, as sysfs files are: they are there, or it is an error.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// The names in a folder; none if there is no such folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// What the kernel's nvme driver calls a controller, and its folder.
fn kernel_controller(controller: &PciDevice) -> Option<(String, PathBuf)> {
    let folder = controller.directory().join("nvme");
    let name = names(&folder).into_iter().next()?;
    let folder = folder.join(&name);
    Some((name, folder))
}

/// The block device of an entry in a controller's folder. With native multipath, the entry is the path `nvme0c1n1` to the
/// disk `nvme0n1`, which lies elsewhere.
fn disk_name(entry: &str) -> Option<String> {
    let (controller, namespace) = entry.strip_prefix("nvme")?.rsplit_once('n')?;
    let subsystem = controller.split_once('c').map_or(controller, |(subsystem, _)| subsystem);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (number(subsystem) && number(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::machine::Machine;

    #[test]
    fn disks_are_named_by_the_kernel() {
        assert_eq!(disk_name("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk_name("nvme2c3n14").as_deref(), Some("nvme2n14"));
        for other in ["ng0n1", "hwmon1", "nvme0", "power", "nvmen1", "nvme0n1p1"] {
            assert_eq!(disk_name(other), None, "{other}");
        }
    }

    #[test]
    fn controllers_are_found_by_their_class_and_in_order() {
        let machine = Machine::new();
        machine.controller("0000:02:00.0", Some("nvme"), Some(13));
        machine.controller("0000:01:00.0", None, None);
        machine.device("0000:00:1f.0", "0x010601", Some("ahci"), Some(1));
        let found = machine.host().controllers().unwrap();
        let found: Vec<_> = found.iter().map(|device| device.address().to_string()).collect();
        assert_eq!(found, ["0000:01:00.0", "0000:02:00.0"]);
    }

    #[test]
    fn a_machine_without_pci_has_no_controllers() {
        let root = tempfile::tempdir().unwrap();
        assert!(Host::at(root.path(), |_, _| Ok(())).controllers().is_err(), "that is no sysfs");
        fs::create_dir_all(root.path().join("sys/bus")).unwrap();
        assert!(Host::at(root.path(), |_, _| Ok(())).controllers().unwrap().is_empty());
    }

    #[test]
    fn bridges_and_vfio_devices_of_the_group_are_not_in_the_way() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("vfio-pci"), Some(12));
        machine.device("0000:00:1c.0", "0x060400", Some("pcieport"), Some(12));
        machine.device("0000:01:00.1", "0x010802", Some("vfio-pci"), Some(12));
        machine.device("0000:01:00.2", "0x020000", None, Some(12));
        let host = machine.host();
        let device = host.device("0000:01:00.0".parse().unwrap()).unwrap();
        assert!(host.in_the_way(&device).is_empty());
        machine.device("0000:01:00.3", "0x010601", Some("ahci"), Some(12));
        assert_eq!(host.in_the_way(&device), ["0000:01:00.3 (ahci)"]);
    }
}
