//! What the control thread tells reactors. All of it is control path: nothing here is sent per I/O.

use super::completion_queue::CompletionQueueParameters;
use super::front_door::FrontDoor;
use super::submission_queue::SubmissionQueueParameters;
use crate::controller::interrupts::Vectors;
use crate::controller::shared::Shared;
use crate::memory::{MemoryMap, RegionMask};
use crate::subsystem::Subsystem;
use nvme_spec::Status;
use std::sync::Arc;

/// Names a request, so that its acknowledgement finds who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Index of a controller in its engine.
pub(crate) type ControllerIndex = usize;

pub(crate) enum Message {
    /// A controller, which gets a shard. Comes in order of the controllers' indexes.
    AddController(Arc<Shared>, Arc<Vectors>),
    /// A server to run.
    AddFrontDoor(Box<dyn FrontDoor>),
    /// For a controller's shard; with a ticket, it is acknowledged when it has been done.
    ToShard(ControllerIndex, ShardRequest, Option<Ticket>),
    /// The end of the thread. Front doors are gone when it has ended.
    Stop,
}

pub(crate) enum ShardRequest {
    /// From now on, this is the client's memory. Done when nothing in flight touches `removed` any more.
    Map {
        map: Arc<MemoryMap>,
        removed: RegionMask,
    },
    /// From now on, interrupts go here.
    Vectors(Arc<Vectors>),
    /// The controller is enabled.
    Enable(Box<EnableParameters>),
    /// The controller is reset: nothing is fetched or posted any more. Done when nothing is in flight.
    Drain,
    AddCompletionQueue(CompletionQueueParameters),
    DeleteCompletionQueue(u16),
    AddSubmissionQueue(SubmissionQueueParameters),
    /// Done when nothing of it is in flight.
    DeleteSubmissionQueue(u16),
    /// Shadow doorbells and EventIdx entries are at these I/O virtual addresses.
    ShadowDoorbells {
        doorbells: u64,
        event_indexes: u64,
    },
    /// Features have changed. With `settle`, done when nothing from before is in flight.
    Tuning {
        tuning: Tuning,
        settle: bool,
    },
    /// An admin command has completed.
    CompleteAdmin {
        cid: u16,
        status: Status,
        dw0: u32,
    },
    /// An admin command stays outstanding for as long as it likes (Asynchronous Event Request).
    ParkAdmin,
    /// Completes a command that was parked.
    CompleteParked {
        cid: u16,
        status: Status,
        dw0: u32,
    },
    /// Namespaces of this subsystem, its own, have become another size.
    Resized(Arc<Subsystem>),
    /// Flushes every namespace; done when they are, with the first failure.
    FlushAll,
}

/// What CC and the subsystem say of an enabled controller.
pub(crate) struct EnableParameters {
    pub(crate) subsystem: Arc<Subsystem>,
    /// Memory page size in bytes.
    pub(crate) page_size: u64,
    /// MDTS in bytes.
    pub(crate) max_transfer: u32,
    pub(crate) tuning: Tuning,
}

/// Features that the data path acts on: every batch on the first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Tuning {
    /// Feature 01h, Arbitration Burst: commands fetched from a queue before the next one's turn.
    pub(crate) burst: u32,
    /// Feature 06h, Volatile Write Cache: WCE.
    pub(crate) write_cache: bool,
    /// Feature 08h, Interrupt Coalescing: Aggregation Threshold, in entries (1: each).
    pub(crate) coalescing_threshold: u32,
    /// Feature 08h: Aggregation Time, in microseconds (0: do not wait).
    pub(crate) coalescing_time_us: u32,
    /// Feature 09h, Interrupt Vector Configuration: vectors with Coalescing Disable set.
    pub(crate) coalescing_disabled: Vec<bool>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            burst: u32::MAX,
            write_cache: true,
            coalescing_threshold: 1,
            coalescing_time_us: 0,
            coalescing_disabled: Vec::new(),
        }
    }
}

impl Tuning {
    /// How long an interrupt of this vector may wait, and for how many entries.
    pub(crate) fn coalescing(&self, vector: u16) -> Option<(u32, u32)> {
        let disabled = self.coalescing_disabled.get(usize::from(vector)).copied().unwrap_or(true);
        let on = self.coalescing_time_us > 0 && self.coalescing_threshold > 1 && !disabled;
        on.then_some((self.coalescing_threshold, self.coalescing_time_us))
    }
}
