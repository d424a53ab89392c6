//! The admin commands (NVMe Base 2.0c, section 5), as the control thread executes them.
//!
//! [`Admin`] holds what they read and change; nothing of it is shared with reactors. The core keeps for itself what
//! only it can do (queues, Abort, Doorbell Buffer Config: [`Outcome::NotMine`]) and is asked through two small
//! traits for what only it has: [`HostBuffer`], the data buffer of the command at hand, and [`Machine`], the
//! controller around it.
//!
//! * [`features`]: Get and Set Features, and the values that the core acts on;
//! * `identify`: the Identify data structures, most of them made from [`crate::subsystem`];
//! * `log_page`: Get Log Page, with `error_log` and `smart` behind it, and `support`, the tables of what there is;
//! * [`async_event`]: Asynchronous Event Requests and the events that complete them.
//!
//! Left out, because optional and of no use here: Keep Alive (KAS is 0), Namespace Management, firmware download,
//! Format NVM, self-test, sanitize, directives, security, telemetry, Host Behavior Support.

pub mod async_event;
pub mod error_log;
mod fault;
pub mod features;
mod identify;
mod log_page;
mod smart;
mod support;
#[cfg(test)]
mod tests;

pub use async_event::{AsyncEvent, EVENT_REQUEST_LIMIT, EventCompletion};
pub use error_log::{CommandError, ERROR_LOG_ENTRIES};
pub use features::Features;

use crate::namespace::Namespace;
use crate::subsystem::{ControllerId, Subsystem, SubsystemError};
use async_event::AsyncEvents;
use error_log::ErrorLog;
use fault::{Fault, field};
use nvme_spec::identify::Sgls;
use nvme_spec::log_page::CriticalWarning;
use nvme_spec::{AdminOpcode, CommandFlags, FusedOperation, Status, SubmissionQueueEntry};
use smart::Health;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Abort commands that may be outstanding (ACL + 1).
pub const ABORT_LIMIT: u8 = 4;

/// What a controller is like, as its creator decides. Counts are counts here, never 0's based.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most I/O queue pairs that can be created.
    pub io_queues: u16,
    /// Interrupt vectors, the admin queue's included.
    pub vectors: u16,
    /// Largest data transfer: 2^mdts pages of 4096 bytes; from 1 to [`Options::MAX_MDTS`].
    pub mdts: u8,
    /// Whether Doorbell Buffer Config is offered.
    pub shadow_doorbells: bool,
    /// SGL support, as reported.
    pub sgls: Sgls,
    /// Vendor ID, as in the configuration space.
    pub pci_vendor_id: u16,
    /// Subsystem Vendor ID, as in the configuration space.
    pub pci_subsystem_vendor_id: u16,
    /// Firmware revision, at most 8 ASCII characters.
    pub firmware_revision: String,
}

impl Options {
    /// Transfers of 16 MiB: a bound for the buffers that admin commands need.
    pub const MAX_MDTS: u8 = 12;
}

/// The data buffer of the command at hand, in the host's memory.
///
/// Commands look at their transfer length themselves; a buffer is asked for exactly one transfer, from its first
/// byte. What it does when the data pointer is no good is to return the status that says so.
pub trait HostBuffer {
    /// Fills the buffer's first `data.len()` bytes.
    ///
    /// # Errors
    ///
    /// The status that the command ends with.
    fn write(&mut self, data: &[u8]) -> Result<(), Status>;

    /// Takes `data.len()` bytes from the buffer's start.
    ///
    /// # Errors
    ///
    /// The status that the command ends with.
    fn read(&mut self, data: &mut [u8]) -> Result<(), Status>;
}

/// What the I/O queues have done since the controller was made: sums over all of them, deleted ones included.
/// Resets do not clear them. What counts is NVM Command Set 1.0c, 4.1.4.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Bytes of successful Read, Compare and Verify commands.
    pub bytes_read: u64,
    /// Bytes of successful Write commands (not Write Zeroes).
    pub bytes_written: u64,
    /// Read and Compare commands completed.
    pub read_commands: u64,
    /// Write commands completed.
    pub write_commands: u64,
    /// Time during which at least one I/O command was outstanding.
    pub busy: Duration,
}

