//! A controller: bringing it up, asking it about itself, shutting it down.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvme_spec::admin_command::{DoorbellBufferConfig, Identify, SetFeatures};
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::feature::{AsynchronousEventConfiguration, NumberOfQueues, fid};
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, NamespaceIdentificationDescriptors, NamespaceIdentifier,
    NamespaceList, cns,
};
use nvme_spec::log_page::CriticalWarning;
use nvme_spec::registers::{Cap, ControllerConfiguration, Version};
use nvme_spec::{AdminOpcode, Status, SubmissionQueueEntry};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::admin::{AdminData, AdminQueue};
use crate::dma::{DmaBuffer, DmaSpace};
use crate::error::{Error, Fault};
use crate::io_queue;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::queue_pair::QueuePair;
use crate::registers::Registers;
use crate::shadow_doorbell::ShadowDoorbells;
use crate::transport::Transport;

/// The critical warnings of the SMART / Health log that any controller may have.
const CRITICAL_WARNINGS: u8 = 0x1f;
/// How long a controller that does not say (RTD3E) may take to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// A controller, enabled and identified. Clones are handles to the same one, for any thread. When the last of them
/// and the last of its queue pairs is dropped, the controller is shut down in an orderly way (CC.SHN).
#[derive(Clone)]
pub struct Controller {
    shared: Arc<Shared>,
}

/// What all handles and queue pairs of a controller share.
pub(crate) struct Shared {
    registers: Registers,
    space: Arc<DmaSpace>,
    cap: Cap,
    version: Version,
    memory_page_size: u64,
    max_transfer: u32,
    identify: Box<IdentifyController>,
    options: Options,
    admin: Mutex<AdminQueue>,
    /// Where doorbells are trapped; in use if the controller has taken them.
    shadow: Option<Arc<ShadowDoorbells>>,
    shadow_in_use: AtomicBool,
    pub(crate) queue_ids: Mutex<QueueIds>,
    /// Counts resets: queue pairs made before one are of no use after it.
    generation: AtomicU32,
}

/// Which I/O queue identifiers there are, and which are taken.
pub(crate) struct QueueIds {
    /// From 1 to this.
    pub(crate) granted: u16,
    pub(crate) taken: BTreeSet<u16>,
}

