//! Disks as the user names them, made namespaces.
//!
//! Two options belong to the namespace and not to the disk behind it: `uuid=UUID` and `block-size=512|4096`.

use crate::failure::Usage;
use anyhow::{Context, Result, anyhow};
use block_core::{Disk, DiskSpec, OpenError, Registry};
use nvme_emu::namespace::{Identity, Namespace, NamespaceOptions};
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Opens disks and makes one subsystem of them, in which they are the namespaces 1, 2, 3…
///
/// # Errors
///
/// Names the disk that cannot be had, and what would be right.
pub fn subsystem(disks: &[String]) -> Result<Arc<Subsystem>> {
    let registry = registry();
    let namespaces: Vec<Namespace> =
        (1u32..).zip(disks).map(|(nsid, disk)| namespace(&registry, nsid, disk)).collect::<Result<_>>()?;
    Ok(Subsystem::new(SubsystemOptions::default(), namespaces)?)
}

/// The table of schemes, with those that the driver brings.
fn registry() -> Registry {
    let mut registry = Registry::default();
    nvme_vfio::disk::register(&mut registry);
    registry
}

fn namespace(registry: &Registry, nsid: u32, text: &str) -> Result<Namespace> {
    let mut spec = parse(text)?;
    let block_size = spec
        .take_word("block-size", &[("512", 512), ("4096", 4096)])
        .map_err(|error| Usage(error.to_string()))?;
    let identity = Chosen::take(&mut spec)?;
    let disk = open(registry, spec)?;
    let options = NamespaceOptions { block_size, identity: identity.of(&*disk) };
    Namespace::new(nsid, disk, &options).map_err(|error| anyhow!("{text}: {error}"))
}

/// Reads a disk's name.
///
/// # Errors
///
/// It is not one.
pub fn parse(text: &str) -> Result<DiskSpec> {
    text.parse().map_err(|error| Usage(format!("{error}")).into())
}

/// Where a namespace's identity comes from, as far as its name says.
enum Chosen {
    /// There is nothing else to ask.
    Already(Identity),
    /// The disk may know, or else it is its name.
    ByDisk(String),
}

impl Chosen {
    fn take(spec: &mut DiskSpec) -> Result<Self> {
        let example = "a UUID such as 123e4567-e89b-12d3-a456-426614174000";
        let parse = |text: &str| Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
        let uuid = spec.take_parsed("uuid", example, parse).map_err(|error| Usage(error.to_string()))?;
        Ok(match (uuid, spec.scheme()) {
            (Some(uuid), _) => Self::Already(Identity::Uuid(uuid)),
            (None, None | Some(Registry::FILE)) => {
                Self::Already(Identity::Path(PathBuf::from(spec.location())))
            }
            (None, Some("mem" | "null")) => Self::Already(Identity::Fresh),
            (None, Some(scheme)) => Self::ByDisk(format!("{scheme}:{}", spec.location())),
        })
    }

    fn of(self, disk: &dyn Disk) -> Identity {
        match self {
            Self::Already(identity) => identity,
            Self::ByDisk(name) => Identity::Name(disk.unique_identifier().unwrap_or(name)),
        }
    }
}

fn open(registry: &Registry, spec: DiskSpec) -> Result<Arc<dyn Disk>> {
    registry.open(spec).map_err(|error| match error {
        OpenError::Spec(_) | OpenError::UnknownScheme { .. } => Usage(error.to_string()).into(),
        _ => anyhow!("{error}"),
    })
}

/// Tells every disk of a subsystem how many reactors there will be, each of which takes a queue.
///
/// # Errors
///
/// Names the drive that has not so many, and what would help.
pub fn expect_queues(subsystem: &Subsystem, reactors: usize) -> Result<()> {
    let mut disks = subsystem.namespaces().iter().map(Namespace::disk);
    disks.try_for_each(|disk| Ok(disk.expect_queues(reactors)?))
}

/// Makes what was completed on every disk of a subsystem durable.
///
/// # Errors
///
/// Names the namespace whose disk failed.
pub fn flush(subsystem: &Subsystem) -> Result<()> {
    for namespace in subsystem.namespaces().iter().filter(|namespace| !namespace.read_only()) {
        let flushed = namespace.disk().flush();
        flushed.with_context(|| format!("flushing the disk of namespace {}", namespace.nsid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(disk: &str) -> anyhow::Error {
        match subsystem(&[disk.to_owned()]) {
            Ok(_) => panic!("{disk} was accepted"),
            Err(error) => error,
        }
    }

    #[test]
    fn disks_become_namespaces_in_order() {
        let uuid = "123e4567-e89b-12d3-a456-426614174000";
        let disks = ["mem:1M".to_owned(), format!("null:1G,block-size=4096,uuid={uuid}")];
        let subsystem = subsystem(&disks).unwrap();
        let second = subsystem.namespace(2).unwrap();
        assert_eq!(subsystem.namespace(1).unwrap().block_size(), 512);
        assert_eq!((second.block_size(), second.capacity_lbas()), (4096, 1 << 18));
        assert_eq!(second.uuid().to_string(), uuid);
    }

    #[test]
    fn wrong_options_are_mistakes_in_the_call() {
        for disk in ["null:1G,block-size=1000", "null:1G,uuid=x", "null:1G,bogus=1", "nul:1G", ""] {
            let error = refused(disk);
            assert!(error.is::<Usage>(), "{disk}: {error}");
            assert!(error.to_string().contains(disk), "{disk}: {error}");
        }
    }

    #[test]
    fn a_drive_that_is_not_there_is_named() {
        let error = refused("nvme://ffff:ff:1f.7/1").to_string();
        assert!(error.contains("nvme://ffff:ff:1f.7/1") && error.contains("no such PCI device"), "{error}");
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_block_names_both() {
        let error = refused("mem:1000").to_string();
        assert!(error.contains("mem:1000") && error.contains("512"), "{error}");
    }
}
