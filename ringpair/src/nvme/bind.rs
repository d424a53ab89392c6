//! `ringpair nvme bind` and `unbind`: giving a controller to VFIO, and back to the driver that had it.
//!
//! By `driver_override`, so that no other device of the same kind is touched. What has to be put back is noted in
//! /run, which is as lasting as the binding is.

use super::host::Host;
use super::in_use;
use anyhow::{Context, Result, anyhow, bail};
use nvme_vfio::transport::vfio::{OpenError, PciAddress, PciDevice, sysfs::CLASS_NVME};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Options of `ringpair nvme bind` and `unbind`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The controller's PCI address, DDDD:BB:DD.F
    #[arg(value_name = "BDF")]
    address: PciAddress,
    /// Even if it is in use
    #[arg(long)]
    force: bool,
}

/// Gives it to VFIO.
///
/// # Errors
///
/// There is no such controller, it is in use, or the kernel refuses.
pub fn run_bind(arguments: &Arguments) -> Result<()> {
    let host = Host::this();
    for (module, there) in [("vfio_iommu_type1", "sys/module/vfio_iommu_type1"), (VFIO_PCI, VFIO_PCI_FOLDER)]
    {
        if !host.path(there).is_dir() {
            // Whether that worked is seen by the driver being there, and when the controller is opened.
            let loaded = Command::new("modprobe").arg(module).output();
            tracing::debug!(?loaded, "modprobe {module}");
        }
    }
    super::print(&bind(&host, arguments.address, arguments.force)?)
}

/// Gives it back.
///
/// # Errors
///
/// As [`run_bind`].
pub fn run_unbind(arguments: &Arguments) -> Result<()> {
    super::print(&unbind(&Host::this(), arguments.address, arguments.force)?)
}

const VFIO_PCI: &str = "vfio-pci";
const VFIO_PCI_FOLDER: &str = "sys/bus/pci/drivers/vfio-pci";
const NO_IOMMU_MODE: &str = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
const PROBE: &str = "sys/bus/pci/drivers_probe";

/// How a controller was before it was bound to VFIO.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    driver: Option<String>,
    driver_override: Option<String>,
    /// What the driver that had it knew of it.
    pub model: Option<String>,
    /// As `model`.
    pub serial: Option<String>,
}

impl Record {
    fn path(host: &Host, address: PciAddress) -> PathBuf {
        host.path(&format!("run/ringpair-nvme/{address}"))
    }

    fn of(host: &Host, device: &PciDevice) -> Self {
        Self {
            driver: device.driver(),
            driver_override: host
                .line(&device.directory().join("driver_override"))
                .filter(|driver| driver != "(null)"),
            model: host.attribute(device, "model"),
            serial: host.attribute(device, "serial"),
        }
    }

    /// What was noted of the controller at an address; nothing if it was bound by others.
    pub fn read(host: &Host, address: PciAddress) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(host, address)).ok()?).ok()
    }

    fn write(&self, host: &Host, address: PciAddress) -> Result<()> {
        let path = Self::path(host, address);
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| fs::write(&path, serde_json::to_vec(self)?));
        written.with_context(|| format!("{}: noting which driver has {address}", path.display()))
    }

    fn remove(host: &Host, address: PciAddress) {
        if let Err(error) = fs::remove_file(Self::path(host, address)) {
            tracing::debug!("{address}: removing the note on its driver: {error}");
        }
    }
}

fn controller(host: &Host, address: PciAddress) -> Result<PciDevice> {
    let device = host.device(address).ok_or(OpenError::NoDevice(address))?;
    let class = device.class().with_context(|| format!("{address}: reading its class"))?;
    if class != CLASS_NVME {
        return Err(OpenError::NotNvme { address, class }.into());
    }
    Ok(device)
}

