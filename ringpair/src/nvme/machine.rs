//! Machines that tests make up: sysfs, procfs and /dev as files in a folder, and as much of a kernel as binds drivers.

use super::host::Host;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub struct Machine {
    root: TempDir,
}

impl Machine {
    /// One with the drivers nvme and vfio-pci, and nothing that they could have.
    pub fn new() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        for driver in ["nvme", "vfio-pci"] {
            machine.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            machine.write(&format!("sys/bus/pci/drivers/{driver}/bind"), "");
        }
        machine.write("sys/bus/pci/drivers_probe", "");
        fs::create_dir_all(machine.path("sys/bus/pci/devices")).unwrap();
        machine
    }

    pub fn host(&self) -> Host {
        Host::at(self.root.path(), kernel)
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    pub fn write(&self, relative: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap()
    }

    /// A link from one path to another.
    pub fn link(&self, link: &str, target: &str) {
        let link = self.path(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(self.path(target), link).unwrap();
    }

    /// A PCI function.
    pub fn device(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
        let folder = format!("sys/bus/pci/devices/{address}");
        for (name, contents) in [
            ("class", class),
            ("driver_override", "(null)\n"),
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
        ] {
            self.write(&format!("{folder}/{name}"), contents);
        }
        if let Some(driver) = driver {
            self.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            self.link(&format!("{folder}/driver"), &format!("sys/bus/pci/drivers/{driver}"));
        }
        if let Some(group) = group {
            let group = format!("sys/kernel/iommu_groups/{group}");
            fs::create_dir_all(self.path(&format!("{group}/devices/{address}"))).unwrap();
            self.link(&format!("{folder}/iommu_group"), &group);
        }
    }

    /// An NVMe controller.
    pub fn controller(&self, address: &str, driver: Option<&str>, group: Option<u32>) {
        self.device(address, "0x010802\n", driver, group);
        if driver == Some("nvme") {
            let folder = format!("sys/bus/pci/devices/{address}/nvme/nvme0");
            self.write(&format!("{folder}/model"), "Made Up SSD 1TB                         \n");
            self.write(&format!("{folder}/serial"), "S0001               \n");
        }
    }

    /// A block device.
    pub fn block(&self, name: &str, number: &str) {
        self.write(&format!("sys/class/block/{name}/dev"), format!("{number}\n"));
        self.write(&format!("dev/{name}"), "");
    }

    /// What a controller has in its folder for a namespace, and the block device of that name.
    pub fn disk(&self, address: &str, name: &str, number: &str) {
        self.write(&format!("sys/bus/pci/devices/{address}/nvme/nvme0/{name}/size"), "2048\n");
        if !number.is_empty() {
            self.block(name, number);
        }
    }

    pub fn partition(&self, disk: &str, partition: u32, number: &str) {
        let name = format!("{disk}p{partition}");
        self.write(&format!("sys/class/block/{disk}/{name}/partition"), format!("{partition}\n"));
        self.block(&name, number);
    }

    /// A block device on top of another.
    pub fn holder(&self, device: &str, holder: &str, number: &str) {
        self.block(holder, number);
        self.write(&format!("sys/class/block/{device}/holders/{holder}"), "");
    }

    /// A process that has a file in /dev open.
    pub fn process(&self, pid: u32, name: &str, file: &str) {
        self.write(&format!("proc/{pid}/comm"), format!("{name}\n"));
        fs::create_dir_all(self.path(&format!("proc/{pid}/fd"))).unwrap();
        symlink(file, self.path(&format!("proc/{pid}/fd/5"))).unwrap();
    }

    /// The driver that a device is bound to.
    pub fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.path(&format!("sys/bus/pci/devices/{address}/driver"))).ok()?;
        Some(link.file_name().unwrap().to_str().unwrap().to_owned())
    }
}

/// What a kernel does when these files are written (its `Documentation/ABI/testing/sysfs-bus-pci`).
fn kernel(path: &Path, text: &str) -> io::Result<()> {
    let pci = path.ancestors().find(|folder| folder.ends_with("sys/bus/pci")).unwrap();
    let text = text.trim();
    let driver_link = pci.join("devices").join(text).join("driver");
    let bind = |driver: &str| {
        // A driver that has nothing to say of its devices does not take this one.
        let folder = pci.join("drivers").join(driver);
        if folder.join("refuses").exists() { Ok(()) } else { symlink(folder, &driver_link) }
    };
    match path.file_name().unwrap().to_str().unwrap() {
        "driver_override" => fs::write(path, if text.is_empty() { "(null)\n" } else { text }),
        "unbind" => fs::remove_file(driver_link),
        "bind" => bind(path.parent().unwrap().file_name().unwrap().to_str().unwrap()),
        "drivers_probe" => {
            let wanted = fs::read_to_string(pci.join("devices").join(text).join("driver_override"))?;
            match wanted.trim() {
                "(null)" => bind("nvme"),
                driver if pci.join("drivers").join(driver).exists() => bind(driver),
                _ => Ok(()),
            }
        }
        other => panic!("{other} was written"),
    }
}
