//! What the kernel tells of PCI devices in sysfs: where they are, who drives them, what IOMMU group they are in.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a PCI function, `DDDD:BB:DD.F`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain: 16 bits, more where software makes domains up.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

/// A text that is not the address of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address: expected DDDD:BB:DD.F in hexadecimal, as in 0000:01:00.0")]
pub struct InvalidPciAddress(String);

impl FromStr for PciAddress {
    type Err = InvalidPciAddress;

    /// Reads `DDDD:BB:DD.F`, or, for domain 0, `BB:DD.F`.
    fn from_str(text: &str) -> Result<Self, InvalidPciAddress> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.split_once(':').unwrap_or(("0000", rest));
            let address = Self {
                domain: hexadecimal(domain, 4..=8)?,
                bus: hexadecimal(bus, 2..=2)? as u8,
                device: hexadecimal(device, 2..=2)? as u8,
                function: hexadecimal(function, 1..=1)? as u8,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| InvalidPciAddress(text.into()))
    }
}

fn hexadecimal(digits: &str, len: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain && len.contains(&digits.len()) { u32::from_str_radix(digits, 16).ok() } else { None }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// The PCI class code of an NVMe controller with I/O queues: mass storage, non-volatile memory, NVM Express.
pub const CLASS_NVME: u32 = 0x01_0802;

/// A PCI function, as sysfs shows it. Nothing is kept: each question is answered with how things are now.
#[derive(Clone, Debug)]
pub struct PciDevice {
    address: PciAddress,
    directory: PathBuf,
}

/// Drivers that the kernel lets be in a group that VFIO gives to programs: they do no DMA.
const HARMLESS_DRIVERS: [&str; 2] = ["pci-stub", "pcieport"];

impl PciDevice {
    /// The function at an address of this machine; `None` if there is none.
    pub fn find(address: PciAddress) -> Option<Self> {
        Self::find_in(Path::new("/sys"), address)
    }

    /// The same in a sysfs that is mounted elsewhere.
    pub fn find_in(sysfs: &Path, address: PciAddress) -> Option<Self> {
        let directory = sysfs.join("bus/pci/devices").join(address.to_string());
        directory.is_dir().then_some(Self { address, directory })
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its folder in sysfs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its class code, of 24 bits; [`CLASS_NVME`] if it is an NVMe controller.
    ///
    /// # Errors
    ///
    /// The device has gone, or this is no sysfs.
    pub fn class(&self) -> io::Result<u32> {
        let text = std::fs::read_to_string(self.directory.join("class"))?;
        let digits = text.trim().strip_prefix("0x").and_then(|digits| hexadecimal(digits, 1..=8));
        digits.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("a PCI class of {text:?}")))
    }

    /// The driver that it is bound to.
    pub fn driver(&self) -> Option<String> {
        target_name(&self.directory.join("driver"))
    }

    /// Whether its driver gives it to programs: `vfio-pci`, or one of the drivers made like it for particular devices.
    pub fn is_bound_to_vfio(&self) -> bool {
        // Kernels since 6.1 show a folder for each device that VFIO has.
        self.directory.join("vfio-dev").is_dir()
            || self.driver().is_some_and(|driver| driver.contains("vfio"))
    }

    /// Whether its driver keeps VFIO from giving others of its IOMMU group to programs.
    pub fn is_in_the_way(&self) -> bool {
        !self.is_bound_to_vfio()
            && self.driver().is_some_and(|driver| !HARMLESS_DRIVERS.contains(&driver.as_str()))
    }

    /// The name of its character device in /dev/vfio/devices, where the kernel makes one.
    pub fn vfio_cdev(&self) -> Option<String> {
        let names = std::fs::read_dir(self.directory.join("vfio-dev")).ok()?;
        let mut names = names.flatten().filter_map(|entry| {
            // Without a number of its own, it is only for show.
            entry.path().join("dev").is_file().then(|| entry.file_name().into_string().ok())?
        });
        names.next()
    }

    /// Its IOMMU group; `None` without an IOMMU.
    pub fn iommu_group(&self) -> Option<IommuGroup> {
        let number = target_name(&self.directory.join("iommu_group"))?.parse().ok()?;
        Some(IommuGroup { number, directory: self.directory.join("iommu_group") })
    }
}

