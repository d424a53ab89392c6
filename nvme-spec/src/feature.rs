//! Features of Get Features and Set Features (Base 2.0, 5.27.1; NVM Command Set 1.0, 4.1.3).
//!
//! The types are values of CDW11 in Set Features and of completion dword 0 in Get Features, unless they say that they
//! are a data structure. Read them with `from_bits(sqe.cdw11)`.

use crate::log_page::CriticalWarning;
use bitfield_struct::bitfield;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// FID, Feature Identifier (Base 2.0, 5.27.1).
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// LBA Range Type (NVM command set).
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery (NVM command set).
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration.
    pub const INTERRUPT_VECTOR_CONFIGURATION: u8 = 0x09;
    /// Write Atomicity Normal (NVM command set).
    pub const WRITE_ATOMICITY_NORMAL: u8 = 0x0A;
    /// Asynchronous Event Configuration.
    pub const ASYNCHRONOUS_EVENT_CONFIGURATION: u8 = 0x0B;
    /// Autonomous Power State Transition.
    pub const AUTONOMOUS_POWER_STATE_TRANSITION: u8 = 0x0C;
    /// Host Memory Buffer.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0D;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0E;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host Controlled Thermal Management.
    pub const HOST_CONTROLLED_THERMAL_MANAGEMENT: u8 = 0x10;
    /// Non-Operational Power State Config.
    pub const NON_OPERATIONAL_POWER_STATE_CONFIG: u8 = 0x11;
    /// Read Recovery Level Config.
    pub const READ_RECOVERY_LEVEL_CONFIG: u8 = 0x12;
    /// Predictable Latency Mode Config.
    pub const PREDICTABLE_LATENCY_MODE_CONFIG: u8 = 0x13;
    /// Predictable Latency Mode Window.
    pub const PREDICTABLE_LATENCY_MODE_WINDOW: u8 = 0x14;
    /// LBA Status Information Report Interval (NVM command set).
    pub const LBA_STATUS_INFORMATION_REPORT_INTERVAL: u8 = 0x15;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
    /// Sanitize Config.
    pub const SANITIZE_CONFIG: u8 = 0x17;
    /// Endurance Group Event Configuration.
    pub const ENDURANCE_GROUP_EVENT_CONFIGURATION: u8 = 0x18;
    /// I/O Command Set Profile.
    pub const IO_COMMAND_SET_PROFILE: u8 = 0x19;
    /// Spinup Control.
    pub const SPINUP_CONTROL: u8 = 0x1A;
    /// Enhanced Controller Metadata.
    pub const ENHANCED_CONTROLLER_METADATA: u8 = 0x7D;
    /// Controller Metadata.
    pub const CONTROLLER_METADATA: u8 = 0x7E;
    /// Namespace Metadata.
    pub const NAMESPACE_METADATA: u8 = 0x7F;
    /// Software Progress Marker.
    pub const SOFTWARE_PROGRESS_MARKER: u8 = 0x80;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace Write Protection Config.
    pub const NAMESPACE_WRITE_PROTECTION_CONFIG: u8 = 0x84;
}

/// Completion dword 0 of Get Features with SEL 011b, Supported Capabilities (Base 2.0, 5.15).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SupportedCapabilities {
    /// The feature can be saved.
    pub saveable: bool,
    /// The feature is namespace specific.
    pub namespace_specific: bool,
    /// The feature can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Arbitration (FID 01h; 5.27.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Arbitration {
    /// AB, Arbitration Burst: 2^AB commands, 7 for no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// LPW, Low Priority Weight, 0's based.
    pub lpw: u8,
    /// MPW, Medium Priority Weight, 0's based.
    pub mpw: u8,
    /// HPW, High Priority Weight, 0's based.
    pub hpw: u8,
}

impl Arbitration {
    /// How many commands may be fetched from a queue at once, `None` for no limit.
    pub const fn arbitration_burst(self) -> Option<u32> {
        match self.ab() {
            7 => None,
            ab => Some(1 << ab),
        }
    }
}

/// Power Management (FID 02h; 5.27.1.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PowerManagement {
    /// PS, Power State.
    #[bits(5)]
    pub ps: u8,
    /// WH, Workload Hint.
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold (FID 04h; 5.27.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// TMPTH, Temperature Threshold, in kelvins.
    pub tmpth: u16,
    /// TMPSEL, Threshold Temperature Select: 0 composite, 1 to 8 sensor, 15 all (Set Features only).
    #[bits(4)]
    pub tmpsel: u8,
    /// THSEL, Threshold Type Select: 0 over, 1 under temperature.
    #[bits(2)]
    pub thsel: u8,
    #[bits(10)]
    __: u16,
}