/// Gives a controller to VFIO; what was done, in a sentence.
fn bind(host: &Host, address: PciAddress, force: bool) -> Result<String> {
    let device = controller(host, address)?;
    if device.is_bound_to_vfio() {
        return Ok(format!(
            "{address} is bound to {} already{}",
            driver_of(&device),
            how_to_open(host, &device)
        ));
    }
    if device.iommu_group().is_none() {
        without_iommu(host, address, force)?;
    }
    if !host.path(VFIO_PCI_FOLDER).is_dir() {
        bail!("{address}: the kernel has no driver vfio-pci: as root, `modprobe vfio-pci`");
    }
    // Held until the kernel's driver has let go.
    let claim = match in_use::claim(host, &device) {
        Ok(claim) => Some(claim),
        Err(_) if force => None,
        Err(uses) => {
            bail!("{address} is in use: {} (--force takes it away nevertheless)", in_use::sentence(&uses))
        }
    };
    let before = Record::of(host, &device);
    // First what changes nothing but needs the same permission.
    set_override(host, &device, VFIO_PCI)?;
    let moved = before.write(host, address).and_then(|()| rebind(host, &device, true));
    drop(claim);
    if let Err(error) = moved.and_then(|()| expect_vfio(&device)) {
        if let Err(error) = restore(host, &device, Some(&before)) {
            tracing::warn!("{address}: giving it back: {error:#}");
        }
        return Err(error);
    }
    let was = before.driver.map_or_else(|| "no driver".into(), |driver| format!("the driver {driver}"));
    Ok(format!("{address} is bound to vfio-pci now, and was to {was}{}", how_to_open(host, &device)))
}

/// Whether a controller that no IOMMU keeps from any memory is to be bound nevertheless.
fn without_iommu(host: &Host, address: PciAddress, force: bool) -> Result<()> {
    if !force {
        bail!("{}; to use it without (vfio=unsafe-no-iommu), --force", OpenError::NoIommu(address));
    }
    if host.line(&host.path(NO_IOMMU_MODE)).as_deref() != Some("Y") {
        bail!(
            "{address}: the kernel's VFIO is not in the mode that does without an IOMMU: as root, `modprobe vfio; echo Y \
             >/{NO_IOMMU_MODE}`, if this kernel has it"
        );
    }
    Ok(())
}

fn expect_vfio(device: &PciDevice) -> Result<()> {
    if device.is_bound_to_vfio() {
        return Ok(());
    }
    bail!("{}: vfio-pci did not take it: the kernel's log (`dmesg`) says why", device.address())
}

fn driver_of(device: &PciDevice) -> String {
    device.driver().unwrap_or_else(|| "no driver".into())
}

/// What to open, and what stands in the way of that.
fn how_to_open(host: &Host, device: &PciDevice) -> String {
    let Some(group) = device.iommu_group() else { return String::new() };
    let others = host.in_the_way(device);
    if others.is_empty() {
        let how = if group.is_no_iommu() { ", with vfio=unsafe-no-iommu" } else { "" };
        return format!("; programs open it by {}{how}", host.vfio_files(device).join(" or "));
    }
    let others = others.join(", ");
    format!("; but it shares IOMMU group {} with {others}, which have to leave their drivers", group.number())
}

/// Gives a controller back to the driver that had it; what was done, in a sentence.
fn unbind(host: &Host, address: PciAddress, force: bool) -> Result<String> {
    let device = controller(host, address)?;
    let before = Record::read(host, address);
    if let Some(driver) = device.driver()
        && !device.is_bound_to_vfio()
    {
        return Ok(format!("{address} is bound to the driver {driver}, not to VFIO: nothing to do"));
    }
    if !force {
        refuse_if_open(host, &device)?;
    }
    restore(host, &device, before.as_ref())?;
    let noted = before.is_some();
    match (device.driver(), before.and_then(|before| before.driver)) {
        (Some(driver), _) => {
            Record::remove(host, address);
            Ok(format!("{address} is bound to the driver {driver} again"))
        }
        (None, None) if noted => {
            Record::remove(host, address);
            Ok(format!("{address} is bound to no driver again"))
        }
        (None, _) => bail!("{address}: no driver took it: the kernel's log (`dmesg`) says why"),
    }
}

