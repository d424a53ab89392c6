//! A namespace as a disk.

use std::io;
use std::sync::Arc;

use block_core::write_ranges::WriteRanges;
use block_core::{Disk, DiskInfo, MemoryRegion, Queue};

use super::drive::Drive;
use super::limits::Limits;
use super::queue::NvmeQueue;
use crate::namespace::Namespace;

/// A namespace of a [`Drive`], as a [`Disk`].
pub struct NvmeDisk {
    drive: Arc<Drive>,
    namespace: Arc<DiskNamespace>,
    read_only: bool,
}

/// What all disks and queues on one namespace share.
pub(super) struct DiskNamespace {
    pub(super) namespace: Namespace,
    pub(super) limits: Limits,
    /// Keeps writes of parts of blocks apart from others.
    pub(super) ranges: WriteRanges,
}

impl DiskNamespace {
    pub(super) fn new(namespace: Namespace, limits: Limits) -> Self {
        Self { ranges: WriteRanges::new(limits.block()), namespace, limits }
    }

    /// Capacity in bytes.
    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.namespace.capacity()
    }
}

impl NvmeDisk {
    pub(super) fn new(drive: Arc<Drive>, namespace: Arc<DiskNamespace>, read_only: bool) -> Self {
        Self { drive, namespace, read_only }
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

impl Disk for NvmeDisk {
    fn info(&self) -> DiskInfo {
        let sgls = self.drive.controller().identify().sgls;
        let info = self.namespace.limits.describe(&self.namespace.namespace, sgls, self.read_only);
        DiskInfo { capacity: self.namespace.capacity(), ..info }
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
