//! The table of schemes: which protocol opens which disk.

use crate::disk::Disk;
use crate::file::FileDisk;
use crate::format::{self, Format};
use crate::mem::MemDisk;
use crate::null::NullDisk;
use crate::qcow2::Qcow2Disk;
use crate::spec::{DiskSpec, SpecError};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Why a disk could not be opened. Each is one line for the person who named it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its name or options are wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No protocol of that scheme.
    #[error(
        "`{disk}`: unknown scheme `{scheme}:`, expected one of {} (a file of such a name is ./{disk})",
        .known.join(", ")
    )]
    UnknownScheme {
        /// The whole name.
        disk: String,
        /// Its scheme.
        scheme: String,
        /// Those that exist.
        known: Vec<&'static str>,
    },
    /// The host refused something.
    #[error("{location}: {action}: {source}")]
    Host {
        /// The file, device or address.
        location: String,
        /// What was being done ("cannot open").
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// What was found there cannot be used as it was asked for.
    #[error("{location}: {reason}")]
    Unusable {
        /// The file, device or address.
        location: String,
        /// Why, and what would be right.
        reason: String,
    },
}

/// Opens a disk of one scheme: takes its options out of the spec, calls [`DiskSpec::finish`], and opens.
pub type Opener = Box<dyn Fn(DiskSpec) -> Result<Arc<dyn Disk>, OpenError> + Send + Sync>;

/// The table of schemes. [`Registry::default`] has this crate's own; a program adds those of others.
pub struct Registry {
    openers: BTreeMap<&'static str, Opener>,
}

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self { openers: BTreeMap::new() };
        registry.register(Self::FILE, Box::new(open_file));
        registry.register("mem", Box::new(|spec| Ok(Arc::new(MemDisk::open(spec)?))));
        registry.register("null", Box::new(|spec| Ok(Arc::new(NullDisk::open(spec)?))));
        registry
    }
}

/// A file, in the format that its name says.
fn open_file(spec: DiskSpec) -> Result<Arc<dyn Disk>, OpenError> {
    match format::take(&mut spec.clone())?.unwrap_or_else(|| format::of_name(spec.location())) {
        Format::Raw => Ok(Arc::new(FileDisk::open(spec)?)),
        Format::Qcow2 => Ok(Arc::new(Qcow2Disk::open(spec)?)),
    }
}

impl Registry {
    /// The scheme of a disk that is named without one.
    pub const FILE: &str = "file";

    /// Adds a scheme, or replaces it.
    pub fn register(&mut self, scheme: &'static str, opener: Opener) {
        self.openers.insert(scheme, opener);
    }

    /// The schemes that there are.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.openers.keys().copied()
    }

    /// Opens the disk that `spec` names. Options that the caller keeps for itself must have been taken out.
    ///
    /// # Errors
    ///
    /// Says in one line which name, option, file or scheme is wrong, and what would be right.
    pub fn open(&self, spec: DiskSpec) -> Result<Arc<dyn Disk>, OpenError> {
        let scheme = spec.scheme().unwrap_or(Self::FILE);
        match self.openers.get(scheme) {
            Some(open) => open(spec),
            None => Err(OpenError::UnknownScheme {
                disk: spec.to_string(),
                scheme: scheme.to_owned(),
                known: self.schemes().collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Arc<dyn Disk>, OpenError> {
        Registry::default().open(text.parse()?)
    }

    fn refused(text: &str) -> String {
        match open(text) {
            Ok(_) => panic!("{text} opened"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn mem_and_null_open_with_the_size_that_they_are_named_by() {
        assert_eq!(open("mem:1M").unwrap().info().capacity, 1 << 20);
        assert_eq!(open("null:1T").unwrap().info().capacity, 1 << 40);
    }

    #[test]
    fn an_unknown_scheme_names_those_that_exist() {
        let error = refused("rdb:pool/image");
        assert!(error.contains("unknown scheme `rdb:`"), "{error}");
        assert!(error.contains("file, mem, null"), "{error}");
        assert!(error.contains("./rdb:pool/image"), "{error}");
    }

    #[test]
    fn sizes_that_are_none_are_refused_by_name() {
        for text in ["mem:big", "null:", "mem:0", "null:0"] {
            let error = refused(text);
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn an_option_that_is_not_the_disks_is_refused() {
        let error = refused("null:1G,cache=none");
        assert!(error.contains("unknown option `cache=none`") && error.contains("read-zeroes"), "{error}");
    }

    #[test]
    fn a_program_adds_its_own_schemes() {
        let mut registry = Registry::default();
        registry.register(
            "twin",
            Box::new(|spec| Ok(Arc::new(NullDisk::with_capacity(spec.location().len() as u64)))),
        );
        assert_eq!(registry.open("twin:abc".parse().unwrap()).unwrap().info().capacity, 3);
    }
}
