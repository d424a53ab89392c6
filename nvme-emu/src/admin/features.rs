//! Get and Set Features (NVMe Base 2.0c, 5.15 and 5.27): the commands, and the values behind them.
//!
//! Nothing can be saved (bit 0 of the capabilities), so every value is back at its default after a reset.

use super::async_event::AsyncEvent;
use super::fault::{Fault, field};
use super::smart::{WARNING_TEMPERATURE, Warnings};
use super::support::Feature;
use super::{Admin, HostBuffer, Machine, Options, Outcome};
use crate::subsystem::Subsystem;
use nvme_spec::admin_command::{GetFeatures, SetFeatures};
use nvme_spec::{NSID_BROADCAST, Status, SubmissionQueueEntry};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Asynchronous Event Configuration: Namespace Attribute Notices.
const NAMESPACE_ATTRIBUTE_NOTICES: u32 = 1 << 8;

/// The features of a controller, as its host has set them.
#[derive(Clone, Debug)]
pub struct Features {
    /// Command Dword 11 as set.
    arbitration: u32,
    power_management: u32,
    over_temperature: u16,
    under_temperature: u16,
    /// Time Limited Error Recovery by NSID, where it is not 0.
    error_recovery: BTreeMap<u32, u16>,
    /// None: no namespace has a volatile write cache, so there is no such feature.
    volatile_write_cache: Option<bool>,
    submission_queues: u16,
    completion_queues: u16,
    interrupt_coalescing: u16,
    /// Vectors whose coalescing is switched off.
    coalescing_disabled: Vec<bool>,
    write_atomicity: u32,
    async_event_configuration: u32,
    timestamp: Timestamp,
}

/// When an interrupt is fired (NVMe Base 2.0c, 5.27.1.6). Both fields are the host's wish; an interrupt may always
/// come sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// Completions to gather, from 1 (as they come) to 256.
    pub threshold: u16,
    /// Longest time to gather them for; zero: not at all.
    pub time: Duration,
}

/// Weights of weighted round robin, in commands (NVMe Base 2.0c, 5.27.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArbitrationWeights {
    /// Of submission queues created with priority Low.
    pub low: u16,
    /// Medium.
    pub medium: u16,
    /// High.
    pub high: u16,
}

/// I/O queues that may be created, of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// Submission queues: identifiers from 1 to this.
    pub submission: u16,
    /// Completion queues: identifiers from 1 to this.
    pub completion: u16,
}

/// Timestamp (NVMe Base 2.0c, 5.27.1.12): a clock that the host sets.
#[derive(Clone, Copy, Debug)]
struct Timestamp {
    /// Milliseconds since the epoch when it was set; None: never, it counts from the last reset.
    set_to: Option<u64>,
    since: Instant,
}

impl Timestamp {
    /// Origin in the attributes (bits 3:1): set by Set Features.
    const SET_BY_HOST: u8 = 1 << 1;

    /// The Timestamp data structure: 48 bits of milliseconds, then attributes (bit 0, Synch, is 0: the clock never
    /// stops).
    fn to_bytes(self) -> [u8; 8] {
        // Wraps around with its 48 bits.
        let elapsed = self.since.elapsed().as_millis() as u64;
        let milliseconds = self.set_to.unwrap_or(0).wrapping_add(elapsed);
        let mut bytes = milliseconds.to_le_bytes();
        bytes[6] = if self.set_to.is_some() { Self::SET_BY_HOST } else { 0 };
        bytes[7] = 0;
        bytes
    }

    fn from_bytes(mut bytes: [u8; 8]) -> Self {
        bytes[6..].fill(0);
        Self { set_to: Some(u64::from_le_bytes(bytes)), since: Instant::now() }
    }
}

impl Features {
    /// Default values.
    pub(super) fn new(subsystem: &Subsystem, options: &Options) -> Self {
        let cache = subsystem.namespaces().iter().any(|namespace| namespace.volatile_cache());
        Self {
            // No limit on the burst, equal weights: reactors take what is there.
            arbitration: 7,
            power_management: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: BTreeMap::new(),
            volatile_write_cache: cache.then_some(true),
            // Firmware creates queues without having asked for a number of them.
            submission_queues: options.io_queues,
            completion_queues: options.io_queues,
            interrupt_coalescing: 0,
            coalescing_disabled: vec![false; usize::from(options.vectors)],
            write_atomicity: 0,
            async_event_configuration: 0,
            timestamp: Timestamp { set_to: None, since: Instant::now() },
        }
    }

