//! What a target is held against, and how it has to be prepared.

use super::copy::Memory;
use super::limits::Limit;
use crate::disk;
use crate::target::Target;
use anyhow::{Context, Result};
use block_core::{DiskSpec, Registry, spec::parse_size};
use rustix::fs::{Mode, OFlags, open};
use std::fs::File;
use std::io::{Seek, SeekFrom};

/// Kinds of targets, by what limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory of this many bytes, fresh: it has to be written before reading it means anything.
    Memory(u64),
    /// A file or block device.
    File,
    /// Nothing but commands, or something of which nothing else is known.
    Commands,
}

impl Kind {
    /// What a target is, as far as its name says.
    pub fn of(target: &Target) -> Result<Self> {
        let Target::Disk(disk) = target else { return Ok(Self::Commands) };
        let spec = disk::parse(disk)?;
        Ok(match spec.scheme() {
            Some("mem") => Self::Memory(parse_size(spec.location()).unwrap_or(0)),
            None | Some(Registry::FILE) if is_raw(spec.clone()) => Self::File,
            _ => Self::Commands,
        })
    }

    /// The limit of such a target, ready to be measured. `writes` says whether it will be written to.
    ///
    /// # Errors
    ///
    /// The file cannot be opened as the disk opens it, or there is not as much memory once more.
    pub fn limit(self, target: &Target, writes: bool) -> Result<Limit> {
        match (self, target) {
            (Self::Memory(len), _) => {
                let len = usize::try_from(len).context("a disk larger than memory")?;
                Ok(Limit::RingAndCopies(Memory::new(len)?))
            }
            (Self::File, Target::Disk(disk)) => file_limit(disk::parse(disk)?, writes),
            _ => Ok(Limit::Ring),
        }
    }
}

/// Offsets on the disk are offsets in the file only if the format is raw.
fn is_raw(mut spec: DiskSpec) -> bool {
    match spec.take("format") {
        Some(format) => format == "raw",
        None => !spec.location().ends_with(".qcow2"),
    }
}

fn file_limit(mut spec: DiskSpec, writes: bool) -> Result<Limit> {
    let cache = spec.take("cache").unwrap_or_default();
    let direct =
        if matches!(cache.as_str(), "none" | "directsync") { OFlags::DIRECT } else { OFlags::empty() };
    let access = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    let file = open(spec.location(), access | direct | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("{}: cannot open it for the plain io_uring loop", spec.location()))?;
    let mut file = File::from(file);
    // Block devices have no length but an end.
    let capacity =
        file.seek(SeekFrom::End(0)).with_context(|| format!("{}: finding its end", spec.location()))?;
    Ok(Limit::File { file, capacity, dsync: matches!(cache.as_str(), "writethrough" | "directsync") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(target: &str) -> Kind {
        Kind::of(&target.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_name_says_what_limits_a_target() {
        assert_eq!(kind("mem:2M"), Kind::Memory(2 << 20));
        assert_eq!(kind("null:1T"), Kind::Commands);
        assert_eq!(kind("disk.img,cache=none"), Kind::File);
        assert_eq!(kind("file:odd:name"), Kind::File);
        assert_eq!(kind("disk.qcow2"), Kind::Commands);
        assert_eq!(kind("disk.qcow2,format=raw"), Kind::File);
        assert_eq!(kind("vfio-user:/run/x.sock/1"), Kind::Commands);
    }

    #[test]
    fn the_loop_opens_the_file_as_the_disk_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let name = |cache: &str| format!("{},cache={cache}", file.path().display()).parse().unwrap();
        for (cache, expected) in [("writeback", false), ("writethrough", true)] {
            match Kind::File.limit(&name(cache), true).unwrap() {
                Limit::File { capacity, dsync, .. } => assert_eq!((capacity, dsync), (1 << 20, expected)),
                _ => panic!("no file limit"),
            }
        }
    }
}
