//! Get and Set Features (NVMe Base 2.0c, 5.15 and 5.27): the commands, and the values behind them.
//!
//! Nothing can be saved, so every value is back at its default after a reset.

use super::async_event::AsyncEvent;
use super::fault::{Fault, field};
use super::smart::WARNING_TEMPERATURE;
use super::support::{acted_on_by_the_core, namespace_specific};
use super::{Admin, HostBuffer, Machine, Options, Outcome};
use crate::subsystem::Subsystem;
use nvme_spec::admin_command::{GetFeatures, SetFeatures};
use nvme_spec::feature::{
    Arbitration, AsynchronousEventConfiguration, ErrorRecovery, InterruptCoalescing,
    InterruptVectorConfiguration, IoCommandSetProfile, NumberOfQueues, PowerManagement,
    SupportedCapabilities, TemperatureThreshold, Timestamp, VolatileWriteCache, WriteAtomicityNormal, fid,
};
use nvme_spec::{NSID_BROADCAST, Status, SubmissionQueueEntry};
use std::collections::BTreeMap;
use std::time::Instant;
use zerocopy::IntoBytes;

/// The features of a controller, as its host has set them.
#[derive(Clone, Debug)]
pub struct Features {
    arbitration: Arbitration,
    power_management: PowerManagement,
    /// Kelvins.
    over_temperature: u16,
    /// Kelvins.
    under_temperature: u16,
    /// By NSID, where it was set.
    error_recovery: BTreeMap<u32, ErrorRecovery>,
    /// None: no namespace has a volatile write cache, so there is no such feature.
    volatile_write_cache: Option<VolatileWriteCache>,
    number_of_queues: NumberOfQueues,
    interrupt_coalescing: InterruptCoalescing,
    /// By vector, whether coalescing is switched off.
    coalescing_disabled: Vec<bool>,
    write_atomicity: WriteAtomicityNormal,
    async_events: AsynchronousEventConfiguration,
    clock: Clock,
}

/// What Timestamp (NVMe Base 2.0c, 5.27.1.12) sets and reads.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    /// What it said then.
    at: Timestamp,
}

impl Clock {
    /// One that counts from a reset.
    fn from_reset() -> Self {
        Self { started: Instant::now(), at: Timestamp::new().with_origin(Timestamp::ORIGIN_RESET) }
    }

    fn set(to: Timestamp) -> Self {
        let at = Timestamp::new().with_milliseconds(to.milliseconds());
        Self { started: Instant::now(), at: at.with_origin(Timestamp::ORIGIN_SET_FEATURES) }
    }

    /// It never stops, so Synch is 0. Its 48 bits wrap around.
    fn read(self) -> Timestamp {
        let elapsed = self.started.elapsed().as_millis() as u64;
        self.at.with_milliseconds(self.at.milliseconds().wrapping_add(elapsed) & 0xffff_ffff_ffff)
    }
}

impl Features {
    /// Default values.
    pub(super) fn new(subsystem: &Subsystem, options: &Options) -> Self {
        let cache = subsystem.namespaces().iter().any(|namespace| namespace.volatile_cache());
        let queues = u32::from(options.io_queues);
        Self {
            // No limit on the burst, equal weights: reactors take what is there.
            arbitration: Arbitration::new().with_ab(7),
            power_management: PowerManagement::new(),
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: BTreeMap::new(),
            volatile_write_cache: cache.then_some(VolatileWriteCache::new().with_wce(true)),
            // Firmware creates queues without having asked for a number of them.
            number_of_queues: NumberOfQueues::of(queues, queues),
            interrupt_coalescing: InterruptCoalescing::new(),
            coalescing_disabled: vec![false; usize::from(options.vectors)],
            write_atomicity: WriteAtomicityNormal::new(),
            async_events: AsynchronousEventConfiguration::new(),
            clock: Clock::from_reset(),
        }
    }

    /// How many commands to fetch from a submission queue in one turn, and the weights of weighted round robin.
    pub fn arbitration(&self) -> Arbitration {
        self.arbitration
    }

    /// Whether writes may stay in a volatile cache. False: the host has switched the cache off, and every write is
    /// to be durable when it completes (FUA).
    pub fn volatile_write_cache(&self) -> bool {
        self.volatile_write_cache.is_none_or(|value| value.wce())
    }