/// Error Recovery (FID 05h; NVM Command Set 1.0, 4.1.3), namespace specific.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ErrorRecovery {
    /// TLER, Time Limited Error Recovery, in 100 ms, 0 for no limit.
    pub tler: u16,
    /// DULBE, Deallocated or Unwritten Logical Block Error Enable.
    pub dulbe: bool,
    #[bits(15)]
    __: u16,
}

/// Volatile Write Cache (FID 06h; 5.27.1.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VolatileWriteCache {
    /// WCE, Volatile Write Cache Enable.
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues (FID 07h; 5.27.1.5): how many I/O queues are requested, or allocated in the answer.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NumberOfQueues {
    /// NSQR or NSQA, Number of I/O Submission Queues, 0's based; FFFFh is not allowed.
    pub nsq: u16,
    /// NCQR or NCQA, Number of I/O Completion Queues, 0's based; FFFFh is not allowed.
    pub ncq: u16,
}

impl NumberOfQueues {
    /// For that many I/O Submission Queues and I/O Completion Queues: 1 to 65 535 each.
    pub const fn of(submission_queues: u32, completion_queues: u32) -> Self {
        Self::new()
            .with_nsq(submission_queues.wrapping_sub(1) as u16)
            .with_ncq(completion_queues.wrapping_sub(1) as u16)
    }

    /// How many I/O Submission Queues: 1 to 65 536, of which 65 536 is not allowed.
    pub const fn submission_queues(self) -> u32 {
        self.nsq() as u32 + 1
    }

    /// How many I/O Completion Queues: 1 to 65 536, of which 65 536 is not allowed.
    pub const fn completion_queues(self) -> u32 {
        self.ncq() as u32 + 1
    }
}

/// Interrupt Coalescing (FID 08h; 5.27.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// THR, Aggregation Threshold in completion queue entries, 0's based.
    pub thr: u8,
    /// TIME, Aggregation Time, in 100 µs; 0 for no delay.
    pub time: u8,
    __: u16,
}

impl InterruptCoalescing {
    /// How many completions to aggregate an interrupt for: 1 to 256.
    pub const fn aggregation_threshold(self) -> u32 {
        self.thr() as u32 + 1
    }

    /// How long an interrupt may be delayed.
    pub const fn aggregation_time(self) -> Duration {
        Duration::from_micros(100 * self.time() as u64)
    }
}

/// Interrupt Vector Configuration (FID 09h; 5.27.1.7).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptVectorConfiguration {
    /// IV, Interrupt Vector.
    pub iv: u16,
    /// CD, Coalescing Disable.
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Write Atomicity Normal (FID 0Ah; NVM Command Set 1.0, 4.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WriteAtomicityNormal {
    /// DN, Disable Normal: the host needs no more than AWUPF.
    pub dn: bool,
    #[bits(31)]
    __: u32,
}

/// Asynchronous Event Configuration (FID 0Bh; 5.27.1.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsynchronousEventConfiguration {
    /// SMART / Health Critical Warnings that cause an event.
    #[bits(8)]
    pub critical_warnings: CriticalWarning,
    /// Namespace Attribute Notices.
    pub namespace_attribute: bool,
    /// Firmware Activation Notices.
    pub firmware_activation: bool,
    /// Telemetry Log Notices.
    pub telemetry_log: bool,
    /// Asymmetric Namespace Access Change Notices.
    pub ana_change: bool,
    /// Predictable Latency Event Aggregate Log Change Notices.
    pub predictable_latency_event: bool,
    /// LBA Status Information Alert Notices.
    pub lba_status_information: bool,
    /// Endurance Group Event Aggregate Log Change Notices.
    pub endurance_group_event: bool,
    /// Normal NVM Subsystem Shutdown.
    pub normal_subsystem_shutdown: bool,
    #[bits(11)]
    __: u16,
    /// Zone Descriptor Changed Notices.
    pub zone_descriptor_changed: bool,
    #[bits(3)]
    __: u8,
    /// Discovery Log Page Change Notification.
    pub discovery_log_page_change: bool,
}

/// Keep Alive Timer (FID 0Fh; 5.27.1.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct KeepAliveTimer {
    /// KATO, Keep Alive Timeout, in ms; 0 disables the timer.
    pub kato: u32,
}

/// I/O Command Set Profile (FID 19h; 5.27.1.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoCommandSetProfile {
    /// IOCSCI, I/O Command Set Combination Index into CNS 1Ch.
    #[bits(9)]
    pub iocsci: u16,
    #[bits(23)]
    __: u32,
}

/// Namespace Write Protection Config (FID 84h; 5.27.1.28), namespace specific.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceWriteProtectionConfig {
    /// Write Protection State: 0 none, 1 write protect, 2 until power cycle, 3 permanent.
    #[bits(3)]
    pub wps: u8,
    #[bits(29)]
    __: u32,
}