    /// Most commands to fetch from a submission queue in one turn; None: no limit.
    pub fn arbitration_burst(&self) -> Option<u8> {
        match self.arbitration & 7 {
            7 => None,
            log2 => Some(1 << log2),
        }
    }

    /// Weights of weighted round robin.
    pub fn arbitration_weights(&self) -> ArbitrationWeights {
        let [_, low, medium, high] = self.arbitration.to_le_bytes().map(|weight| u16::from(weight) + 1);
        ArbitrationWeights { low, medium, high }
    }

    /// Whether writes may stay in a volatile cache. False: the host has switched the cache off, and every write is
    /// to be durable when it completes (FUA).
    pub fn volatile_write_cache(&self) -> bool {
        self.volatile_write_cache.unwrap_or(true)
    }

    /// I/O queues granted.
    pub fn number_of_queues(&self) -> NumberOfQueues {
        NumberOfQueues { submission: self.submission_queues, completion: self.completion_queues }
    }

    /// When interrupts are fired for completion queues whose vector does not have coalescing switched off. Never
    /// applies to the admin completion queue.
    pub fn interrupt_coalescing(&self) -> InterruptCoalescing {
        let [threshold, time] = self.interrupt_coalescing.to_le_bytes();
        InterruptCoalescing {
            threshold: u16::from(threshold) + 1,
            time: Duration::from_micros(100) * u32::from(time),
        }
    }

    /// Whether interrupt coalescing is switched off for a vector.
    pub fn coalescing_disabled(&self, vector: u16) -> bool {
        self.coalescing_disabled.get(usize::from(vector)).copied().unwrap_or(false)
    }

    /// Whether the host wants to be told of an event.
    pub(super) fn wants(&self, event: AsyncEvent) -> bool {
        match event {
            AsyncEvent::NamespaceAttributeChanged => {
                self.async_event_configuration & NAMESPACE_ATTRIBUTE_NOTICES != 0
            }
            AsyncEvent::Temperature => self.critical_warnings().contains(Warnings::TEMPERATURE),
            AsyncEvent::Reliability => self.critical_warnings().intersects(Warnings::UNRELIABLE),
            AsyncEvent::InvalidDoorbellRegister
            | AsyncEvent::InvalidDoorbellValue
            | AsyncEvent::PersistentInternalError
            | AsyncEvent::TransientInternalError => true,
        }
    }

    /// Critical warnings that the host wants events for.
    pub(super) fn critical_warnings(&self) -> Warnings {
        Warnings::from_bits_truncate(self.async_event_configuration as u8)
    }

    /// Whether a composite temperature, in kelvins, is at or past a threshold.
    pub(super) fn temperature_out_of_bounds(&self, temperature: u16) -> bool {
        temperature >= self.over_temperature || temperature <= self.under_temperature
    }

    /// Dword 0 of Get Features, from `dw11`, Command Dword 11, which says which one of several values it is about.
    fn get(&self, feature: Feature, nsid: u32, dw11: u32) -> Result<u32, Fault> {
        Ok(match feature {
            Feature::Arbitration => self.arbitration,
            Feature::PowerManagement => self.power_management,
            Feature::TemperatureThreshold => match threshold(dw11, false)? {
                Threshold::Over => self.over_temperature.into(),
                Threshold::Under => self.under_temperature.into(),
            },
            Feature::ErrorRecovery => self.error_recovery.get(&nsid).copied().unwrap_or(0).into(),
            Feature::VolatileWriteCache => self.volatile_write_cache().into(),
            Feature::NumberOfQueues => {
                let zeroes_based = |count: u16| u32::from(count.saturating_sub(1));
                zeroes_based(self.completion_queues) << 16 | zeroes_based(self.submission_queues)
            }
            Feature::InterruptCoalescing => self.interrupt_coalescing.into(),
            Feature::InterruptVectorConfiguration => {
                let vector = self.vector(dw11)?;
                u32::from(self.coalescing_disabled(vector)) << 16 | u32::from(vector)
            }
            Feature::WriteAtomicityNormal => self.write_atomicity,
            Feature::AsynchronousEventConfiguration => self.async_event_configuration,
            // In the data buffer.
            Feature::Timestamp => 0,
            // One combination of command sets, with index 0 (Identify, CNS 1Ch).
            Feature::IoCommandSetProfile => 0,
        })
    }

