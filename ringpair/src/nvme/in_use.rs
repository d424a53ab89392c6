//! What uses the namespaces of a controller that the kernel's driver has: whoever takes it away pulls the disk from
//! under them.

use super::host::{Host, OpenDevices, names};
use super::label;
use nvme_vfio::transport::vfio::PciDevice;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;

/// One use of one block device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The disk, or a partition, or what is made of them.
    device: String,
    how: How,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// Mounted there.
    Mounted(String),
    /// Swap space.
    Swap,
    /// Under another block device of the kernel's.
    Under(String),
    /// Labelled as a part of something that is not active.
    Labelled(&'static str),
    /// Open in processes.
    Open(Vec<String>),
    /// The kernel does not give it away, and does not say why.
    Claimed,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{} is ", self.device)?;
        match &self.how {
            How::Mounted(place) => write!(f, "mounted at {place}"),
            How::Swap => write!(f, "swap space"),
            How::Under(what) => write!(f, "part of {what}"),
            How::Labelled(what) => write!(f, "labelled as part of {what}"),
            How::Open(processes) => write!(f, "open in process {}", processes.join(", ")),
            How::Claimed => {
                write!(f, "in use by the kernel (a ZFS pool, or a mount in another mount namespace)")
            }
        }
    }
}

/// A controller's disks, which nobody else can mount or make part of anything as long as this lives.
#[derive(Debug, Default)]
pub struct Claim(#[expect(dead_code, reason = "held, not looked at")] Vec<OwnedFd>);

/// Everything that uses a controller's namespaces, as far as this user may see it; or, if nothing does, its disks.
///
/// # Errors
///
/// What uses them.
pub fn claim(host: &Host, controller: &PciDevice) -> Result<Claim, Vec<Use>> {
    let mut found = BTreeSet::new();
    let mut claimed = Vec::new();
    let tables = Tables::read(host);
    for disk in host.disks(controller) {
        let before = found.len();
        for device in with_partitions(host, &disk) {
            tables.uses(host, &device, &mut found);
        }
        // The kernel's own answer, which knows what no table shows. Who may not ask may not bind either.
        match rustix::fs::open(
            host.path(&format!("dev/{disk}")),
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(fd) => claimed.push(fd),
            Err(Errno::BUSY) if found.len() == before => {
                found.insert(Use { device: disk, how: How::Claimed });
            }
            Err(_) => {}
        }
    }
    if found.is_empty() { Ok(Claim(claimed)) } else { Err(found.into_iter().collect()) }
}

/// Uses, one after the other.
pub fn sentence(uses: &[Use]) -> String {
    uses.iter().map(Use::to_string).collect::<Vec<_>>().join("; ")
}

/// A disk and its partitions.
fn with_partitions(host: &Host, disk: &str) -> Vec<String> {
    let folder = host.path(&format!("sys/class/block/{disk}"));
    let partitions = names(&folder).into_iter().filter(|name| folder.join(name).join("partition").is_file());
    std::iter::once(disk.to_owned()).chain(partitions).collect()
}

/// What the kernel lists for the whole machine.
struct Tables {
    /// Which device by number, if it has one; which by name; where.
    mounts: Vec<(String, String, String)>,
    swaps: Vec<String>,
    opened: OpenDevices,
}

impl Tables {
    fn read(host: &Host) -> Self {
        let mounts = host.lines("proc/self/mountinfo");
        let swaps = host.lines("proc/swaps").into_iter().skip(1);
        Self {
            mounts: mounts.iter().filter_map(|line| mount(host, line)).collect(),
            swaps: swaps
                .filter_map(|line| Some(device_name(host, &unescape(line.split(' ').next()?))))
                .collect(),
            opened: host.open_devices(),
        }
    }

    /// Adds what uses a device, and what uses what is made of it.
    fn uses(&self, host: &Host, device: &str, found: &mut BTreeSet<Use>) {
        let folder = host.path(&format!("sys/class/block/{device}"));
        let number = host.line(&folder.join("dev")).unwrap_or_default();
        let mut add = |how| found.insert(Use { device: device.to_owned(), how });
        for (_, _, place) in self.mounts.iter().filter(|(at, name, _)| *at == number || name == device) {
            add(How::Mounted(place.clone()));
        }
        if self.swaps.iter().any(|swap| swap == device) {
            add(How::Swap);
        }
        let processes = self.opened.processes_with(&[format!("/dev/{device}")]);
        if !processes.is_empty() {
            add(How::Open(processes));
        }
        let holders = names(&folder.join("holders"));
        if holders.is_empty()
            && let Some(what) = label::of(host, device, &number)
        {
            add(How::Labelled(what));
        }
        for holder in holders {
            // What lies on top may be many layers high, but is never its own foundation.
            if found.insert(Use { device: device.to_owned(), how: How::Under(describe(host, &holder)) }) {
                self.uses(host, &holder, found);
            }
        }
    }
}

/// A line of mountinfo (the kernel's `Documentation/filesystems/proc.rst`, 3.5).
fn mount(host: &Host, line: &str) -> Option<(String, String, String)> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let number = front.next()?.to_owned();
    let place = unescape(front.nth(1)?);
    // File systems on several devices have a number of no device.
    let source = unescape(back.split(' ').nth(1)?);
    let name = if source.starts_with("/dev/") { device_name(host, &source) } else { String::new() };
    Some((number, name, place))
}