    /// Whether there is a volatile write cache to switch.
    pub(super) fn has_volatile_write_cache(&self) -> bool {
        self.volatile_write_cache.is_some()
    }

    /// I/O queues granted: identifiers go from 1 to these numbers.
    pub fn number_of_queues(&self) -> NumberOfQueues {
        self.number_of_queues
    }

    /// When interrupts are fired for completion queues whose vector does not have coalescing switched off. Never
    /// applies to the admin completion queue. A wish: an interrupt may always come sooner.
    pub fn interrupt_coalescing(&self) -> InterruptCoalescing {
        self.interrupt_coalescing
    }

    /// Whether interrupt coalescing is switched off for a vector.
    pub fn coalescing_disabled(&self, vector: u16) -> bool {
        self.coalescing_disabled.get(usize::from(vector)).copied().unwrap_or(false)
    }

    /// Whether the host wants to be told of an event.
    pub(super) fn wants(&self, event: AsyncEvent) -> bool {
        match event {
            AsyncEvent::NamespaceAttributeChanged => self.async_events.namespace_attribute(),
            AsyncEvent::Temperature => self.async_events.critical_warnings().temperature(),
            // Errors cannot be switched off.
            AsyncEvent::InvalidDoorbellRegister | AsyncEvent::InvalidDoorbellValue => true,
        }
    }

    /// Whether a composite temperature, in kelvins, is at or past a threshold (NVMe Base 2.0c, 5.27.1.3).
    pub(super) fn temperature_out_of_bounds(&self, temperature: u16) -> bool {
        temperature >= self.over_temperature || temperature <= self.under_temperature
    }

    /// Dword 0 of Get Features. `dw11` says which one of several values is asked for.
    fn get(&self, fid: u8, nsid: u32, dw11: u32) -> Result<u32, Fault> {
        Ok(match fid {
            fid::ARBITRATION => self.arbitration.into_bits(),
            fid::POWER_MANAGEMENT => self.power_management.into_bits(),
            fid::TEMPERATURE_THRESHOLD => match threshold(dw11, false)? {
                Threshold::Over => self.over_temperature.into(),
                Threshold::Under => self.under_temperature.into(),
            },
            fid::ERROR_RECOVERY => self.error_recovery.get(&nsid).map_or(0, |value| value.into_bits()),
            fid::VOLATILE_WRITE_CACHE => self.volatile_write_cache().into(),
            fid::NUMBER_OF_QUEUES => self.number_of_queues.into_bits(),
            fid::INTERRUPT_COALESCING => self.interrupt_coalescing.into_bits(),
            fid::INTERRUPT_VECTOR_CONFIGURATION => {
                let iv = self.vector(dw11)?;
                InterruptVectorConfiguration::new()
                    .with_iv(iv)
                    .with_cd(self.coalescing_disabled(iv))
                    .into_bits()
            }
            fid::WRITE_ATOMICITY_NORMAL => self.write_atomicity.into_bits(),
            fid::ASYNCHRONOUS_EVENT_CONFIGURATION => self.async_events.into_bits(),
            // The value is in the data buffer.
            fid::TIMESTAMP => 0,
            // One combination of command sets, with index 0 (Identify, CNS 1Ch).
            fid::IO_COMMAND_SET_PROFILE => 0,
            _ => return Err(Fault::invalid_field(field::CDW10)),
        })
    }

    /// The vector in Command Dword 11, if there is such a one.
    fn vector(&self, dw11: u32) -> Result<u16, Fault> {
        let iv = InterruptVectorConfiguration::from_bits(dw11).iv();
        if usize::from(iv) < self.coalescing_disabled.len() {
            Ok(iv)
        } else {
            Err(Fault::invalid_field(field::CDW11))
        }
    }
}

#[derive(Clone, Copy)]
enum Threshold {
    Over,
    Under,
}

