//! `ringpair nvme list`: every NVMe controller of the machine, and whether it can be used.

use super::bind::Record;
use super::host::{Host, OpenDevices};
use super::in_use;
use crate::failure::OutputClosed;
use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use nvme_vfio::transport::vfio::PciDevice;
use rustix::fs::Access;
use serde::Serialize;
use std::io::Write as _;

/// Options of `ringpair nvme list`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print an array of objects instead of a table
    #[arg(long)]
    json: bool,
}

/// Whether this process can have a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Usable {
    /// At once.
    Yes,
    /// After `ringpair nvme bind`.
    AfterBind,
    /// Not as things are.
    No,
}

#[derive(Debug, Serialize)]
struct Row {
    address: String,
    model: Option<String>,
    serial: Option<String>,
    /// `VENDOR:DEVICE`.
    pci_id: Option<String>,
    driver: Option<String>,
    iommu_group: Option<u32>,
    /// Block devices.
    disks: Vec<String>,
    usable: Usable,
    /// Why it is or is not usable.
    reason: String,
}

/// Prints it.
///
/// # Errors
///
/// There is no sysfs.
pub fn run(arguments: &Arguments) -> Result<()> {
    let host = Host::this();
    let rows = rows(&host)?;
    let mut out = std::io::stdout().lock();
    let written = if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)
    } else if rows.is_empty() {
        writeln!(out, "this machine has no NVMe controllers")
    } else {
        writeln!(out, "{}", table(&rows))
    };
    written.context(OutputClosed)
}

fn rows(host: &Host) -> Result<Vec<Row>> {
    let opened = host.open_devices();
    Ok(host.controllers()?.iter().map(|controller| row(host, controller, &opened)).collect())
}

fn row(host: &Host, controller: &PciDevice, opened: &OpenDevices) -> Row {
    let address = controller.address();
    // The kernel's driver knows; of a controller that VFIO has instead, bind has taken a note.
    let noted = Record::read(host, address).filter(|_| controller.is_bound_to_vfio()).unwrap_or_default();
    let (usable, reason) = verdict(host, controller, opened);
    Row {
        address: address.to_string(),
        model: host.attribute(controller, "model").or(noted.model),
        serial: host.attribute(controller, "serial").or(noted.serial),
        pci_id: host.pci_id(controller),
        driver: controller.driver(),
        iommu_group: controller.iommu_group().map(|group| group.number()),
        disks: host.disks(controller),
        usable,
        reason,
    }
}