/// The controller around the admin commands.
pub trait Machine {
    /// What the I/O queues have done.
    fn io_counters(&self) -> IoCounters;

    /// Whether an I/O queue exists.
    fn has_io_queues(&self) -> bool;

    /// Whether an I/O completion queue exists that interrupts through this vector.
    fn has_completion_queue_on(&self, vector: u16) -> bool;
}

/// What became of an admin command.
#[must_use = "a command that is neither completed nor parked hangs its host"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: post Successful Completion with this Dword 0. `changed`: a feature that the core acts on has a new
    /// value in [`Admin::features`], to be in effect before the completion is posted.
    Complete {
        /// Command specific.
        dw0: u32,
        /// Whether the core has to look at the features.
        changed: bool,
    },
    /// Post this status. It is in the error log already, and says so (the More bit).
    Failed(Status),
    /// An Asynchronous Event Request, to be completed by [`Admin::take_event_completion`].
    Parked,
    /// The core's: Create and Delete I/O Submission and Completion Queue, Abort, Doorbell Buffer Config. Checked so
    /// far: FUSE and PSDT. If it fails, [`Admin::record_error`] wants to know.
    NotMine,
}

impl Outcome {
    const DONE: Self = Self::Complete { dw0: 0, changed: false };
}

/// The admin side of one controller.
pub struct Admin {
    id: ControllerId,
    options: Options,
    features: Features,
    events: AsyncEvents,
    errors: ErrorLog,
    health: Health,
    /// Critical warnings that events were raised for, as long as they last and are wanted.
    warned: CriticalWarning,
    /// NSIDs whose attributes changed since log page 04h was last read.
    changed_namespaces: BTreeSet<u32>,
}

impl Admin {
    /// Attaches a new controller to a subsystem, and with it to all its namespaces.
    ///
    /// # Errors
    ///
    /// The subsystem has all the controllers that it may have.
    pub fn new(subsystem: &Arc<Subsystem>, mut options: Options) -> Result<Self, SubsystemError> {
        options.io_queues = options.io_queues.max(1);
        options.mdts = options.mdts.clamp(1, Options::MAX_MDTS);
        Ok(Self {
            id: subsystem.allocate_controller()?,
            features: Features::new(subsystem, &options),
            options,
            events: AsyncEvents::default(),
            errors: ErrorLog::default(),
            health: Health::default(),
            warned: CriticalWarning::new(),
            changed_namespaces: BTreeSet::new(),
        })
    }

    /// The controller's identifier.
    pub fn cntlid(&self) -> u16 {
        self.id.get()
    }