impl Controller {
    /// Takes a controller in whatever state it is, disables it, enables it, and identifies it.
    ///
    /// # Errors
    ///
    /// The controller cannot be reached, does not do what it should in time, or cannot be worked with.
    pub fn open(transport: Box<dyn Transport>, options: Options) -> Result<Self, Error> {
        let registers = Registers::new(Arc::from(transport));
        let cap = registers.cap()?;
        let memory_page_size = memory_page_size(&registers, cap)?;
        let timeout = registers.ready_timeout(cap)?;
        disable_or_reset(&registers, timeout)?;

        let space = DmaSpace::new(registers.transport().clone(), memory_page_size);
        let trapped = registers.transport().doorbells().is_none();
        let shadow = if trapped && options.shadow_doorbells {
            Some(ShadowDoorbells::new(&space, memory_page_size, cap.dstrd())?)
        } else {
            None
        };
        let mut admin = AdminQueue::new(&registers, &space, memory_page_size, cap.dstrd(), shadow.as_ref())?;
        let identify = enable(&registers, cap, memory_page_size, timeout)
            .and_then(|()| identify_controller(&registers, &mut admin, options.admin_timeout))
            .inspect_err(|_| {
                // It must not be left to find its queues gone. The error at hand says more than another one would.
                let _ = registers.disable(timeout);
            })?;
        let max_transfer = max_transfer(&identify, cap, &options, memory_page_size);
        let version = registers.vs()?;
        let shared = Shared {
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
            generation: AtomicU32::new(0),
        };
        // From here on, whatever fails, the controller is shut down when `shared` is dropped.
        shared.configure(&mut shared.admin())?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What to call it in messages.
    pub fn name(&self) -> &str {
        self.shared.registers.transport().name()
    }

    /// What it says about itself (Identify, CNS 01h).
    pub fn identify(&self) -> &IdentifyController {
        &self.shared.identify
    }

    /// The version of the specification that it says it follows.
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// Its capabilities register.
    pub fn capabilities(&self) -> Cap {
        self.shared.cap
    }

    /// Largest read or write, in bytes.
    pub fn max_transfer(&self) -> u32 {
        self.shared.max_transfer
    }

    /// How many queue pairs the controller has granted.
    pub fn max_queues(&self) -> u16 {
        self.shared.queue_ids().granted
    }

    /// Whether shadow doorbells are in use.
    pub fn shadow_doorbells(&self) -> bool {
        self.shared.shadow_in_use.load(Ordering::Relaxed)
    }

    /// The identifiers of the active namespaces, in order.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or refuses.
    pub fn namespace_ids(&self) -> Result<Vec<u32>, Error> {
        if self.shared.version < Version::new().with_mjr(1).with_mnr(1) {
            // NVMe 1.0 has no list: all of them are there.
            return Ok((1..=self.shared.identify.nn.min(1024)).collect());
        }
        let mut nsids = Vec::new();
        loop {
            let last = nsids.last().copied().unwrap_or(0);
            let list: Box<NamespaceList> = self.identify_as(cns::ACTIVE_NAMESPACE_ID_LIST, last)?;
            let before = nsids.len();
            // A list that does not ascend would never end.
            nsids.extend(list.0.iter().take_while(|nsid| **nsid != 0).filter(|nsid| **nsid > last));
            if nsids.len() - before < list.0.len() || nsids.last() >= Some(&0xffff_fffd) {
                return Ok(nsids);
            }
        }
    }

    /// What the controller says about a namespace (Identify, CNS 00h). All zeroes: it is not active.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or there can be no such namespace.
    pub fn identify_namespace(&self, nsid: u32) -> Result<Box<IdentifyNamespace>, Error> {
        self.identify_as(cns::NAMESPACE, nsid)
    }

    /// A namespace's identifiers (Identify, CNS 03h); none before NVMe 1.3.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify_namespace`].
    pub fn namespace_identifiers(&self, nsid: u32) -> Result<Vec<NamespaceIdentifier>, Error> {
        if self.shared.version < Version::new().with_mjr(1).with_mnr(3) {
            return Ok(Vec::new());
        }
        let list: Box<NamespaceIdentificationDescriptors> =
            self.identify_as(cns::NAMESPACE_IDENTIFICATION_DESCRIPTOR_LIST, nsid)?;
        Ok(list.iter().collect())
    }

    /// A namespace, to read and write.
    ///
    /// # Errors
    ///
    /// The controller does not answer, there is no such namespace, or it is formatted in a way that this driver does
    /// not handle.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace, Error> {
        let unsupported = |what| Error::Unsupported { name: self.name().into(), what };
        let identify = self.identify_namespace(nsid).map_err(|error| match error {
            Error::Command { status, .. } if status.is(Status::INVALID_NAMESPACE) => {
                unsupported(format!("there is no namespace {nsid}"))
            }
            error => error,
        })?;
        Namespace::new(nsid, identify).map_err(unsupported)
    }

