//! What handles and queue pairs of a controller share: its state between bring-up and shutdown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvme_spec::admin_command::DoorbellBufferConfig;
use nvme_spec::feature::{AsynchronousEventConfiguration, NumberOfQueues, fid};
use nvme_spec::identify::{IdentifyController, Sgls};
use nvme_spec::log_page::CriticalWarning;
use nvme_spec::registers::{Cap, Version};
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};

use super::bring_up;
use super::condition::{Failure, Pulse};
use crate::admin::{AdminData, AdminQueue, Place, Watch};
use crate::dma::{DmaSpace, Held};
use crate::error::{Error, Fault};
use crate::events::Events;
use crate::options::Options;
use crate::recovery::heartbeat::Heartbeat;
use crate::recovery::inbox::Inbox;
use crate::recovery::link::Link;
use crate::recovery::{Condition, Counters};
use crate::registers::Registers;
use crate::shadow_doorbell::ShadowDoorbells;
use crate::transport::Transport;

/// The critical warnings of the SMART / Health log that any controller may have.
const CRITICAL_WARNINGS: u8 = 0x1f;
/// How long a controller may take to shut down: what it says (RTD3E), within what is sensible and Linux has too.
const SHUTDOWN_LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// What all handles and queue pairs of a controller share.
pub(crate) struct Shared {
    heartbeat: Arc<Heartbeat>,
    registers: Registers,
    space: Arc<DmaSpace>,
    cap: Cap,
    pub(super) version: Version,
    memory_page_size: u64,
    max_transfer: u32,
    pub(super) identify: Box<IdentifyController>,
    options: Options,
    admin: Mutex<AdminQueue>,
    /// Where doorbells are trapped; in use if the controller has taken them.
    shadow: Option<Arc<ShadowDoorbells>>,
    shadow_in_use: AtomicBool,
    queue_ids: Mutex<QueueIds>,
    inbox: Arc<Inbox>,
    events: Events,
    counters: Counters,
    failure: Failure,
    /// Whether the controller is known to do nothing: it was disabled, and not enabled since.
    quiet: AtomicBool,
    /// The first generation that came after the last time that it was known to do nothing.
    stopped_before: AtomicU32,
    /// Memory of queues that it did not forget when it was told to: its own until it is stopped.
    kept: Mutex<Vec<Arc<Held>>>,
}

/// Which I/O queue identifiers there are, and which are taken.
pub(crate) struct QueueIds {
    /// From 1 to this.
    pub(crate) granted: u16,
    pub(crate) taken: BTreeSet<u16>,
}

impl Shared {
    /// See [`crate::Controller::open`].
    pub(super) fn open(transport: Box<dyn Transport>, options: Options) -> Result<Self, Error> {
        let registers = Registers::new(Arc::from(transport));
        let cap = registers.cap()?;
        let memory_page_size = bring_up::memory_page_size(&registers, cap)?;
        let timeout = registers.ready_timeout(cap)?;
        bring_up::disable_or_reset(&registers, timeout)?;

        let space = DmaSpace::new(registers.transport().clone(), memory_page_size);
        let trapped = registers.transport().doorbells().is_none_or(|memory| memory.may_trap);
        let shadow = if trapped && options.shadow_doorbells {
            Some(ShadowDoorbells::new(&space, memory_page_size, cap.dstrd())?)
        } else {
            None
        };
        let inbox = Arc::new(Inbox::default());
        let abort_timeout = options.recovery.as_ref().map(|recovery| recovery.abort_timeout);
        let heartbeat = Arc::new(Heartbeat::new(&options));
        let watch = abort_timeout.map(|abort_timeout| Watch {
            inbox: inbox.clone(),
            heartbeat: heartbeat.clone(),
            generation: 0,
            abort_timeout,
        });
        let place = Place { registers: &registers, space: &space, memory_page_size, dstrd: cap.dstrd() };
        let mut admin = AdminQueue::new(&place, shadow.as_ref(), watch)?;
        let identify = bring_up::enable(&registers, cap, memory_page_size, timeout)
            .and_then(|()| bring_up::identify_controller(&registers, &mut admin, options.admin_timeout))
            .inspect_err(|_| {
                // It must not be left to find its queues gone. The error at hand says more than another one would.
                let _ = registers.disable(timeout);
            })?;
        let max_transfer = bring_up::max_transfer(&identify, cap, &options, memory_page_size);
        let version = registers.vs()?;
        let shared = Shared {
            heartbeat,
            registers,
            space,
            cap,
            version,
            memory_page_size,
            max_transfer,
            identify,
            options,
            admin: Mutex::new(admin),
            shadow,
            shadow_in_use: AtomicBool::new(false),
            queue_ids: Mutex::new(QueueIds { granted: 0, taken: BTreeSet::new() }),
            inbox,
            events: Events::default(),
            counters: Counters::default(),
            failure: Failure::new(),
            quiet: AtomicBool::new(false),
            stopped_before: AtomicU32::new(0),
            kept: Mutex::default(),
        };
        // From here on, whatever fails, the controller is shut down when `shared` is dropped.
        shared.configure(&mut shared.admin())?;
        Ok(shared)
    }