/// Timestamp (FID 0Eh; 5.27.1.11), a data structure of 8 bytes.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01 00:00 UTC, or since the last Controller Level Reset: see [`Self::origin`].
    #[bits(48)]
    pub milliseconds: u64,
    /// Synch: the clock may have stopped, for instance in a non-operational power state.
    pub synch: bool,
    /// Timestamp Origin: [`Self::ORIGIN_RESET`] and the others.
    #[bits(3)]
    pub origin: u8,
    #[bits(12)]
    __: u16,
}

impl Timestamp {
    /// [`Self::origin`]: the timestamp was cleared to 0 by a Controller Level Reset.
    pub const ORIGIN_RESET: u8 = 0b000;
    /// [`Self::origin`]: the timestamp was set by Set Features.
    pub const ORIGIN_SET_FEATURES: u8 = 0b001;
}

/// Host Behavior Support (FID 16h; 5.27.1.18), a data structure of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostBehaviorSupport {
    /// Advanced Command Retry Enable: 0 or 1.
    pub acre: u8,
    /// Extended Telemetry Data Area 4 Supported: 0 or 1.
    pub etdas: u8,
    /// LBA Format Extension Enable: 0 or 1.
    pub lbafee: u8,
    /// Reserved.
    pub reserved3: [u8; 509],
}

layout!(HostBehaviorSupport, 512, acre @ 0, etdas @ 1, lbafee @ 2);
layout!(Timestamp, 8);

impl Default for HostBehaviorSupport {
    /// All bytes 0: the host supports none of it.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_queues_is_0s_based() {
        let queues = NumberOfQueues::of(4, 8);
        assert_eq!(queues.into_bits(), 0x0007_0003);
        assert_eq!((queues.submission_queues(), queues.completion_queues()), (4, 8));
        assert_eq!(NumberOfQueues::from_bits(u32::MAX).submission_queues(), 65_536);
    }

    #[test]
    fn dwords_are_where_the_specification_puts_them() {
        let arbitration = Arbitration::new().with_ab(3).with_lpw(1).with_mpw(2).with_hpw(3);
        assert_eq!((arbitration.into_bits(), arbitration.arbitration_burst()), (0x0302_0103, Some(8)));
        assert_eq!(Arbitration::from_bits(7).arbitration_burst(), None);
        assert_eq!(PowerManagement::new().with_ps(2).with_wh(1).into_bits(), 0x22);
        assert_eq!(
            TemperatureThreshold::new().with_tmpth(343).with_tmpsel(2).with_thsel(1).into_bits(),
            0x0012_0157
        );
        assert_eq!(ErrorRecovery::new().with_tler(5).with_dulbe(true).into_bits(), 0x0001_0005);
        assert_eq!(InterruptVectorConfiguration::new().with_iv(4).with_cd(true).into_bits(), 0x0001_0004);
        assert_eq!(SupportedCapabilities::new().with_changeable(true).into_bits(), 4);
    }

    #[test]
    fn coalescing_is_0s_based_in_threshold_and_not_in_time() {
        let coalescing = InterruptCoalescing::new().with_thr(7).with_time(10);
        assert_eq!(coalescing.into_bits(), 0x0A07);
        assert_eq!(coalescing.aggregation_threshold(), 8);
        assert_eq!(coalescing.aggregation_time(), Duration::from_millis(1));
        assert_eq!(InterruptCoalescing::new().aggregation_time(), Duration::ZERO);
    }

    #[test]
    fn asynchronous_event_configuration_bits() {
        let configuration = AsynchronousEventConfiguration::from_bits(0x0000_0302);
        assert!(configuration.namespace_attribute() && configuration.firmware_activation());
        assert!(configuration.critical_warnings().temperature());
        let discovery = AsynchronousEventConfiguration::new().with_discovery_log_page_change(true);
        assert_eq!(discovery.into_bits(), 1 << 31);
        let shutdown = AsynchronousEventConfiguration::new().with_normal_subsystem_shutdown(true);
        assert_eq!(shutdown.into_bits(), 1 << 15);
    }

    #[test]
    fn data_structures_golden_bytes() {
        let timestamp = Timestamp::new()
            .with_milliseconds(0x0605_0403_0201)
            .with_synch(true)
            .with_origin(Timestamp::ORIGIN_SET_FEATURES);
        assert_eq!(timestamp.as_bytes(), [1, 2, 3, 4, 5, 6, 0x03, 0]);
        let behavior = HostBehaviorSupport { acre: 1, lbafee: 1, ..Default::default() };
        assert_eq!(behavior.as_bytes()[..4], [1, 0, 1, 0]);
    }
}
