//! The NVM command set (NVM Express NVM Command Set Specification 1.0): a validated SQE becomes requests to a disk.
//!
//! * [`read_write`]: Read and Write, one request each: the path that has to be fast;
//! * [`composite`]: what takes several requests or a buffer: Flush of all namespaces, Dataset Management, Compare,
//!   Verify;
//! * [`errno`]: what a host's errno means to a guest.

pub(crate) mod composite;
pub(crate) mod errno;
pub(crate) mod read_write;

use crate::memory::MemoryMap;
use crate::namespace::Namespace;
use crate::transfer::{SegmentList, Walker};
use block_core::{Operation, RequestFlags};
use composite::{Composite, Prepare};
use nvme_spec::{FusedOperation, NvmOpcode, Status, SubmissionQueueEntry};
use std::sync::Arc;

/// A namespace as the data path sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamespaceView {
    /// Where its disk's queue is among the reactor's.
    pub(crate) disk: usize,
    /// Logical block size: 2^shift bytes.
    pub(crate) shift: u32,
    pub(crate) capacity_lbas: u64,
    pub(crate) read_only: bool,
    /// Whether its disk has a volatile cache; with the feature switched off, every write is durable (FUA).
    pub(crate) volatile_cache: bool,
}

impl NamespaceView {
    pub(crate) fn new(namespace: &Namespace, disk: usize) -> Self {
        Self {
            disk,
            shift: u32::from(namespace.block_shift()),
            capacity_lbas: namespace.capacity_lbas(),
            read_only: namespace.read_only(),
            volatile_cache: namespace.volatile_cache(),
        }
    }

    /// The byte range of `lbas` blocks from `slba`.
    #[inline]
    pub(crate) fn range(&self, slba: u64, lbas: u64) -> Result<(u64, u64), Status> {
        match slba.checked_add(lbas) {
            // The capacity in bytes fits in 64 bits, so what is below it does.
            Some(end) if end <= self.capacity_lbas => Ok((slba << self.shift, lbas << self.shift)),
            _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
        }
    }
}

/// What the commands of a shard are checked against, and the segments of the last one.
#[derive(Debug)]
pub(crate) struct Context {
    /// By NSID, from 1.
    pub(crate) namespaces: Vec<Option<NamespaceView>>,
    pub(crate) map: Arc<MemoryMap>,
    /// Memory page size: 2^(12 + CC.MPS) bytes.
    pub(crate) page_size: u64,
    /// Index of the region that data was last found in.
    pub(crate) hint: usize,
    /// Where the command's segments go.
    pub(crate) list: SegmentList,
    /// MDTS in bytes.
    pub(crate) max_transfer: u32,
    /// Feature 06h, Volatile Write Cache: WCE.
    pub(crate) write_cache: bool,
}

impl Context {
    /// Of a controller that is not enabled: no namespaces, no memory.
    pub(crate) fn new() -> Self {
        Self {
            namespaces: Vec::new(),
            map: Arc::default(),
            page_size: 4096,
            hint: 0,
            list: SegmentList::new(),
            max_transfer: 0,
            write_cache: true,
        }
    }

    #[inline]
    fn namespace(&self, nsid: u32) -> Result<NamespaceView, Status> {
        let index = (nsid as usize).wrapping_sub(1);
        self.namespaces.get(index).copied().flatten().ok_or(Status::INVALID_NAMESPACE.with_dnr())
    }

    /// Whether the guest has switched a volatile cache off.
    #[inline]
    pub(super) fn write_through(&self, view: &NamespaceView) -> bool {
        view.volatile_cache && !self.write_cache
    }

    #[inline]
    fn walker(&mut self) -> Walker<'_> {
        Walker { map: &self.map, page_size: self.page_size, hint: &mut self.hint, list: &mut self.list }
    }

    fn walker_into<'a>(&'a mut self, list: &'a mut SegmentList) -> Walker<'a> {
        Walker { map: &self.map, page_size: self.page_size, hint: &mut self.hint, list }
    }
}

/// A request to a disk, less its segments and its token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    /// Where the disk's queue is among the reactor's.
    pub(crate) disk: usize,
    pub(crate) operation: Operation,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) flags: RequestFlags,
}

impl Prepared {
    fn flush(disk: usize) -> Self {
        Self { disk, operation: Operation::Flush, offset: 0, len: 0, flags: RequestFlags::NONE }
    }

    fn read(disk: usize, offset: u64, len: u64) -> Self {
        Self { disk, operation: Operation::Read, offset, len, flags: RequestFlags::NONE }
    }
}

/// What a command takes.
pub(crate) enum Plan {
    /// One request, with the segments in the context's list.
    One(Prepared),
    /// Several, or a buffer.
    Several(Prepare),
}

/// Validates a command of an I/O queue and says what it takes.
#[inline]
pub(crate) fn plan(context: &mut Context, sqe: &SubmissionQueueEntry) -> Result<Plan, Status> {
    context.list.clear();
    if sqe.flags.fuse() != FusedOperation::Normal {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    match NvmOpcode(sqe.opcode) {
        NvmOpcode::READ => read_write::read_write(context, sqe, Operation::Read).map(Plan::One),
        NvmOpcode::WRITE => read_write::read_write(context, sqe, Operation::Write).map(Plan::One),
        NvmOpcode::WRITE_ZEROES => read_write::write_zeroes(context, sqe).map(Plan::One),
        NvmOpcode::FLUSH if sqe.nsid == u32::MAX => Ok(Plan::Several(Composite::flush_all)),
        NvmOpcode::FLUSH => Ok(Plan::One(Prepared::flush(context.namespace(sqe.nsid)?.disk))),
        NvmOpcode::DATASET_MANAGEMENT => Ok(Plan::Several(Composite::dataset_management)),
        NvmOpcode::COMPARE => Ok(Plan::Several(Composite::compare)),
        NvmOpcode::VERIFY => Ok(Plan::Several(Composite::verify)),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}
