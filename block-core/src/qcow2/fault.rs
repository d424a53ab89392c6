//! Deliberate faults in what keeps an image consistent: each is a mistake that somebody may make here one day, and that the
//! tests with power cuts have to find. With the feature `contract` a disk can be given one; without it there are none.

#[cfg(feature = "contract")]
use std::sync::OnceLock;

/// The steps in which metadata is written back, in their order: see `pages.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Refcounts, each the larger one of what it was and what it is to be.
    Refcounts,
    /// Refcount table entries.
    RefcountTable,
    /// The header's pointer to the refcount table.
    Header,
    /// L2 tables, and with them everything else.
    L2Tables,
    /// L1 table entries.
    L1Table,
    /// Refcounts as they are to be.
    LoweredRefcounts,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::Refcounts,
        Self::RefcountTable,
        Self::Header,
        Self::L2Tables,
        Self::L1Table,
        Self::LoweredRefcounts,
    ];
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A flush makes the file durable, and leaves metadata in memory.
    FlushIgnored,
    /// A write with FUA makes its data durable, and leaves its new metadata in memory.
    FuaIgnored,
    /// A flush makes the file durable before it writes the metadata there, and not after it.
    MetadataAfterFile,
    /// An external data file is made durable after the metadata that says what is in it, and not before.
    MetadataBeforeDataFile,
    /// An external data file is not made durable with the metadata.
    DataFileForgotten,
    /// Nothing is made durable before this step begins.
    NoBarrierBefore(Step),
    /// The last step comes first, and so on.
    StepsReversed,
    /// The first step lowers refcounts too.
    RefcountsLoweredFirst,
    /// A cluster that has been freed is taken before its old use is off the medium.
    FreedTakenAtOnce,
}

/// The fault that something has, if any.
#[derive(Debug, Default)]
pub(super) struct Faults {
    #[cfg(feature = "contract")]
    fault: OnceLock<Fault>,
}

impl Faults {
    /// From now on it has this one, unless it has one already.
    #[cfg(feature = "contract")]
    pub fn set(&self, fault: Fault) {
        let _ = self.fault.set(fault);
    }

    /// Whether it has this one.
    #[inline]
    pub fn has(&self, fault: Fault) -> bool {
        #[cfg(feature = "contract")]
        return self.fault.get() == Some(&fault);
        #[cfg(not(feature = "contract"))]
        {
            let _ = fault;
            false
        }
    }
}
