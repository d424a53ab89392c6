//! An NVM subsystem: its namespaces, each a disk, its identity, and what its controllers share.

use crate::namespace::Namespace;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use uuid::Uuid;

/// What a user may choose for a subsystem.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// NVM Subsystem Qualified Name; derived from the first namespace's UUID if None.
    pub nqn: Option<String>,
    /// Serial number; derived likewise if None.
    pub serial: Option<String>,
    /// Model number.
    pub model: String,
    /// How many controllers may exist at once.
    pub max_controllers: u16,
}

impl Default for SubsystemOptions {
    fn default() -> Self {
        Self { nqn: None, serial: None, model: "ringpair NVMe Controller".into(), max_controllers: 1 }
    }
}

/// Why there can be no such subsystem, or no further controller in it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SubsystemError {
    /// Identify Controller has a fixed-width ASCII field for it.
    #[error("{field} {value:?} is not 1 to {max} printable ASCII characters")]
    Text {
        /// Which one.
        field: &'static str,
        /// As given.
        value: String,
        /// Characters there is room for.
        max: usize,
    },
    /// NVMe Base 2.0c, 4.5: NVMe Qualified Names.
    #[error(
        "subsystem name {0:?} is not an NVMe Qualified Name (nqn.YYYY-MM.reversed.domain:name, at most 223 bytes)"
    )]
    Nqn(String),
    /// Every namespace needs an identifier of its own.
    #[error("two namespaces have the identifier {0}")]
    DuplicateNsid(u32),
    /// Guests drop a namespace whose identity they have seen already.
    #[error(
        "namespaces {0} and {1} have the same UUID {2}: they name the same disk, or need different uuid= options"
    )]
    DuplicateUuid(u32, u32, Uuid),
    /// All controllers there may be exist.
    #[error("the subsystem already has {0} controller(s), which is all it may have")]
    Controllers(u16),
}

/// An NVM subsystem.
pub struct Subsystem {
    nqn: String,
    serial: String,
    model: String,
    max_controllers: u16,
    namespaces: Vec<Namespace>,
    /// Controller identifiers in use. Locked when a controller is made or goes, and by Identify: never by I/O.
    controllers: Mutex<BTreeSet<u16>>,
    powered_on: Instant,
    media_errors: AtomicU64,
}

impl Subsystem {
    /// Makes a subsystem of namespaces, in any order.
    ///
    /// # Errors
    ///
    /// Names that do not fit their fields, namespaces that cannot be told apart.
    pub fn new(
        options: SubsystemOptions,
        mut namespaces: Vec<Namespace>,
    ) -> Result<Arc<Self>, SubsystemError> {
        namespaces.sort_by_key(Namespace::nsid);
        check_distinct(&namespaces)?;
        // Distinct from the namespace's own UUID, but as stable.
        let uuid =
            namespaces.first().map_or_else(Uuid::new_v4, |first| Uuid::new_v5(&first.uuid(), b"subsystem"));
        let nqn = options.nqn.unwrap_or_else(|| format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"));
        let serial = options.serial.unwrap_or_else(|| uuid.simple().to_string()[..20].to_owned());
        check_nqn(&nqn)?;
        check_text("serial number", &serial, 20)?;
        check_text("model number", &options.model, 40)?;
        Ok(Arc::new(Self {
            nqn,
            serial,
            model: options.model,
            max_controllers: options.max_controllers.clamp(1, MAX_CNTLID),
            namespaces,
            controllers: Mutex::default(),
            powered_on: Instant::now(),
            media_errors: AtomicU64::new(0),
        }))
    }

    /// NVM Subsystem Qualified Name.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Serial number, at most 20 ASCII characters.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Model number, at most 40 ASCII characters.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether more than one controller may exist, so that namespaces may be shared (CMIC, NMIC).
    pub fn multi_controller(&self) -> bool {
        self.max_controllers > 1
    }

    /// Namespaces in order of their NSIDs.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// The namespace with this NSID, if there is one.
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        let index = self.namespaces.binary_search_by_key(&nsid, Namespace::nsid).ok()?;
        self.namespaces.get(index)
    }

    /// Number of Namespaces (NN): the largest NSID that can exist.
    pub fn nn(&self) -> u32 {
        self.namespaces.last().map_or(0, Namespace::nsid)
    }

    /// Identifiers of the controllers that exist, ascending.
    pub fn controllers(&self) -> Vec<u16> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Takes the lowest free controller identifier.
    ///
    /// # Errors
    ///
    /// All controllers that there may be exist.
    pub fn allocate_controller(self: &Arc<Self>) -> Result<ControllerId, SubsystemError> {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (1..=self.max_controllers).find(|cntlid| !controllers.contains(cntlid));
        let cntlid = free.ok_or(SubsystemError::Controllers(self.max_controllers))?;
        controllers.insert(cntlid);
        Ok(ControllerId { subsystem: Arc::clone(self), cntlid })
    }

    /// How long the subsystem has existed.
    pub fn power_on_time(&self) -> Duration {
        self.powered_on.elapsed()
    }

    /// Media and data integrity errors seen so far, by all controllers.
    pub fn media_errors(&self) -> u64 {
        self.media_errors.load(Ordering::Relaxed)
    }

