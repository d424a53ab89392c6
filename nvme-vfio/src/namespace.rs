//! A namespace, as commands need it.

use nvme_spec::identify::IdentifyNamespace;

use crate::queue_pair::MAX_COPY_RANGES;

/// A namespace that can be read and written: active, with blocks of a size known, without metadata. A snapshot: an
/// event says when it has changed.
#[derive(Clone, Debug)]
pub struct Namespace {
    nsid: u32,
    block_shift: u32,
    capacity_lbas: u64,
    identify: Box<IdentifyNamespace>,
}

/// Limits of a Copy: see [`Namespace::copy_limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Most blocks in a source range (MSSRL).
    pub range_blocks: u32,
    /// Most blocks in all (MCL).
    pub blocks: u32,
    /// Most source ranges (MSRC), as far as [`crate::QueuePair::copy`] takes them.
    pub ranges: usize,
}

impl Namespace {
    /// From what Identify says; if it cannot be used, why.
    pub(crate) fn new(nsid: u32, identify: Box<IdentifyNamespace>) -> Result<Self, String> {
        let format = identify.formatted_lba();
        if identify.nsze == 0 {
            return Err(format!("namespace {nsid} is not active"));
        }
        // Less than 512 bytes is reserved; more than a command can transfer is of no use.
        if !(9..=24).contains(&format.lbads()) {
            return Err(format!("namespace {nsid} has blocks of 2^{} bytes", format.lbads()));
        }
        if format.ms() != 0 {
            return Err(format!("namespace {nsid} has {} bytes of metadata with each block", format.ms()));
        }
        let (block_shift, capacity_lbas) = (format.lbads().into(), identify.nsze);
        Ok(Self { nsid, block_shift, capacity_lbas, identify })
    }

    /// Namespace Identifier.
    #[inline]
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Size of a logical block in bytes.
    #[inline]
    pub fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    #[inline]
    pub(crate) fn block_shift(&self) -> u32 {
        self.block_shift
    }

    /// Capacity in logical blocks (NSZE).
    #[inline]
    pub fn capacity_lbas(&self) -> u64 {
        self.capacity_lbas
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity_lbas.saturating_mul(self.block_size().into())
    }

    /// How much a Copy takes at once, if the namespace says so.
    pub fn copy_limits(&self) -> Option<CopyLimits> {
        let limits = CopyLimits {
            range_blocks: u32::from(self.identify.mssrl),
            blocks: self.identify.mcl,
            ranges: (usize::from(self.identify.msrc) + 1).min(MAX_COPY_RANGES),
        };
        (limits.range_blocks > 0 && limits.blocks > 0).then_some(limits)
    }

    /// Everything that Identify says about it.
    pub fn identify(&self) -> &IdentifyNamespace {
        &self.identify
    }
}