/// Which temperature threshold Command Dword 11 names (NVMe Base 2.0c, 5.27.1.3): there is the composite
/// temperature's (0h) and no sensor besides; Fh means all that there are, when setting.
fn threshold(dw11: u32, setting: bool) -> Result<Threshold, Fault> {
    let dw11 = TemperatureThreshold::from_bits(dw11);
    match dw11.tmpsel() {
        0 => {}
        0xf if setting => {}
        _ => return Err(Fault::invalid_field(field::CDW11 + 2)),
    }
    match dw11.thsel() {
        0 => Ok(Threshold::Over),
        1 => Ok(Threshold::Under),
        _ => Err(Fault::invalid_field(field::CDW11 + 2).at_bit(4)),
    }
}

impl Admin {
    pub(super) fn get_features(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
    ) -> Result<Outcome, Fault> {
        let dwords = sqe.dwords::<GetFeatures>();
        let fid = self.feature(dwords.fid())?;
        let defaults;
        let values = match dwords.sel() {
            GetFeatures::SEL_CURRENT => &self.features,
            // Nothing was saved, and then the default is what a reset brings back.
            GetFeatures::SEL_DEFAULT | GetFeatures::SEL_SAVED => {
                defaults = Features::new(self.subsystem(), &self.options);
                &defaults
            }
            GetFeatures::SEL_SUPPORTED_CAPABILITIES => {
                let capabilities = SupportedCapabilities::new()
                    .with_changeable(true)
                    .with_namespace_specific(namespace_specific(fid));
                return Ok(Outcome::Complete { dw0: capabilities.into_bits(), changed: false });
            }
            _ => return Err(Fault::invalid_field(field::CDW10 + 1)),
        };
        if namespace_specific(fid) {
            self.active_namespace(sqe.nsid)?;
        }
        let dw0 = values.get(fid, sqe.nsid, sqe.cdw11)?;
        if fid == fid::TIMESTAMP {
            host.write(values.clock.read().as_bytes())?;
        }
        Ok(Outcome::Complete { dw0, changed: false })
    }

