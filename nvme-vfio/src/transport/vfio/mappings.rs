//! Counting what is mapped, and saying what is wrong when the kernel maps no more.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Bit of CAP_IPC_LOCK in a set of capabilities (`linux/capability.h`): its holder has no limit of locked memory.
const CAP_IPC_LOCK: u32 = 14;

/// The mappings of one address space.
pub(super) struct Mappings {
    /// Bytes that are mapped, and therefore locked.
    bytes: AtomicU64,
    /// How many mappings the kernel takes yet; as many as there can be where it does not say.
    left: AtomicU32,
    /// Whose locked memory the limit is for.
    limited: Limited,
}

/// Whose locked memory the kernel counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limited {
    /// This process' (containers).
    Process,
    /// That of all processes of the same user (iommufd).
    User,
}

impl Mappings {
    pub(super) fn new(left: Option<u32>, limited: Limited) -> Self {
        Self { bytes: AtomicU64::new(0), left: AtomicU32::new(left.unwrap_or(u32::MAX)), limited }
    }

    /// Counts a mapping in, unless it fails; then says why for a person.
    pub(super) fn map(&self, len: u64, map: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
        let take = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| too_many())?;
        match map() {
            Ok(()) => {
                self.bytes.fetch_add(len, Ordering::Relaxed);
                Ok(())
            }
            Err(errno) => {
                self.left.fetch_add(1, Ordering::Relaxed);
                Err(self.explain(errno, len))
            }
        }
    }

    /// Counts a mapping out, unless that fails.
    pub(super) fn unmap(&self, len: u64, unmap: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
        unmap()?;
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        self.left.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn explain(&self, errno: Errno, len: u64) -> io::Error {
        match errno {
            Errno::NOMEM => match LockedMemory::now() {
                Some(locked) => locked.explain(self.bytes.load(Ordering::Relaxed), len, self.limited),
                None => errno.into(),
            },
            Errno::NOSPC => too_many(),
            Errno::FAULT => io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel cannot lock this memory: it is read-only, or a file's on a medium",
            ),
            errno => errno.into(),
        }
    }
}

fn too_many() -> io::Error {
    io::Error::new(
        io::ErrorKind::QuotaExceeded,
        "the kernel takes no more mappings: raise dma_entry_limit of its module vfio_iommu_type1",
    )
}

/// How much memory this process has locked, and may lock.
#[derive(Clone, Copy, Debug)]
struct LockedMemory {
    locked: u64,
    /// `None`: without limit.
    limit: Option<u64>,
}

impl LockedMemory {
    fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let limit = getrlimit(Resource::Memlock).current;
        Self::from_status(&status, limit)
    }

    fn from_status(status: &str, limit: Option<u64>) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capabilities = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
        let kib: u64 = field("VmLck:")?.strip_suffix("kB")?.trim().parse().ok()?;
        let privileged = capabilities & (1 << CAP_IPC_LOCK) != 0;
        Some(Self { locked: kib.saturating_mul(1024), limit: limit.filter(|_| !privileged) })
    }

    /// Why `len` bytes more than `mapped` could not be locked.
    fn explain(self, mapped: u64, len: u64, limited: Limited) -> io::Error {
        // What is counted for a user is not shown for a process.
        let needed = self.locked.max(mapped).saturating_add(len);
        match self.limit {
            Some(limit) if needed > limit => {
                let (needed, limit) = (needed.div_ceil(1024), limit / 1024);
                let what = format!(
                    "{needed} KiB of memory have to be locked, but only {limit} may be: raise ulimit -l to {needed} \
                     or more"
                );
                io::Error::new(io::ErrorKind::OutOfMemory, what)
            }
            Some(limit) if limited == Limited::User => {
                let (more, limit) = (len.div_ceil(1024), limit / 1024);
                let what = format!(
                    "{more} KiB of memory have to be locked, but all processes of this user together may have no more than \
                     {limit}: raise ulimit -l to {} or more",
                    limit + more
                );
                io::Error::new(io::ErrorKind::OutOfMemory, what)
            }
            _ => Errno::NOMEM.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(locked: &str, capabilities: &str) -> String {
        format!("Name:\tx\nVmLck:\t{locked} kB\nCapEff:\t{capabilities}\n")
    }

    #[test]
    fn a_limit_of_locked_memory_is_named_with_what_would_do() {
        let locked =
            LockedMemory::from_status(&status("     64", "0000000000000000"), Some(8 << 20)).unwrap();
        let error = locked.explain(0, 8 << 20, Limited::Process);
        assert_eq!(
            error.to_string(),
            "8256 KiB of memory have to be locked, but only 8192 may be: raise ulimit -l to 8256 or more"
        );
        // What is mapped counts, even where the kernel does not show it.
        let error = locked.explain(16 << 20, 4096, Limited::User);
        assert!(error.to_string().ends_with("ulimit -l to 16388 or more"), "{error}");
    }

    #[test]
    fn what_other_processes_of_the_user_have_locked_counts_where_the_kernel_counts_it() {
        let locked = LockedMemory::from_status(&status("0", "0000000000000000"), Some(8 << 20)).unwrap();
        let error = locked.explain(0, 1 << 20, Limited::User);
        assert!(error.to_string().contains("all processes of this user together"), "{error}");
        assert!(error.to_string().ends_with("ulimit -l to 9216 or more"), "{error}");
        let error = locked.explain(0, 1 << 20, Limited::Process);
        assert_eq!(error.raw_os_error(), Some(Errno::NOMEM.raw_os_error()), "then it is something else");
    }

    #[test]
    fn who_has_no_limit_is_only_out_of_memory() {
        for (capabilities, limit) in [("0000000000004000", Some(0)), ("0000000000000000", None)] {
            let locked = LockedMemory::from_status(&status("0", capabilities), limit).unwrap();
            assert_eq!(
                locked.explain(0, 1 << 30, Limited::User).raw_os_error(),
                Some(Errno::NOMEM.raw_os_error())
            );
        }
        assert!(LockedMemory::now().is_some(), "this kernel's status is understood");
    }

    #[test]
    fn no_more_mappings_are_tried_than_the_kernel_takes() {
        let mappings = Mappings::new(Some(1), Limited::Process);
        mappings.map(4096, || Ok(())).unwrap();
        let error = mappings.map(4096, || unreachable!("not tried")).unwrap_err();
        assert!(error.to_string().contains("dma_entry_limit"), "{error}");
        mappings.unmap(4096, || Err(Errno::INVAL)).unwrap_err();
        mappings.map(4096, || unreachable!("not tried")).unwrap_err();
        mappings.unmap(4096, || Ok(())).unwrap();
        mappings.map(4096, || Err(Errno::EXIST)).unwrap_err();
        mappings.map(4096, || Ok(())).unwrap();
    }
}