    /// The subsystem that it belongs to.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        self.id.subsystem()
    }

    /// The features' current values.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Executes a command from the admin submission queue. Events may have become ready afterwards: see
    /// [`Admin::take_event_completion`].
    pub fn execute(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Outcome {
        self.dispatch(sqe, host, machine).unwrap_or_else(|fault| {
            let error = CommandError {
                sqid: 0,
                cid: sqe.cid,
                status: fault.status,
                location: fault.location,
                lba: 0,
                nsid: sqe.nsid,
            };
            Outcome::Failed(self.record_error(error))
        })
    }

    fn dispatch(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Result<Outcome, Fault> {
        let opcode = AdminOpcode(sqe.opcode);
        if !self.offers_command(opcode) {
            return Err(Fault::invalid_opcode());
        }
        // Base 2.0c, 3.3.3.1 (Figure 86): fused operations are not supported, and admin commands over PCIe use PRPs.
        if sqe.flags.fuse() != FusedOperation::Normal || sqe.flags.psdt() != CommandFlags::PSDT_PRP {
            return Err(Fault::invalid_field(field::FLAGS));
        }
        match opcode {
            AdminOpcode::IDENTIFY => self.identify(sqe, host),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(sqe, host, machine),
            AdminOpcode::SET_FEATURES => self.set_features(sqe, host, machine),
            AdminOpcode::GET_FEATURES => self.get_features(sqe, host),
            AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST => match self.events.request(sqe.cid) {
                Ok(()) => Ok(Outcome::Parked),
                Err(async_event::LimitExceeded) => Err(Status::AER_LIMIT_EXCEEDED.into()),
            },
            _ => Ok(Outcome::NotMine),
        }
    }

    /// Raises an event that the host has not switched off.
    pub fn raise(&mut self, event: AsyncEvent) {
        if self.features.wants(event) {
            self.events.raise(event);
        }
    }

    /// The next Asynchronous Event Request to complete. To be asked until it says None, after anything else in here
    /// has been called.
    pub fn take_event_completion(&mut self) -> Option<EventCompletion> {
        self.events.take_completion()
    }

    /// Takes a parked Asynchronous Event Request, for an event that is not the controller's own.
    pub(crate) fn take_event_request(&mut self) -> Option<u16> {
        self.events.take_request()
    }

    /// The host aborts a command of the admin queue: if it is a parked Asynchronous Event Request, forgets it and
    /// says so; the core then completes it with Command Abort Requested.
    pub fn abort_event_request(&mut self, cid: u16) -> bool {
        self.events.abort(cid)
    }

    /// A namespace's Identify data has changed (its size, say): notes it for log page 04h and tells the host.
    pub fn namespace_changed(&mut self, nsid: u32) {
        // Base 2.0c, 5.16.1.5: the list is there whether or not the host wants to be told.
        self.changed_namespaces.insert(nsid);
        self.raise(AsyncEvent::NamespaceAttributeChanged);
    }

    /// A command ended with an error that [`Admin::execute`] does not know of. Returns the status to post: the same,
    /// and that there is more about it in the error log.
    pub fn record_error(&mut self, error: CommandError) -> Status {
        if is_media_error(error.status) {
            self.subsystem().count_media_error();
        }
        self.errors.record(error)
    }

    /// A doorbell was written that makes no sense: `sqid` is the submission queue that it was about, or None where
    /// it was about none. Raises the event, and the error log says which queue.
    pub fn bad_doorbell(&mut self, event: AsyncEvent, sqid: Option<u16>) {
        self.errors.record_event(sqid);
        self.raise(event);
    }

    /// Controller Level Reset (Base 2.0c, 3.7.2): outstanding requests and events are gone, features have their
    /// defaults, the error log is empty. Its count, SMART data and the changed namespaces stay.
    pub fn reset(&mut self) {
        self.features = Features::new(self.id.subsystem(), &self.options);
        self.events = AsyncEvents::default();
        self.errors.clear();
        self.warned = CriticalWarning::new();
    }

    /// The guest's power went, and with the next guest it comes back. `orderly`: nothing was enabled, or a shutdown
    /// (CC.SHN) had completed.
    pub fn power_cycle(&mut self, orderly: bool) {
        self.reset();
        self.changed_namespaces.clear();
        self.health.power_cycle(orderly);
    }

    /// Raises an event for a critical warning that has come up and that the host wants to hear of. The temperature's
    /// is the only one there is.
    fn check_health(&mut self) {
        let temperature = self.warnings().temperature() && self.features.wants(AsyncEvent::Temperature);
        if temperature && !self.warned.temperature() {
            self.events.raise(AsyncEvent::Temperature);
        }
        self.warned.set_temperature(temperature);
    }

    /// The namespace with this NSID. Base 2.0c, 3.2.1.5: one that cannot exist is an invalid namespace, one that
    /// could but does not is an invalid field.
    fn active_namespace(&self, nsid: u32) -> Result<&Namespace, Fault> {
        if nsid == 0 || nsid > self.subsystem().nn() {
            return Err(Fault::invalid_namespace());
        }
        self.subsystem().namespace(nsid).ok_or_else(|| Fault::invalid_field(field::NSID))
    }

    /// Bytes of data that the command at hand may transfer.
    fn max_transfer(&self) -> usize {
        4096 << self.options.mdts
    }
}

/// Whether a status is about data that the medium lost or refused: SCT 2h has others besides.
fn is_media_error(status: Status) -> bool {
    matches!(
        status.code(),
        Status::WRITE_FAULT
            | Status::UNRECOVERED_READ_ERROR
            | Status::END_TO_END_GUARD_CHECK_ERROR
            | Status::END_TO_END_APPLICATION_TAG_CHECK_ERROR
            | Status::END_TO_END_REFERENCE_TAG_CHECK_ERROR
            | Status::END_TO_END_STORAGE_TAG_CHECK_ERROR
    )
}