    /// Counts one more.
    pub fn count_media_error(&self) {
        self.media_errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Largest controller identifier: FFF0h to FFFFh are reserved (NVMe Base 2.0c, 3.1.1).
const MAX_CNTLID: u16 = 0xffef;

/// A controller identifier (CNTLID), given back when dropped.
pub struct ControllerId {
    subsystem: Arc<Subsystem>,
    cntlid: u16,
}

impl ControllerId {
    /// The identifier.
    pub fn get(&self) -> u16 {
        self.cntlid
    }

    /// The subsystem that it counts in.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }
}

impl Drop for ControllerId {
    fn drop(&mut self) {
        self.subsystem.controllers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.cntlid);
    }
}

fn check_distinct(namespaces: &[Namespace]) -> Result<(), SubsystemError> {
    for (index, namespace) in namespaces.iter().enumerate() {
        for earlier in &namespaces[..index] {
            if earlier.nsid() == namespace.nsid() {
                return Err(SubsystemError::DuplicateNsid(namespace.nsid()));
            }
            if earlier.uuid() == namespace.uuid() {
                let (first, second) = (earlier.nsid(), namespace.nsid());
                return Err(SubsystemError::DuplicateUuid(first, second, namespace.uuid()));
            }
        }
    }
    Ok(())
}

fn check_text(field: &'static str, value: &str, max: usize) -> Result<(), SubsystemError> {
    // NVMe Base 2.0c, 1.4.2: ASCII strings use the code values 20h to 7Eh only.
    let printable = value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    if !printable || value.trim().is_empty() || value.len() > max {
        return Err(SubsystemError::Text { field, value: value.to_owned(), max });
    }
    Ok(())
}

/// NVMe Base 2.0c, 4.5.1: `nqn.`, a date, a domain, a colon and a name; 223 bytes of UTF-8 at most.
fn check_nqn(nqn: &str) -> Result<(), SubsystemError> {
    let well_formed = || {
        let (date, rest) = nqn.strip_prefix("nqn.")?.split_once('.')?;
        let (year, month) = date.split_once('-')?;
        let (domain, name) = rest.split_once(':')?;
        let digits = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
        let fits = nqn.len() <= 223 && !nqn.contains('\0');
        (digits(year, 4) && digits(month, 2) && !domain.is_empty() && !name.is_empty() && fits).then_some(())
    };
    well_formed().ok_or_else(|| SubsystemError::Nqn(nqn.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::tests::{Described, described, namespace};
    use crate::namespace::{Identity, NamespaceOptions};

    fn subsystem(options: SubsystemOptions) -> Result<Arc<Subsystem>, SubsystemError> {
        Subsystem::new(options, vec![namespace(3, described(), None), namespace(1, described(), None)])
    }

    fn refusal(options: SubsystemOptions) -> String {
        subsystem(options).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn namespaces_are_found_by_nsid_whatever_order_they_came_in() {
        let subsystem = subsystem(SubsystemOptions::default()).unwrap();
        let nsids: Vec<u32> = subsystem.namespaces().iter().map(Namespace::nsid).collect();
        assert_eq!(nsids, [1, 3]);
        assert_eq!(subsystem.namespace(3).unwrap().nsid(), 3);
        assert!(subsystem.namespace(2).is_none());
        assert_eq!(subsystem.nn(), 3);
    }

    #[test]
    fn names_derive_from_the_namespaces_and_stay() {
        let (one, again) = (subsystem(SubsystemOptions::default()), subsystem(SubsystemOptions::default()));
        let (one, again) = (one.unwrap(), again.unwrap());
        assert!(one.nqn().starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
        assert_eq!((one.nqn(), one.serial()), (again.nqn(), again.serial()));
        assert_eq!(one.serial().len(), 20);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let serial = |serial: &str| SubsystemOptions { serial: Some(serial.into()), ..Default::default() };
        assert!(subsystem(serial("S1")).is_ok());
        assert_eq!(
            refusal(serial("123456789012345678901")),
            "serial number \"123456789012345678901\" is not 1 to 20 printable ASCII characters"
        );
        refusal(serial("naïve"));
        refusal(serial(""));
        refusal(SubsystemOptions { model: "m".repeat(41), ..Default::default() });
        let nqn = |nqn: &str| SubsystemOptions { nqn: Some(nqn.into()), ..Default::default() };
        assert!(subsystem(nqn("nqn.2024-01.com.example:disk")).is_ok());
        for bad in ["", "disk", "nqn.24-01.com.example:disk", "nqn.2024-01.com.example", "nqn.2024-01.:x"] {
            assert!(refusal(nqn(bad)).contains("NVMe Qualified Name"), "{bad}");
        }
        refusal(nqn(&format!("nqn.2024-01.com.example:{}", "x".repeat(200))));
    }

    #[test]
    fn namespaces_that_cannot_be_told_apart_are_refused() {
        let twice = vec![namespace(1, described(), None), namespace(1, described(), None)];
        let error = Subsystem::new(SubsystemOptions::default(), twice).map(|_| ()).unwrap_err();
        assert_eq!(error, SubsystemError::DuplicateNsid(1));
        let same = |nsid| {
            let identity = Identity::Uuid(Uuid::from_u128(7));
            let options = NamespaceOptions { block_size: None, identity };
            Namespace::new(nsid, Arc::new(Described(described())), &options).unwrap()
        };
        let error =
            Subsystem::new(SubsystemOptions::default(), vec![same(1), same(2)]).map(|_| ()).unwrap_err();
        assert_eq!(error, SubsystemError::DuplicateUuid(1, 2, Uuid::from_u128(7)));
    }

    #[test]
    fn controller_identifiers_are_unique_while_in_use() {
        let options = SubsystemOptions { max_controllers: 2, ..Default::default() };
        let subsystem = subsystem(options).unwrap();
        let one = subsystem.allocate_controller().unwrap();
        let two = subsystem.allocate_controller().unwrap();
        assert_eq!((one.get(), two.get()), (1, 2));
        assert_eq!(subsystem.controllers(), [1, 2]);
        assert!(matches!(subsystem.allocate_controller(), Err(SubsystemError::Controllers(2))));
        drop(one);
        assert_eq!(subsystem.allocate_controller().unwrap().get(), 1);
        assert!(subsystem.multi_controller());
    }
}