    /// All active namespaces that can be read and written; what is wrong with others is logged.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        let mut namespaces = Vec::new();
        for nsid in self.namespace_ids()? {
            match self.namespace(nsid) {
                Ok(namespace) => namespaces.push(namespace),
                Err(error @ Error::Unsupported { .. }) => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(namespaces)
    }

    /// Memory for data, at least so long.
    ///
    /// # Errors
    ///
    /// There is not so much memory, or not so much address space, or the transport refuses.
    pub fn alloc_dma(&self, len: usize) -> Result<DmaBuffer, Error> {
        self.shared.space.allocate(len)
    }

    /// Creates an I/O queue pair, for one thread.
    ///
    /// # Errors
    ///
    /// All queues that the controller has granted are in use, or it refuses.
    pub fn queue_pair(&self) -> Result<QueuePair, Error> {
        io_queue::create(&self.shared)
    }

    /// Runs an admin command, of which all but command identifier and data pointer is set, and gives dword 0 of its
    /// completion. Other threads' admin commands wait meanwhile.
    ///
    /// # Errors
    ///
    /// The controller refused ([`Error::Command`]), or does not answer.
    pub fn admin(&self, command: SubmissionQueueEntry, data: AdminData<'_>) -> Result<u32, Error> {
        self.admin_within(command, data, self.shared.options.admin_timeout)
    }

    /// As [`Controller::admin`], for a command that may take longer or shall not.
    ///
    /// # Errors
    ///
    /// As [`Controller::admin`].
    pub fn admin_within(
        &self,
        command: SubmissionQueueEntry,
        data: AdminData<'_>,
        limit: Duration,
    ) -> Result<u32, Error> {
        self.shared.admin().run(command, data, limit)
    }

    /// The asynchronous events that have come since the last time. The log page that an event names has to be read
    /// before the controller reports the like again.
    ///
    /// # Errors
    ///
    /// The admin queue has broken.
    pub fn events(&self) -> Result<Vec<AsynchronousEvent>, Error> {
        self.shared.admin().events()
    }

    /// Resets the controller (CC.EN, or, if that does not help, the function) and brings it up again. All queue pairs
    /// made before are broken by it ([`Fault::Reset`]); drop them and make new ones.
    ///
    /// # Errors
    ///
    /// The controller does not come back; it may be tried again.
    pub fn reset(&self) -> Result<(), Error> {
        self.shared.reset()
    }

    fn identify_as<T: FromBytes + IntoBytes>(&self, cns: u8, nsid: u32) -> Result<Box<T>, Error> {
        let mut data = Box::new(T::new_zeroed());
        self.admin(identify_command(cns, nsid), AdminData::FromController(data.as_mut_bytes()))?;
        Ok(data)
    }
}

impl Shared {
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

    pub(crate) fn io_timeout(&self) -> Duration {
        self.options.io_timeout
    }

