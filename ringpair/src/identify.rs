//! `ringpair identify`: what a controller says about itself and its namespaces.

use crate::query::Query;
use crate::target::Target;
use anyhow::Result;
use nvme_spec::identify::{IdentifyController, NamespaceIdentifier};
use nvme_vfio::Controller;
use serde::Serialize;
use std::fmt;
use uuid::Uuid;

/// Prints it.
///
/// # Errors
///
/// The target cannot be reached.
pub fn run(query: &Query) -> Result<()> {
    let description = query.ask(|controller| Description::of(&query.target, controller))?;
    query.print(&description, description.to_string().trim_end())
}

#[derive(Serialize)]
struct Description {
    target: String,
    model: String,
    serial: String,
    firmware: String,
    nvme_version: String,
    pci_vendor: u16,
    nqn: String,
    controller_id: u16,
    /// In bytes.
    max_transfer: u32,
    max_queue_entries: u32,
    volatile_write_cache: bool,
    sgls: bool,
    commands: Vec<&'static str>,
    namespaces: Vec<NamespaceDescription>,
}

#[derive(Serialize)]
struct NamespaceDescription {
    nsid: u32,
    block_size: u32,
    blocks: u64,
    /// In bytes.
    capacity: u64,
    write_protected: bool,
    eui64: Option<String>,
    nguid: Option<String>,
    uuid: Option<String>,
}

impl Description {
    fn of(target: &Target, controller: &Controller) -> Result<Self> {
        let identify = controller.identify();
        let nsids = match target.nsid() {
            Some(nsid) => vec![nsid],
            None => controller.namespace_ids()?,
        };
        let namespaces = nsids.into_iter().map(|nsid| NamespaceDescription::of(controller, nsid));
        Ok(Self {
            target: target.to_string(),
            model: identify.mn.to_string(),
            serial: identify.sn.to_string(),
            firmware: identify.fr.to_string(),
            nvme_version: controller.version().to_string(),
            pci_vendor: identify.vid,
            nqn: identify.subnqn.to_string(),
            controller_id: identify.cntlid,
            max_transfer: controller.max_transfer(),
            max_queue_entries: controller.capabilities().maximum_queue_entries(),
            volatile_write_cache: identify.vwc.present(),
            sgls: identify.sgls.support() != 0,
            commands: commands(identify),
            namespaces: namespaces.collect::<Result<_>>()?,
        })
    }
}

/// Optional commands that the controller has.
fn commands(identify: &IdentifyController) -> Vec<&'static str> {
    let (oncs, oacs) = (identify.oncs, identify.oacs);
    let all = [
        (oncs.compare(), "Compare"),
        (oncs.write_zeroes(), "Write Zeroes"),
        (oncs.dataset_management(), "Dataset Management"),
        (oncs.verify(), "Verify"),
        (oncs.copy(), "Copy"),
        (oncs.write_uncorrectable(), "Write Uncorrectable"),
        (oncs.reservations(), "Reservations"),
        (oacs.doorbell_buffer_config(), "Doorbell Buffer Config"),
        (oacs.format_nvm(), "Format NVM"),
        (oacs.namespace_management(), "Namespace Management"),
        (oacs.device_self_test(), "Device Self-test"),
    ];
    all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
}

impl NamespaceDescription {
    fn of(controller: &Controller, nsid: u32) -> Result<Self> {
        let namespace = controller.namespace(nsid)?;
        let mut description = Self {
            nsid,
            block_size: namespace.block_size(),
            blocks: namespace.capacity_lbas(),
            capacity: namespace.capacity(),
            write_protected: namespace.identify().nsattr.write_protected(),
            eui64: None,
            nguid: None,
            uuid: None,
        };
        for identifier in controller.namespace_identifiers(nsid)? {
            match identifier {
                NamespaceIdentifier::Eui64(_) => description.eui64 = Some(hexadecimal(identifier.nid())),
                NamespaceIdentifier::Nguid(_) => description.nguid = Some(hexadecimal(identifier.nid())),
                NamespaceIdentifier::Uuid(uuid) => {
                    description.uuid = Some(Uuid::from_bytes(uuid).to_string())
                }
                NamespaceIdentifier::Csi(_) => {}
            }
        }
        Ok(description)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |yes| if yes { "yes" } else { "no" };
        writeln!(f, "{}", self.target)?;
        writeln!(f, "  model                 {}", self.model)?;
        writeln!(f, "  serial number         {}", self.serial)?;
        writeln!(f, "  firmware revision     {}", self.firmware)?;
        writeln!(f, "  NVMe version          {}", self.nvme_version)?;
        writeln!(f, "  PCI vendor            {:04x}", self.pci_vendor)?;
        writeln!(f, "  subsystem             {}", self.nqn)?;
        writeln!(f, "  controller identifier {}", self.controller_id)?;
        writeln!(f, "  largest transfer      {}", size(self.max_transfer.into()))?;
        writeln!(f, "  queue entries         at most {}", self.max_queue_entries)?;
        writeln!(f, "  volatile write cache  {}", yes(self.volatile_write_cache))?;
        writeln!(f, "  SGLs                  {}", yes(self.sgls))?;
        writeln!(f, "  optional commands     {}", self.commands.join(", "))?;
        self.namespaces.iter().try_for_each(|namespace| write!(f, "{namespace}"))
    }
}

impl fmt::Display for NamespaceDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protected = if self.write_protected { ", write protected" } else { "" };
        writeln!(f, "namespace {}{protected}", self.nsid)?;
        writeln!(
            f,
            "  size                  {}: {} blocks of {} bytes",
            size(self.capacity),
            self.blocks,
            self.block_size
        )?;
        for (name, identifier) in [("EUI-64", &self.eui64), ("NGUID ", &self.nguid), ("UUID  ", &self.uuid)] {
            if let Some(identifier) = identifier {
                writeln!(f, "  {name}                {identifier}")?;
            }
        }
        Ok(())
    }
}

/// Bytes for a person: the largest binary unit that leaves at least 1.
pub fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), units[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_largest_unit() {
        assert_eq!(size(512), "512 bytes");
        assert_eq!(size(1 << 20), "1 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "16 EiB");
    }

    #[test]
    fn a_disk_is_identified_by_a_controller_in_this_process() {
        let query = Query::to("null:1G,block-size=4096");
        let description = query.ask(|controller| Description::of(&query.target, controller)).unwrap();
        assert_eq!(description.namespaces.len(), 1);
        assert_eq!(description.namespaces[0].block_size, 4096);
        assert_eq!(description.namespaces[0].capacity, 1 << 30);
        let text = description.to_string();
        assert!(text.contains("1 GiB: 262144 blocks of 4096 bytes"), "{text}");
        assert!(text.contains("Dataset Management"), "{text}");
    }
}