    /// The vector in Command Dword 11, if there is such a one.
    fn vector(&self, dw11: u32) -> Result<u16, Fault> {
        let vector = dw11 as u16;
        if usize::from(vector) < self.coalescing_disabled.len() {
            Ok(vector)
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
/// temperature's (TMPSEL 0h) and no sensor besides; Fh means all that there are, when setting.
fn threshold(dw11: u32, setting: bool) -> Result<Threshold, Fault> {
    match dw11 >> 16 & 0xf {
        0 => {}
        0xf if setting => {}
        _ => return Err(Fault::invalid_field(field::CDW11 + 2)),
    }
    match dw11 >> 20 & 3 {
        0 => Ok(Threshold::Over),
        1 => Ok(Threshold::Under),
        _ => Err(Fault::invalid_field(field::CDW11 + 2).at_bit(4)),
    }
}

/// Which value Get Features is about (SEL).
enum Select {
    Current,
    Default,
    Capabilities,
}

impl Admin {
    pub(super) fn get_features(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
    ) -> Result<Outcome, Fault> {
        let feature = self.feature(sqe)?;
        let select = match sqe.dwords::<GetFeatures>().sel() {
            GetFeatures::SEL_CURRENT => Select::Current,
            // Nothing was saved, and then the default is what a reset brings back.
            GetFeatures::SEL_DEFAULT | GetFeatures::SEL_SAVED => Select::Default,
            GetFeatures::SEL_SUPPORTED_CAPABILITIES => Select::Capabilities,
            _ => return Err(Fault::invalid_field(field::CDW10 + 1)),
        };
        if matches!(select, Select::Capabilities) {
            return Ok(Outcome::Complete { dw0: feature.capabilities(), changed: false });
        }
        if feature.namespace_specific() {
            self.active_namespace(sqe.nsid)?;
        }
        let defaults;
        let values = match select {
            Select::Current => &self.features,
            _ => {
                defaults = Features::new(self.subsystem(), &self.options);
                &defaults
            }
        };
        let dw0 = values.get(feature, sqe.nsid, sqe.cdw11)?;
        if feature == Feature::Timestamp {
            host.write(&values.timestamp.to_bytes())?;
        }
        Ok(Outcome::Complete { dw0, changed: false })
    }

    pub(super) fn set_features(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Result<Outcome, Fault> {
        let feature = self.feature(sqe)?;
        if sqe.dwords::<SetFeatures>().sv() {
            let status = Status::FEATURE_NOT_SAVEABLE;
            return Err(Fault::new(status, field::CDW10 + 3).at_bit(7));
        }
        let namespaces = self.set_features_namespaces(feature, sqe.nsid)?;
        let dw11 = sqe.cdw11;
        let mut dw0 = 0;
        match feature {
            Feature::Arbitration => self.features.arbitration = dw11 & 0xffff_ff07,
            Feature::PowerManagement => self.set_power_management(dw11)?,
            Feature::TemperatureThreshold => {
                // The low half is the threshold in kelvins.
                match threshold(dw11, true)? {
                    Threshold::Over => self.features.over_temperature = dw11 as u16,
                    Threshold::Under => self.features.under_temperature = dw11 as u16,
                }
                self.check_health();
            }
            Feature::ErrorRecovery => self.set_error_recovery(&namespaces, dw11)?,
            Feature::VolatileWriteCache => self.features.volatile_write_cache = Some(dw11 & 1 != 0),
            Feature::NumberOfQueues => {
                self.set_number_of_queues(dw11, machine)?;
                dw0 = self.features.get(feature, 0, 0)?;
            }
            Feature::InterruptCoalescing => self.features.interrupt_coalescing = dw11 as u16,
            Feature::InterruptVectorConfiguration => self.set_interrupt_vector(dw11, machine)?,
            Feature::WriteAtomicityNormal => self.features.write_atomicity = dw11 & 1,
            Feature::AsynchronousEventConfiguration => self.set_async_events(dw11),
            Feature::Timestamp => {
                let mut bytes = [0; 8];
                host.read(&mut bytes)?;
                self.features.timestamp = Timestamp::from_bytes(bytes);
            }
            Feature::IoCommandSetProfile => {
                if dw11 & 0x1ff != 0 {
                    let status = Status::IO_COMMAND_SET_COMBINATION_REJECTED;
                    return Err(Fault::new(status, field::CDW11));
                }
            }
        }
        Ok(Outcome::Complete { dw0, changed: feature.acted_on_by_the_core() })
    }

    /// The feature that Command Dword 10 names.
    fn feature(&self, sqe: &SubmissionQueueEntry) -> Result<Feature, Fault> {
        let feature = Feature::from_identifier(sqe.cdw10 as u8);
        feature
            .filter(|&feature| self.offers_feature(feature))
            .ok_or_else(|| Fault::invalid_field(field::CDW10))
    }

    /// Base 2.0c, 5.27.1.4: without a volatile write cache, its feature is an invalid field.
    pub(super) fn offers_feature(&self, feature: Feature) -> bool {
        feature != Feature::VolatileWriteCache || self.features.volatile_write_cache.is_some()
    }

    /// NSIDs that a Set Features command is for; none where the feature is not a namespace's.
    fn set_features_namespaces(&self, feature: Feature, nsid: u32) -> Result<Vec<u32>, Fault> {
        match (feature.namespace_specific(), nsid) {
            (true, NSID_BROADCAST) => Ok(self.subsystem().namespaces().iter().map(|it| it.nsid()).collect()),
            (true, nsid) => Ok(vec![self.active_namespace(nsid)?.nsid()]),
            (false, 0 | NSID_BROADCAST) => Ok(Vec::new()),
            (false, nsid) => {
                self.active_namespace(nsid)?;
                Err(Fault::new(Status::FEATURE_NOT_NAMESPACE_SPECIFIC, field::NSID))
            }
        }
    }

    /// Base 2.0c, 5.27.1.2. There is one power state, 0.
    fn set_power_management(&mut self, dw11: u32) -> Result<(), Fault> {
        if dw11 & 0x1f != 0 {
            return Err(Fault::invalid_field(field::CDW11));
        }
        // The workload hint stays readable.
        self.features.power_management = dw11 & 0xe0;
        Ok(())
    }

    /// NVM Command Set 1.0c, 4.1.3.3. Deallocated blocks read without an error, so DULBE is not offered (NSFEAT).
    fn set_error_recovery(&mut self, namespaces: &[u32], dw11: u32) -> Result<(), Fault> {
        if dw11 & 1 << 16 != 0 {
            return Err(Fault::invalid_field(field::CDW11 + 2));
        }
        for &nsid in namespaces {
            self.features.error_recovery.insert(nsid, dw11 as u16);
        }
        Ok(())
    }

    /// Base 2.0c, 5.27.1.5: before any I/O queue exists; what is granted is in Dword 0.
    fn set_number_of_queues(&mut self, dw11: u32, machine: &dyn Machine) -> Result<(), Fault> {
        if machine.has_io_queues() {
            return Err(Fault::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
        }
        let granted = |zeroes_based: u32, byte| match zeroes_based as u16 {
            u16::MAX => Err(Fault::invalid_field(byte)),
            asked => Ok((asked + 1).min(self.options.io_queues)),
        };
        let submission = granted(dw11, field::CDW11)?;
        let completion = granted(dw11 >> 16, field::CDW11 + 2)?;
        self.features.submission_queues = submission;
        self.features.completion_queues = completion;
        Ok(())
    }

    /// Base 2.0c, 5.27.1.7: for vectors that an I/O completion queue uses.
    fn set_interrupt_vector(&mut self, dw11: u32, machine: &dyn Machine) -> Result<(), Fault> {
        let vector = self.features.vector(dw11)?;
        if !machine.has_completion_queue_on(vector) {
            return Err(Fault::invalid_field(field::CDW11));
        }
        if let Some(disabled) = self.features.coalescing_disabled.get_mut(usize::from(vector)) {
            *disabled = dw11 & 1 << 16 != 0;
        }
        Ok(())
    }

    /// Base 2.0c, 5.27.1.8: an event whose condition holds already is sent when it is enabled.
    fn set_async_events(&mut self, dw11: u32) {
        self.features.async_event_configuration = dw11;
        self.events.retain(|event| self.features.wants(event));
        if !self.changed_namespaces.is_empty() {
            self.raise(AsyncEvent::NamespaceAttributeChanged);
        }
        self.check_health();
    }
}