    /// The shadow doorbells, if the controller looks at them.
    pub(crate) fn shadow(&self) -> Option<&Arc<ShadowDoorbells>> {
        self.shadow.as_ref().filter(|_| self.shadow_in_use.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { name: self.registers.name(), what: what.into() }
    }

    /// Runs admin commands of which no part must come after a reset that came after `generation`.
    pub(crate) fn run(
        &self,
        generation: u32,
        commands: impl IntoIterator<Item = SubmissionQueueEntry>,
    ) -> Result<(), Error> {
        // A reset holds this lock too.
        let mut admin = self.admin();
        for command in commands {
            if generation != self.generation() {
                return Err(Error::Queue { name: self.registers.name(), fault: Fault::Reset });
            }
            admin.run(command, AdminData::None, self.options.admin_timeout)?;
        }
        Ok(())
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
    fn configure(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        self.set_number_of_queues(admin)?;
        self.configure_doorbells(admin);
        self.configure_events(admin)
    }

    fn set_number_of_queues(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        let wanted = self.options.queues.clamp(1, u16::MAX - 1);
        let value = NumberOfQueues::of(wanted.into(), wanted.into());
        let command = set_features(fid::NUMBER_OF_QUEUES, value.into_bits());
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
        let command = set_features(fid::ASYNCHRONOUS_EVENT_CONFIGURATION, wanted.into_bits());
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

    fn reset(&self) -> Result<(), Error> {
        let mut admin = self.admin();
        // Queue pairs see it before the controller does, so that none of them rings a doorbell of what comes after.
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.shadow_in_use.store(false, Ordering::Relaxed);
        let timeout = self.registers.ready_timeout(self.cap)?;
        disable_or_reset(&self.registers, timeout)?;
        let (size, dstrd) = (self.memory_page_size, self.cap.dstrd());
        *admin = AdminQueue::new(&self.registers, &self.space, size, dstrd, self.shadow.as_ref())?;
        enable(&self.registers, self.cap, self.memory_page_size, timeout)?;
        self.configure(&mut admin)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // RTD3E is in microseconds.
        let limit = SHUTDOWN_LIMIT.max(Duration::from_micros(self.identify.rtd3e.into()));
        let result = self
            .registers
            .ready_timeout(self.cap)
            .and_then(|timeout| self.registers.shut_down(limit, timeout));
        if let Err(error) = result {
            tracing::warn!("shutting down: {error}");
        }
    }
}

/// The memory page size: 4 KiB, or the smallest that the controller has.
fn memory_page_size(registers: &Registers, cap: Cap) -> Result<u64, Error> {
    let unsupported = |what: String| Err(Error::Unsupported { name: registers.name(), what });
    if cap.css() & (Cap::CSS_NVM | Cap::CSS_IO_COMMAND_SETS) == 0 {
        return unsupported(format!("the controller has no NVM command set (CAP.CSS = {:#04x})", cap.css()));
    }
    if cap.maximum_queue_entries() < 2 {
        return unsupported("the controller has queues of one entry (CAP.MQES = 0)".into());
    }
    if cap.mpsmin() > cap.mpsmax() {
        return unsupported(format!("CAP.MPSMIN = {} is above CAP.MPSMAX = {}", cap.mpsmin(), cap.mpsmax()));
    }
    Ok(cap.memory_page_size_minimum())
}

/// Disables a controller; if it does not let itself be disabled, or insists on its fatal error, resets the function.
fn disable_or_reset(registers: &Registers, timeout: Duration) -> Result<(), Error> {
    let disabled = registers.disable(timeout).and_then(|()| registers.check());
    match disabled {
        Ok(()) => Ok(()),
        Err(error @ (Error::Timeout { .. } | Error::Fatal { .. })) => {
            tracing::warn!("{error}; resetting the function");
            registers.transport().reset().map_err(|_| error)?;
            registers.wait_ready(false, timeout)?;
            registers.check()
        }
        Err(error) => Err(error),
    }
}

fn enable(registers: &Registers, cap: Cap, memory_page_size: u64, timeout: Duration) -> Result<(), Error> {
    let css = if cap.css() & Cap::CSS_NVM != 0 {
        ControllerConfiguration::CSS_NVM
    } else {
        ControllerConfiguration::CSS_ALL
    };
    let cc = ControllerConfiguration::new()
        .with_css(css)
        .with_mps((memory_page_size.trailing_zeros() - 12) as u8)
        .with_iosqes(size_of::<SubmissionQueueEntry>().trailing_zeros() as u8)
        .with_iocqes(size_of::<nvme_spec::CompletionQueueEntry>().trailing_zeros() as u8)
        .with_en(true);
    registers.set_cc(cc)?;
    registers.wait_ready(true, timeout)
}

/// Asks the controller about itself, and checks that it has entries of the usual sizes.
fn identify_controller(
    registers: &Registers,
    admin: &mut AdminQueue,
    limit: Duration,
) -> Result<Box<IdentifyController>, Error> {
    let mut identify = Box::new(IdentifyController::new_zeroed());
    let data = AdminData::FromController(identify.as_mut_bytes());
    admin.run(identify_command(cns::CONTROLLER, 0), data, limit)?;
    // Powers of two: 64 and 16 bytes.
    for (name, sizes, size) in [("submission", identify.sqes, 6), ("completion", identify.cqes, 4)] {
        if sizes.minimum() > size {
            let what = format!("{name} queue entries of 2^{} bytes are not supported", sizes.minimum());
            return Err(Error::Unsupported { name: registers.name(), what });
        }
    }
    Ok(identify)
}

/// MDTS and what was asked for, whichever is less; in whole memory pages.
fn max_transfer(identify: &IdentifyController, cap: Cap, options: &Options, memory_page_size: u64) -> u32 {
    let limit = identify.maximum_data_transfer_size(cap.memory_page_size_minimum()).unwrap_or(u64::MAX);
    let wanted = u64::from(options.max_transfer).min(limit).max(memory_page_size);
    (wanted / memory_page_size * memory_page_size) as u32
}

fn identify_command(cns: u8, nsid: u32) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0)
        .with_nsid(nsid)
        .with_dwords(Identify::new().with_cns(cns))
}

fn set_features(fid: u8, value: u32) -> SubmissionQueueEntry {
    let command = SubmissionQueueEntry::new(AdminOpcode::SET_FEATURES, 0);
    SubmissionQueueEntry { cdw11: value, ..command.with_dwords(SetFeatures::new().with_fid(fid)) }
}