    pub(super) fn admin_mutex(&self) -> &Mutex<AdminQueue> {
        &self.admin
    }

    pub(crate) fn admin(&self) -> MutexGuard<'_, AdminQueue> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn queue_ids(&self) -> MutexGuard<'_, QueueIds> {
        self.queue_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registers(&self) -> &Registers {
        &self.registers
    }

    pub(crate) fn space(&self) -> &Arc<DmaSpace> {
        &self.space
    }

    pub(crate) fn cap(&self) -> Cap {
        self.cap
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn memory_page_size(&self) -> u64 {
        self.memory_page_size
    }

    pub(crate) fn max_transfer(&self) -> u32 {
        self.max_transfer
    }

    /// What SGLs the controller takes.
    pub(crate) fn sgls(&self) -> Sgls {
        self.identify.sgls
    }

    /// The shadow doorbells, if the controller looks at them.
    pub(crate) fn shadow(&self) -> Option<&Arc<ShadowDoorbells>> {
        self.shadow.as_ref().filter(|_| self.shadow_in_use.load(Ordering::Relaxed))
    }

    /// The controller is about to forget its shadow doorbells.
    pub(super) fn forget_shadow_doorbells(&self) {
        self.shadow_in_use.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        self.heartbeat.pulse()
    }

    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    pub(super) fn failure(&self) -> &Failure {
        &self.failure
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub(super) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
        if quiet {
            self.stopped_before.store(self.generation(), Ordering::Relaxed);
            self.kept().clear();
        }
    }

    /// Whether the controller has stopped since it was in this generation.
    pub(crate) fn was_stopped_since(&self, generation: u32) -> bool {
        // Generations wrap around, and so do differences between them.
        let since = self.stopped_before.load(Ordering::Relaxed).wrapping_sub(generation) as i32;
        since > 0 || self.condition() == Condition::Failed
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Arc<Held>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps memory that the controller may still reach, where there is no IOMMU, when its owner has let go of it.
    pub(crate) fn keep(&self, memory: impl Iterator<Item = Arc<Held>>) {
        self.kept().extend(memory);
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The mailboxes of all queue pairs.
    pub(crate) fn links(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Link>>> {
        self.heartbeat.links()
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { name: self.registers.name(), what: what.into() }
    }

    /// How the controller is, as a queue pair wants to know it.
    pub(crate) fn health(&self) -> Result<(), Fault> {
        match self.registers.csts() {
            Err(_) => Err(Fault::Gone),
            Ok(csts) if csts.cfs() => Err(Fault::Fatal),
            Ok(csts) if !csts.rdy() => Err(Fault::Reset),
            Ok(_) => Ok(()),
        }
    }

    /// What comes between enabling a controller and using it.
    pub(super) fn configure(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        self.set_number_of_queues(admin)?;
        self.configure_doorbells(admin);
        self.configure_events(admin)
    }

    fn set_number_of_queues(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        let wanted = self.options.queues.clamp(1, u16::MAX - 1);
        let value = NumberOfQueues::of(wanted.into(), wanted.into());
        let command = bring_up::set_features(fid::NUMBER_OF_QUEUES, value.into_bits());
        let granted = NumberOfQueues::from_bits(admin.run(command, AdminData::None, self.timeout())?);
        // More may be granted than was asked for.
        let granted = granted.submission_queues().min(granted.completion_queues());
        self.queue_ids().granted = granted.min(wanted.into()) as u16;
        Ok(())
    }

    fn configure_doorbells(&self, admin: &mut AdminQueue) {
        let Some(shadow) = self.shadow.as_ref().filter(|_| self.identify.oacs.doorbell_buffer_config())
        else {
            return;
        };
        shadow.clear();
        let (shadow_doorbells, event_idx) = shadow.iovas();
        let command = SubmissionQueueEntry::new(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0)
            .with_dwords(DoorbellBufferConfig { shadow_doorbells, event_idx });
        match admin.run(command, AdminData::None, self.timeout()) {
            Ok(_) => self.shadow_in_use.store(true, Ordering::Relaxed),
            // It only costs speed.
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn configure_events(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        let wanted = AsynchronousEventConfiguration::new()
            .with_critical_warnings(CriticalWarning::from_bits(CRITICAL_WARNINGS))
            .with_namespace_attribute(self.identify.oaes.namespace_attribute());
        let command = bring_up::set_features(fid::ASYNCHRONOUS_EVENT_CONFIGURATION, wanted.into_bits());
        match admin.run(command, AdminData::None, self.timeout()) {
            Ok(_) => {}
            Err(error @ Error::Command { .. }) => tracing::info!("{error}"),
            Err(error) => return Err(error),
        }
        admin.request_events(self.identify.aerl)
    }

    fn timeout(&self) -> Duration {
        self.options.admin_timeout
    }

    /// Tells the controller that it is over, and waits until it is through.
    pub(super) fn shut_down(&self) {
        let limit = shutdown_limit(self.identify.rtd3e);
        let timeout = self.registers.ready_timeout(self.cap);
        if let Err(error) = timeout.and_then(|timeout| self.registers.shut_down(limit, timeout)) {
            tracing::warn!("shutting down: {error}");
        }
    }

    /// A new admin queue, of this generation.
    pub(super) fn new_admin_queue(&self) -> Result<AdminQueue, Error> {
        let watch = self.options.recovery.as_ref().map(|recovery| Watch {
            inbox: self.inbox.clone(),
            heartbeat: self.heartbeat.clone(),
            generation: self.generation(),
            abort_timeout: recovery.abort_timeout,
        });
        let place = Place {
            registers: &self.registers,
            space: &self.space,
            memory_page_size: self.memory_page_size,
            dstrd: self.cap.dstrd(),
        };
        AdminQueue::new(&place, self.shadow.as_ref(), watch)
    }
}

/// How long to wait for a controller with this RTD3E, in microseconds, which may be nonsense.
fn shutdown_limit(rtd3e: u32) -> Duration {
    Duration::from_micros(rtd3e.into()).clamp(SHUTDOWN_LIMITS.0, SHUTDOWN_LIMITS.1)
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.condition() == Condition::Failed {
            // It was disabled, or has no memory left to do harm to.
            return;
        }
        self.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_claims_to_take_for_ever_to_shut_down_is_not_waited_for_so_long() {
        assert_eq!(shutdown_limit(0), Duration::from_secs(5), "it does not say");
        assert_eq!(shutdown_limit(8_000_000), Duration::from_secs(8));
        assert_eq!(shutdown_limit(u32::MAX), Duration::from_secs(60));
    }
}