fn verdict(host: &Host, controller: &PciDevice, opened: &OpenDevices) -> (Usable, String) {
    let no = |reason| (Usable::No, reason);
    let Some(group) = controller.iommu_group() else {
        return no(
            "behind no IOMMU: switch it on in the firmware and with intel_iommu=on or amd_iommu=on".into()
        );
    };
    if group.is_no_iommu() {
        return no("behind no IOMMU: it reaches all memory of this machine, unless it is trusted with that \
                   (vfio=unsafe-no-iommu)"
            .into());
    }
    let others = host.in_the_way(controller);
    if !others.is_empty() {
        return no(format!("shares IOMMU group {} with {}", group.number(), others.join(", ")));
    }
    if !controller.is_bound_to_vfio() {
        return match in_use::claim(host, controller) {
            Ok(_) => (Usable::AfterBind, format!("after `ringpair nvme bind {}`", controller.address())),
            Err(uses) => no(in_use::sentence(&uses)),
        };
    }
    let files = host.vfio_files(controller);
    let processes = opened.processes_with(&files);
    if !processes.is_empty() {
        return no(format!("in use by process {}", processes.join(", ")));
    }
    let may =
        |file: &String| rustix::fs::access(host.absolute(file), Access::READ_OK | Access::WRITE_OK).is_ok();
    match files.iter().find(|file| may(file)) {
        Some(file) => (Usable::Yes, format!("through {file}")),
        None => no(format!("no permission to open {}", files.join(" or "))),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["address", "model", "serial", "driver", "group", "disks", "usable", "why"]);
    for row in rows {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        // Without a model, its PCI identifiers say at least something.
        let model = row.model.clone().or_else(|| row.pci_id.as_ref().map(|id| format!("[{id}]")));
        let usable = match row.usable {
            Usable::Yes => "yes",
            Usable::AfterBind => "after bind",
            Usable::No => "no",
        };
        table.add_row([
            row.address.clone(),
            text(&model),
            text(&row.serial),
            text(&row.driver),
            row.iommu_group.map_or_else(|| "-".into(), |group| group.to_string()),
            if row.disks.is_empty() { "-".into() } else { row.disks.join(" ") },
            usable.into(),
            row.reason.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::machine::Machine;

    fn only_row(machine: &Machine) -> Row {
        let mut rows = rows(&machine.host()).unwrap();
        assert_eq!(rows.len(), 1);
        rows.remove(0)
    }

    #[test]
    fn a_controller_that_the_kernel_has_and_nobody_uses_can_be_bound() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("nvme"), Some(12));
        machine.disk("0000:01:00.0", "nvme0n1", "259:0");
        let row = only_row(&machine);
        assert_eq!((row.usable, row.iommu_group), (Usable::AfterBind, Some(12)));
        assert!(row.reason.contains("ringpair nvme bind 0000:01:00.0"), "{}", row.reason);
        assert_eq!(row.model.as_deref(), Some("Made Up SSD 1TB"));
        assert_eq!(row.disks, ["nvme0n1"]);
        let text = table(&[row]).to_string();
        for part in ["0000:01:00.0", "Made Up SSD 1TB", "S0001", "nvme", "12", "nvme0n1", "after bind"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_mounted_one_cannot() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("nvme"), Some(12));
        machine.disk("0000:01:00.0", "nvme0n1", "259:0");
        machine.write("proc/self/mountinfo", "22 1 259:0 / /srv rw - xfs /dev/nvme0n1 rw\n");
        let row = only_row(&machine);
        assert_eq!((row.usable, &*row.reason), (Usable::No, "/dev/nvme0n1 is mounted at /srv"));
    }

    #[test]
    fn one_behind_no_iommu_cannot() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("nvme"), None);
        let row = only_row(&machine);
        assert_eq!((row.usable, row.iommu_group), (Usable::No, None));
        assert!(row.reason.contains("intel_iommu=on"), "{}", row.reason);
    }

    #[test]
    fn one_that_shares_its_group_cannot() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("vfio-pci"), Some(12));
        machine.device("0000:00:1f.0", "0x010601", Some("ahci"), Some(12));
        let row = only_row(&machine);
        assert_eq!(
            (row.usable, &*row.reason),
            (Usable::No, "shares IOMMU group 12 with 0000:00:1f.0 (ahci)")
        );
    }

    #[test]
    fn one_that_vfio_has_can_be_used_by_who_may_open_its_file() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("vfio-pci"), Some(12));
        let row = only_row(&machine);
        assert_eq!((row.usable, &*row.reason), (Usable::No, "no permission to open /dev/vfio/12"));
        assert!(table(&[row]).to_string().contains("[1b36:0010]"), "no driver says its model");
        machine.write("dev/vfio/12", "");
        let row = only_row(&machine);
        assert_eq!((row.usable, &*row.reason), (Usable::Yes, "through /dev/vfio/12"));
    }

    #[test]
    fn one_that_a_process_has_is_named_with_the_process() {
        let machine = Machine::new();
        machine.controller("0000:01:00.0", Some("vfio-pci"), Some(12));
        machine.write("dev/vfio/12", "");
        machine.process(99, "ringpair", "/dev/vfio/12");
        let row = only_row(&machine);
        assert_eq!((row.usable, &*row.reason), (Usable::No, "in use by process 99 (ringpair)"));
    }
}