/// The kernel would wait for whoever has the controller open, however long.
fn refuse_if_open(host: &Host, device: &PciDevice) -> Result<()> {
    let address = device.address();
    let files = host.vfio_files(device);
    let processes = host.open_devices().processes_with(&files);
    if !processes.is_empty() {
        bail!("{address} is in use by process {}: end that first", processes.join(", "));
    }
    for file in files {
        // Processes in other places are not seen, but felt.
        let opened = rustix::fs::open(host.absolute(&file), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if opened.err() == Some(Errno::BUSY) {
            return Err(OpenError::InUse { address, other: "" }.into());
        }
    }
    Ok(())
}

fn set_override(host: &Host, device: &PciDevice, driver: &str) -> Result<()> {
    host.write(&device.directory().join("driver_override"), &format!("{driver}\n"))
}

/// Takes the device from its driver and, if asked, has the kernel look for the one that it is to have.
fn rebind(host: &Host, device: &PciDevice, probe: bool) -> Result<()> {
    let address = device.address().to_string();
    if device.driver().is_some() {
        host.write(&device.directory().join("driver/unbind"), &address)?;
    }
    if probe { host.write(&host.path(PROBE), &address) } else { Ok(()) }
}

/// Puts things back to how they were; without a note of that, to what the kernel chooses.
fn restore(host: &Host, device: &PciDevice, before: Option<&Record>) -> Result<()> {
    let default = Record::default();
    let wanted = before.unwrap_or(&default);
    set_override(host, device, wanted.driver_override.as_deref().unwrap_or(""))?;
    if device.driver().is_some() && device.driver() == wanted.driver {
        return Ok(());
    }
    rebind(host, device, before.is_none() || wanted.driver.is_some())?;
    match &wanted.driver {
        Some(driver) if device.driver().as_ref() != Some(driver) => {
            // One that the kernel does not choose by itself.
            let name = fs::exists(host.path(&format!("sys/bus/pci/drivers/{driver}/bind")));
            if driver.contains('/') || !name.unwrap_or(false) {
                return Err(anyhow!("{}: the driver {driver}, which it had, is not there", device.address()));
            }
            if device.driver().is_some() {
                rebind(host, device, false)?;
            }
            let path = host.path(&format!("sys/bus/pci/drivers/{driver}/bind"));
            host.write(&path, &device.address().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::machine::Machine;
    use std::io;

    const ADDRESS: &str = "0000:01:00.0";

    fn address() -> PciAddress {
        ADDRESS.parse().unwrap()
    }

    fn machine(driver: Option<&str>) -> Machine {
        let machine = Machine::new();
        machine.controller(ADDRESS, driver, Some(12));
        machine.disk(ADDRESS, "nvme0n1", "259:0");
        machine
    }

    #[test]
    fn bind_gives_a_controller_to_vfio_and_unbind_back_to_its_driver() {
        let machine = machine(Some("nvme"));
        let said = bind(&machine.host(), address(), false).unwrap();
        assert!(said.contains("nvme") && said.contains("/dev/vfio/12"), "{said}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("vfio-pci"));
        let said = unbind(&machine.host(), address(), false).unwrap();
        assert!(said.contains("nvme"), "{said}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
        let driver_override = machine.read(&format!("sys/bus/pci/devices/{ADDRESS}/driver_override"));
        assert_eq!(driver_override, "(null)\n");
        assert!(Record::read(&machine.host(), address()).is_none(), "no note is left behind");
    }

    #[test]
    fn the_note_keeps_what_only_the_former_driver_knew() {
        let machine = machine(Some("nvme"));
        bind(&machine.host(), address(), false).unwrap();
        let record = Record::read(&machine.host(), address()).unwrap();
        assert_eq!(record.model.as_deref(), Some("Made Up SSD 1TB"));
        assert_eq!(record.serial.as_deref(), Some("S0001"));
    }

    #[test]
    fn a_driver_that_the_kernel_would_not_choose_is_restored_too() {
        let machine = machine(Some("acme"));
        machine.write("sys/bus/pci/drivers/acme/bind", "");
        bind(&machine.host(), address(), false).unwrap();
        unbind(&machine.host(), address(), false).unwrap();
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("acme"));
    }

    #[test]
    fn an_override_that_was_there_is_restored() {
        let machine = machine(Some("acme"));
        let path = format!("sys/bus/pci/devices/{ADDRESS}/driver_override");
        machine.write(&path, "acme\n");
        bind(&machine.host(), address(), false).unwrap();
        unbind(&machine.host(), address(), false).unwrap();
        assert_eq!((machine.driver(ADDRESS).as_deref(), &*machine.read(&path)), (Some("acme"), "acme"));
    }

    #[test]
    fn a_controller_without_a_driver_gets_none_back() {
        let machine = machine(None);
        bind(&machine.host(), address(), false).unwrap();
        unbind(&machine.host(), address(), false).unwrap();
        assert_eq!(machine.driver(ADDRESS), None);
    }

    #[test]
    fn one_that_others_bound_goes_to_the_driver_that_the_kernel_chooses() {
        let machine = machine(Some("vfio-pci"));
        unbind(&machine.host(), address(), false).unwrap();
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
    }

    #[test]
    fn a_controller_in_use_is_refused_unless_forced() {
        let machine = machine(Some("nvme"));
        machine.write("proc/self/mountinfo", "22 1 259:0 / /srv rw - xfs /dev/nvme0n1 rw\n");
        let error = bind(&machine.host(), address(), false).unwrap_err().to_string();
        assert!(error.contains(ADDRESS) && error.contains("/dev/nvme0n1 is mounted at /srv"), "{error}");
        assert!(error.contains("--force"), "{error}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
        bind(&machine.host(), address(), true).unwrap();
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn one_that_a_process_has_through_vfio_is_not_taken_from_it() {
        let machine = machine(Some("vfio-pci"));
        machine.process(99, "ringpair", "/dev/vfio/12");
        let error = unbind(&machine.host(), address(), false).unwrap_err().to_string();
        assert!(error.contains("99 (ringpair)"), "{error}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn what_is_done_already_is_no_error() {
        let there = machine(Some("vfio-pci"));
        assert!(bind(&there.host(), address(), false).unwrap().contains("already"));
        let back = machine(Some("nvme"));
        assert!(unbind(&back.host(), address(), false).unwrap().contains("nothing to do"));
    }

    #[test]
    fn what_is_no_controller_is_refused() {
        let machine = Machine::new();
        machine.device(ADDRESS, "0x010601", Some("ahci"), Some(1));
        let error = bind(&machine.host(), address(), true).unwrap_err().to_string();
        assert!(error.contains("not an NVMe controller"), "{error}");
        let error = unbind(&machine.host(), "0000:09:00.0".parse().unwrap(), true).unwrap_err().to_string();
        assert!(error.contains("no such PCI device"), "{error}");
    }

    #[test]
    fn without_an_iommu_or_the_driver_nothing_is_begun() {
        let machine = Machine::new();
        machine.controller(ADDRESS, Some("nvme"), None);
        let error = bind(&machine.host(), address(), false).unwrap_err().to_string();
        assert!(error.contains("IOMMU"), "{error}");
        machine.controller("0000:02:00.0", Some("nvme"), Some(13));
        fs::remove_dir_all(machine.path(VFIO_PCI_FOLDER)).unwrap();
        let error = bind(&machine.host(), "0000:02:00.0".parse().unwrap(), false).unwrap_err().to_string();
        assert!(error.contains("modprobe vfio-pci"), "{error}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
    }

    #[test]
    fn without_an_iommu_it_takes_force_and_the_kernels_consent() {
        let machine = Machine::new();
        machine.controller(ADDRESS, Some("nvme"), None);
        let error = bind(&machine.host(), address(), true).unwrap_err().to_string();
        assert!(error.contains("enable_unsafe_noiommu_mode"), "{error}");
        machine.write(NO_IOMMU_MODE, "N\n");
        assert!(bind(&machine.host(), address(), true).is_err());
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
        machine.write(NO_IOMMU_MODE, "Y\n");
        let error = bind(&machine.host(), address(), false).unwrap_err().to_string();
        assert!(error.contains("vfio=unsafe-no-iommu") && error.contains("--force"), "{error}");
        bind(&machine.host(), address(), true).unwrap();
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn a_controller_that_vfio_does_not_take_stays_with_its_driver() {
        let machine = machine(Some("nvme"));
        machine.write("sys/bus/pci/drivers/vfio-pci/refuses", "");
        let error = bind(&machine.host(), address(), false).unwrap_err().to_string();
        assert!(error.contains("did not take it"), "{error}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
    }

    #[test]
    fn without_permission_nothing_changes_and_the_error_says_what_to_do() {
        let machine = machine(Some("nvme"));
        let host = Host::at(&machine.path(""), |_, _| Err(io::ErrorKind::PermissionDenied.into()));
        let error = bind(&host, address(), false).unwrap_err().to_string();
        assert!(error.contains("permission") && error.contains("sudo ringpair nvme"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(machine.driver(ADDRESS).as_deref(), Some("nvme"));
        assert!(!machine.path("run").exists());
    }
}