/// The name of what a link points at.
fn target_name(link: &Path) -> Option<String> {
    std::fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// Devices that the IOMMU cannot keep apart: a program is given all of them or none.
#[derive(Clone, Debug)]
pub struct IommuGroup {
    number: u32,
    directory: PathBuf,
}

impl IommuGroup {
    /// Its number, which is its name in /dev/vfio.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether VFIO made it up, for a device that no IOMMU keeps from any memory.
    pub fn is_no_iommu(&self) -> bool {
        let name = std::fs::read_to_string(self.directory.join("name"));
        name.is_ok_and(|name| name.trim() == "vfio-noiommu")
    }

    /// The addresses of the PCI functions in it, in order.
    pub fn devices(&self) -> Vec<PciAddress> {
        let names = std::fs::read_dir(self.directory.join("devices")).into_iter().flatten().flatten();
        let mut devices: Vec<PciAddress> =
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        devices.sort();
        devices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_with_and_without_a_domain() {
        let there = PciAddress { domain: 0, bus: 0x1f, device: 0x10, function: 7 };
        assert_eq!(address("0000:1f:10.7"), there);
        assert_eq!(address("1f:10.7"), there);
        assert_eq!(address("10000:e1:00.0").domain, 0x10000);
        assert_eq!(address("ABCD:01:00.0").to_string(), "abcd:01:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for text in
            ["", ":", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "1:00.0", "0000:+1:00.0", "0:01:00.0"]
        {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("0000:01:00.0"), "{error}");
        }
    }

    /// A sysfs with one device, in IOMMU group 12, bound to a driver.
    fn tree(driver: Option<&str>) -> (tempfile::TempDir, PciDevice) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let device = path("devices/pci0000:00/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(path("bus/pci/devices")).unwrap();
        symlink(&device, path("bus/pci/devices/0000:01:00.0")).unwrap();
        fs::write(device.join("class"), "0x010802\n").unwrap();
        let group = path("kernel/iommu_groups/12");
        fs::create_dir_all(group.join("devices/0000:01:00.0")).unwrap();
        symlink(&group, device.join("iommu_group")).unwrap();
        if let Some(driver) = driver {
            let bound = path("bus/pci/drivers").join(driver);
            fs::create_dir_all(&bound).unwrap();
            symlink(&bound, device.join("driver")).unwrap();
        }
        let device = PciDevice::find_in(root.path(), address("0000:01:00.0")).unwrap();
        (root, device)
    }

    #[test]
    fn class_driver_and_group_are_found() {
        let (root, device) = tree(Some("nvme"));
        assert_eq!(device.class().unwrap(), CLASS_NVME);
        assert_eq!(device.driver().as_deref(), Some("nvme"));
        assert!(!device.is_bound_to_vfio());
        let group = device.iommu_group().unwrap();
        assert_eq!((group.number(), group.is_no_iommu()), (12, false));
        fs::create_dir(root.path().join("kernel/iommu_groups/12/devices/0000:00:1f.0")).unwrap();
        assert_eq!(group.devices(), [address("0000:00:1f.0"), address("0000:01:00.0")]);
        assert!(PciDevice::find_in(root.path(), address("0000:02:00.0")).is_none());
    }

    #[test]
    fn without_a_driver_or_an_iommu_there_is_none() {
        let (_root, device) = tree(None);
        assert_eq!(device.driver(), None);
        fs::remove_file(device.directory().join("iommu_group")).unwrap();
        assert!(device.iommu_group().is_none());
    }

    #[test]
    fn vfio_is_told_by_its_driver_or_its_folder() {
        assert!(tree(Some("vfio-pci")).1.is_bound_to_vfio());
        let (_root, device) = tree(Some("acme_pci"));
        assert_eq!(device.vfio_cdev(), None);
        fs::create_dir_all(device.directory().join("vfio-dev/vfio3")).unwrap();
        assert!(device.is_bound_to_vfio());
        // A kernel without character devices for devices shows the folder as well.
        assert_eq!(device.vfio_cdev(), None);
        fs::write(device.directory().join("vfio-dev/vfio3/dev"), "511:3\n").unwrap();
        assert_eq!(device.vfio_cdev().as_deref(), Some("vfio3"));
    }

    #[test]
    fn what_is_in_the_way_of_vfio_is_a_driver_that_does_dma() {
        for (driver, in_the_way) in
            [(None, false), (Some("vfio-pci"), false), (Some("pcieport"), false), (Some("ahci"), true)]
        {
            assert_eq!(tree(driver).1.is_in_the_way(), in_the_way, "{driver:?}");
        }
    }

    #[test]
    fn a_group_that_vfio_made_up_has_its_name() {
        let (root, device) = tree(Some("vfio-pci"));
        fs::write(root.path().join("kernel/iommu_groups/12/name"), "vfio-noiommu\n").unwrap();
        assert!(device.iommu_group().unwrap().is_no_iommu());
    }

    proptest! {
        #[test]
        fn addresses_print_as_they_are_read(domain: u32, bus: u8, device in 0..32u8, function in 0..8u8) {
            let there = PciAddress { domain, bus, device, function };
            prop_assert_eq!(there.to_string().parse(), Ok(there));
        }

        #[test]
        fn any_text_is_an_address_or_refused(text in ".{0,16}") {
            let _ = text.parse::<PciAddress>();
        }
    }
}