    pub(super) fn set_features(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Result<Outcome, Fault> {
        let dwords = sqe.dwords::<SetFeatures>();
        let fid = self.feature(dwords.fid())?;
        if dwords.sv() {
            return Err(Fault::new(Status::FEATURE_NOT_SAVEABLE, field::CDW10 + 3).at_bit(7));
        }
        let namespaces = self.namespaces_to_set(fid, sqe.nsid)?;
        let dw11 = sqe.cdw11;
        let mut dw0 = 0;
        match fid {
            fid::ARBITRATION => self.features.arbitration = Arbitration::from_bits(dw11),
            fid::POWER_MANAGEMENT => self.set_power_management(dw11)?,
            fid::TEMPERATURE_THRESHOLD => self.set_temperature_threshold(dw11)?,
            fid::ERROR_RECOVERY => self.set_error_recovery(&namespaces, dw11)?,
            // Base 2.0c, 5.27.1.4. What is in a cache that is switched off is flushed by the core, before the completion.
            fid::VOLATILE_WRITE_CACHE => {
                self.features.volatile_write_cache = Some(VolatileWriteCache::from_bits(dw11));
            }
            fid::NUMBER_OF_QUEUES => dw0 = self.set_number_of_queues(dw11, machine)?.into_bits(),
            fid::INTERRUPT_COALESCING => {
                self.features.interrupt_coalescing = InterruptCoalescing::from_bits(dw11);
            }
            fid::INTERRUPT_VECTOR_CONFIGURATION => self.set_interrupt_vector(dw11, machine)?,
            fid::WRITE_ATOMICITY_NORMAL => {
                self.features.write_atomicity = WriteAtomicityNormal::from_bits(dw11);
            }
            fid::ASYNCHRONOUS_EVENT_CONFIGURATION => self.set_async_events(dw11),
            fid::TIMESTAMP => {
                let mut timestamp = Timestamp::new();
                host.read(timestamp.as_mut_bytes())?;
                self.features.clock = Clock::set(timestamp);
            }
            fid::IO_COMMAND_SET_PROFILE => {
                if IoCommandSetProfile::from_bits(dw11).iocsci() != 0 {
                    let status = Status::IO_COMMAND_SET_COMBINATION_REJECTED;
                    return Err(Fault::new(status, field::CDW11));
                }
            }
            _ => return Err(Fault::invalid_field(field::CDW10)),
        }
        Ok(Outcome::Complete { dw0, changed: acted_on_by_the_core(fid) })
    }

    fn feature(&self, fid: u8) -> Result<u8, Fault> {
        if self.offers_feature(fid) { Ok(fid) } else { Err(Fault::invalid_field(field::CDW10)) }
    }

    /// NSIDs that a Set Features command is for; none where the feature is not a namespace's (NVMe Base 2.0c,
    /// 5.27.1).
    fn namespaces_to_set(&self, fid: u8, nsid: u32) -> Result<Vec<u32>, Fault> {
        match (namespace_specific(fid), nsid) {
            (true, NSID_BROADCAST) => Ok(self.subsystem().namespaces().iter().map(|it| it.nsid()).collect()),
            (true, nsid) => Ok(vec![self.active_namespace(nsid)?.nsid()]),
            (false, 0 | NSID_BROADCAST) => Ok(Vec::new()),
            (false, nsid) => {
                self.active_namespace(nsid)?;
                Err(Fault::new(Status::FEATURE_NOT_NAMESPACE_SPECIFIC, field::NSID))
            }
        }
    }

    /// Base 2.0c, 5.27.1.2. There is one power state, 0; the workload hint is there to be read back.
    fn set_power_management(&mut self, dw11: u32) -> Result<(), Fault> {
        let value = PowerManagement::from_bits(dw11);
        if value.ps() != 0 {
            return Err(Fault::invalid_field(field::CDW11));
        }
        self.features.power_management = value;
        Ok(())
    }

    fn set_temperature_threshold(&mut self, dw11: u32) -> Result<(), Fault> {
        let kelvins = TemperatureThreshold::from_bits(dw11).tmpth();
        match threshold(dw11, true)? {
            Threshold::Over => self.features.over_temperature = kelvins,
            Threshold::Under => self.features.under_temperature = kelvins,
        }
        self.check_health();
        Ok(())
    }

    /// NVM Command Set 1.0c, 4.1.3. Deallocated blocks read without an error, so DULBE is not offered (NSFEAT).
    fn set_error_recovery(&mut self, namespaces: &[u32], dw11: u32) -> Result<(), Fault> {
        let value = ErrorRecovery::from_bits(dw11);
        if value.dulbe() {
            return Err(Fault::invalid_field(field::CDW11 + 2));
        }
        for &nsid in namespaces {
            self.features.error_recovery.insert(nsid, value);
        }
        Ok(())
    }

    /// Base 2.0c, 5.27.1.5: before any I/O queue exists. Returns what is granted.
    fn set_number_of_queues(&mut self, dw11: u32, machine: &dyn Machine) -> Result<NumberOfQueues, Fault> {
        if machine.has_io_queues() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
        }
        let asked = NumberOfQueues::from_bits(dw11);
        for (value, byte) in [(asked.nsq(), field::CDW11), (asked.ncq(), field::CDW11 + 2)] {
            if value == u16::MAX {
                return Err(Fault::invalid_field(byte));
            }
        }
        let limit = u32::from(self.options.io_queues);
        let granted =
            NumberOfQueues::of(asked.submission_queues().min(limit), asked.completion_queues().min(limit));
        self.features.number_of_queues = granted;
        Ok(granted)
    }

    /// Base 2.0c, 5.27.1.7: for vectors that an I/O completion queue uses.
    fn set_interrupt_vector(&mut self, dw11: u32, machine: &dyn Machine) -> Result<(), Fault> {
        let iv = self.features.vector(dw11)?;
        if !machine.has_completion_queue_on(iv) {
            return Err(Fault::invalid_field(field::CDW11));
        }
        if let Some(disabled) = self.features.coalescing_disabled.get_mut(usize::from(iv)) {
            *disabled = InterruptVectorConfiguration::from_bits(dw11).cd();
        }
        Ok(())
    }

    /// Base 2.0c, 5.27.1.8: an event whose condition holds already is sent when it is enabled.
    fn set_async_events(&mut self, dw11: u32) {
        self.features.async_events = AsynchronousEventConfiguration::from_bits(dw11);
        self.events.retain(|event| self.features.wants(event));
        if !self.changed_namespaces.is_empty() {
            self.raise(AsyncEvent::NamespaceAttributeChanged);
        }
        self.check_health();
    }
}
