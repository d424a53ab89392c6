//! A namespace as a disk.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use block_core::write_ranges::WriteRanges;
use block_core::{CapacityWatcher, Disk, DiskInfo, MemoryRegion, Queue};

use super::drive::Drive;
use super::limits::Limits;
use super::queue::NvmeQueue;
use crate::controller::Controller;
use crate::error::Error;
use crate::events::NamespaceWatch;
use crate::namespace::Namespace;

/// A namespace of a [`Drive`], as a [`Disk`].
pub struct NvmeDisk {
    drive: Arc<Drive>,
    namespace: Arc<DiskNamespace>,
    read_only: bool,
    /// Queues that it has been said to have.
    expected: Mutex<usize>,
}

/// What all disks and queues on one namespace share.
pub(super) struct DiskNamespace {
    pub(super) namespace: Namespace,
    pub(super) limits: Limits,
    /// Keeps writes of parts of blocks apart from others.
    pub(super) ranges: WriteRanges,
    capacity: Arc<Capacity>,
    _watch: NamespaceWatch,
}

/// The size of a namespace, and who wants to know of its changes.
struct Capacity {
    /// In bytes, as it is now; 0 once the namespace cannot be used any more.
    bytes: AtomicU64,
    watchers: Mutex<Vec<Weak<CapacityWatcher>>>,
}

impl DiskNamespace {
    pub(super) fn new(controller: &Controller, namespace: Namespace, limits: Limits) -> Self {
        let capacity =
            Arc::new(Capacity { bytes: AtomicU64::new(namespace.capacity()), watchers: Mutex::default() });
        let (changing, block_size) = (capacity.clone(), namespace.block_size());
        let name = format!("{} namespace {}", controller.name(), namespace.nsid());
        let watch =
            controller.watch_namespace(&namespace, move |now| changing.change(&name, block_size, now));
        Self { ranges: WriteRanges::new(limits.block()), namespace, limits, capacity, _watch: watch }
    }

    /// Capacity in bytes; 0: it has gone, or has been formatted differently.
    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.bytes.load(Ordering::Relaxed)
    }
}

impl Capacity {
    /// The controller has reported a change.
    fn change(&self, name: &str, block_size: u32, now: Result<&Namespace, &Error>) {
        let capacity = match now {
            Ok(now) if now.block_size() == block_size => now.capacity(),
            Ok(now) => {
                tracing::error!(
                    "{name}: its blocks have {} bytes now, and not {block_size}",
                    now.block_size()
                );
                0
            }
            Err(error) => {
                tracing::error!("{name}: {error}");
                0
            }
        };
        let before = self.bytes.swap(capacity, Ordering::Relaxed);
        if before == capacity {
            return;
        }
        if capacity != 0 {
            tracing::info!("{name}: resized from {before} to {capacity} bytes");
        }
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.upgrade().map(|changed| changed()).is_some());
    }
}

impl NvmeDisk {
    pub(super) fn new(drive: Arc<Drive>, namespace: Arc<DiskNamespace>, read_only: bool) -> Self {
        Self { drive, namespace, read_only, expected: Mutex::new(0) }
    }

    fn expected(&self) -> MutexGuard<'_, usize> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drive that it is on.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// Namespace Identifier.
    pub fn nsid(&self) -> u32 {
        self.namespace.namespace.nsid()
    }
}

impl Drop for NvmeDisk {
    fn drop(&mut self) {
        // Fewer are always had.
        let _ = self.drive.expect(*self.expected(), 0);
    }
}

impl Disk for NvmeDisk {
    fn info(&self) -> DiskInfo {
        let sgls = self.drive.controller().identify().sgls;
        let info = self.namespace.limits.describe(&self.namespace.namespace, sgls, self.read_only);
        DiskInfo { capacity: self.namespace.capacity(), ..info }
    }

    fn unique_identifier(&self) -> Option<String> {
        let (controller, namespace) =
            (self.drive.controller().identify(), self.namespace.namespace.identify());
        // Most drives have one of these, and the first is to be preferred (Base 2.0, "Unique Identifier").
        Some(match (u128::from_be_bytes(namespace.nguid), u64::from_be_bytes(namespace.eui64)) {
            (0, 0) => format!("{}/{}/{}", controller.mn, controller.sn, self.nsid()),
            (0, eui64) => format!("{eui64:016x}"),
            (nguid, _) => format!("{nguid:032x}"),
        })
    }

    fn watch_capacity(&self, changed: Weak<CapacityWatcher>) {
        self.namespace.capacity.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(changed);
    }

    fn expect_queues(&self, count: usize) -> io::Result<()> {
        let mut expected = self.expected();
        self.drive.expect(*expected, count)?;
        *expected = count;
        Ok(())
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        let read_only = self.info().read_only;
        Ok(Box::new(NvmeQueue::open(self.drive.clone(), self.namespace.clone(), depth, read_only)?))
    }

    unsafe fn register_memory(&self, region: MemoryRegion<'_>) -> io::Result<()> {
        // SAFETY: by this function's condition.
        unsafe { self.drive.register_memory(&region) }
    }

    fn unregister_memory(&self, base: *mut u8, len: usize) {
        self.drive.unregister_memory(base, len);
    }

    fn flush(&self) -> io::Result<()> {
        if self.namespace.limits.volatile_cache {
            self.drive.flush(&self.namespace.namespace)
        } else {
            Ok(())
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.drive.counters().named().collect()
    }
}