/// The kernel's name of a device that is given by a path in /dev, which may be a link.
fn device_name(host: &Host, path: &str) -> String {
    let real = host.absolute(path).canonicalize().unwrap_or_else(|_| path.into());
    real.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Undoes the octal escapes of white space in procfs.
fn unescape(text: &str) -> String {
    let mut all = text.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        all = all.replace(escape, plain);
    }
    all
}

/// What a block device on top of others is.
fn describe(host: &Host, holder: &str) -> String {
    let folder = host.path(&format!("sys/class/block/{holder}"));
    let (name, uuid) = (host.line(&folder.join("dm/name")), host.line(&folder.join("dm/uuid")));
    let kind = match (&uuid, folder.join("md").is_dir()) {
        (_, true) => "md RAID",
        (Some(uuid), _) if uuid.starts_with("LVM-") => "LVM volume",
        (Some(uuid), _) if uuid.starts_with("CRYPT-") => "encrypted volume",
        (Some(uuid), _) if uuid.starts_with("mpath-") => "multipath device",
        _ if name.is_some() => "device mapper device",
        _ => "block device",
    };
    format!("{kind} {}", name.as_deref().unwrap_or(holder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::machine::Machine;

    fn uses(machine: &Machine) -> Vec<String> {
        let host = machine.host();
        let device = host.device("0000:01:00.0".parse().unwrap()).unwrap();
        match claim(&host, &device) {
            Ok(_) => Vec::new(),
            Err(uses) => uses.iter().map(Use::to_string).collect(),
        }
    }

    /// A machine with a controller, its disk, and two partitions on that.
    fn machine() -> Machine {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("nvme"), Some(12));
        machine.disk("0000:01:00.0", "nvme0n1", "259:0");
        machine.partition("nvme0n1", 1, "259:1");
        machine.partition("nvme0n1", 2, "259:2");
        machine
    }

    #[test]
    fn what_nobody_uses_is_free() {
        let machine = machine();
        machine.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        machine.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
        assert_eq!(uses(&machine), [""; 0]);
    }

    #[test]
    fn a_mounted_partition_is_found_by_number() {
        let machine = machine();
        machine.write(
            "proc/self/mountinfo",
            "22 1 259:2 / /srv/my\\040data rw,relatime shared:1 - ext4 /dev/root rw\n",
        );
        assert_eq!(uses(&machine), ["/dev/nvme0n1p2 is mounted at /srv/my data"]);
    }

    #[test]
    fn a_mount_without_a_number_is_found_by_name_through_links() {
        let machine = machine();
        machine.link("dev/disk/by-label/data", "dev/nvme0n1p1");
        machine.write(
            "proc/self/mountinfo",
            "22 1 0:45 /@ /srv rw - btrfs /dev/disk/by-label/data rw,subvol=/@\n",
        );
        assert_eq!(uses(&machine), ["/dev/nvme0n1p1 is mounted at /srv"]);
    }

    #[test]
    fn swap_space_is_in_use() {
        let machine = machine();
        machine.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n");
        assert_eq!(uses(&machine), ["/dev/nvme0n1p1 is swap space"]);
    }

    #[test]
    fn what_lies_on_a_partition_is_named_with_what_uses_that() {
        let machine = machine();
        machine.holder("nvme0n1p1", "md127", "9:127");
        machine.write("sys/class/block/md127/md/level", "raid1\n");
        machine.holder("md127", "dm-0", "254:0");
        machine.write("sys/class/block/dm-0/dm/name", "vg-root\n");
        machine.write("sys/class/block/dm-0/dm/uuid", "LVM-x\n");
        machine.write("proc/self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/mapper/vg-root rw\n");
        assert_eq!(
            uses(&machine),
            [
                "/dev/dm-0 is mounted at /",
                "/dev/md127 is part of LVM volume vg-root",
                "/dev/nvme0n1p1 is part of md RAID md127"
            ]
        );
    }

    #[test]
    fn a_process_that_has_the_disk_open_is_named() {
        let machine = machine();
        machine.process(4711, "qemu", "/dev/nvme0n1");
        assert_eq!(uses(&machine), ["/dev/nvme0n1 is open in process 4711 (qemu)"]);
    }

    #[test]
    fn a_member_of_what_is_not_active_is_in_use_as_well() {
        let machine = machine();
        let mut label = vec![0; 1 << 20];
        label[512..520].copy_from_slice(b"LABELONE");
        label[536..544].copy_from_slice(b"LVM2 001");
        machine.write("dev/nvme0n1p2", &label);
        assert_eq!(uses(&machine), ["/dev/nvme0n1p2 is labelled as part of LVM"]);
    }

    #[test]
    fn with_native_multipath_the_disk_is_the_one_that_the_paths_lead_to() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("nvme"), Some(12));
        machine.disk("0000:01:00.0", "nvme0c1n1", "");
        machine.block("nvme0n1", "259:0");
        machine.write("proc/self/mountinfo", "22 1 259:0 / /srv rw - xfs /dev/nvme0n1 rw\n");
        assert_eq!(uses(&machine), ["/dev/nvme0n1 is mounted at /srv"]);
    }
}
