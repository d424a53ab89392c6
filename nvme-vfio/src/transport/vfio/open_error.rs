//! Why a controller cannot be had through VFIO, each with what to do about it.

use std::io;

use super::sysfs::PciAddress;

/// Why a controller cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at that address.
    #[error("{0}: there is no such PCI device")]
    NoDevice(PciAddress),
    /// There is something else at that address.
    #[error("{address} is not an NVMe controller (its PCI class is {class:#08x}, not 0x010802)")]
    NotNvme {
        /// Where.
        address: PciAddress,
        /// Its class code.
        class: u32,
    },
    /// No driver has it.
    #[error("{0} is bound to no driver: `ringpair nvme bind {0}` gives it to VFIO")]
    Unbound(PciAddress),
    /// Another driver has it, as a rule the kernel's own.
    #[error("{address} is bound to the driver {driver}: `ringpair nvme bind {address}` gives it to VFIO")]
    OtherDriver {
        /// Where.
        address: PciAddress,
        /// Which driver.
        driver: String,
    },
    /// Another process has it.
    #[error("{address} is in use by another process{other}")]
    InUse {
        /// Where.
        address: PciAddress,
        /// What else may be the reason.
        other: &'static str,
    },
    /// This process has it.
    #[error("{0} is open in this process already")]
    Open(PciAddress),
    /// Its file in /dev may not be opened.
    #[error(
        "{address}: no permission to open {path}: as root, `chown USER {path}`, or a udev rule with {rule}, \
         OWNER=\"USER\"",
        rule = udev_match(path)
    )]
    Permission {
        /// Where.
        address: PciAddress,
        /// The file.
        path: String,
    },
    /// Nothing keeps the device's DMA to this process' memory.
    #[error(
        "{0} is behind no IOMMU: switch it on in the firmware and with the kernel's arguments (intel_iommu=on, \
         amd_iommu=on)"
    )]
    NoIommu(PciAddress),
    /// It was to be used without an IOMMU, and has one.
    #[error("{0} is behind an IOMMU: use it, with vfio=auto")]
    HasIommu(PciAddress),
    /// Devices that cannot be kept apart from it are not given to VFIO.
    #[error(
        "{address} shares IOMMU group {group} with {others}: all of them have to be bound to vfio-pci, or to no driver"
    )]
    SharedGroup {
        /// Where.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The devices that are in the way, with their drivers.
        others: String,
    },
    /// The kernel has no VFIO, or not the part that it takes.
    #[error("{address}: {what}")]
    Missing {
        /// Where.
        address: PciAddress,
        /// What is missing.
        what: String,
    },
    /// Something else.
    #[error("{address}: {doing}: {source}")]
    Io {
        /// Where.
        address: PciAddress,
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OpenError {
    /// For `map_err`: a failure of the kernel's that has no name of its own.
    pub(super) fn io<E: Into<io::Error>>(
        address: PciAddress,
        doing: &str,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let doing = doing.to_owned();
        move |source| Self::Io { address, doing, source: source.into() }
    }
}

/// What a udev rule tells this file by.
fn udev_match(path: &str) -> &'static str {
    match path {
        "/dev/iommu" => "KERNEL==\"iommu\"",
        // Everybody may open the container, as it is installed.
        "/dev/vfio/vfio" => "KERNEL==\"vfio\"",
        path if path.starts_with("/dev/vfio/devices/") => "SUBSYSTEM==\"vfio-dev\"",
        _ => "SUBSYSTEM==\"vfio\"",
    }
}
