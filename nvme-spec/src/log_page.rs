//! Log pages that Get Log Page returns (Base 2.0, 5.16.1). The Changed Namespace List (04h, 5.16.1.5) is an
//! [`identify::NamespaceList`](crate::identify::NamespaceList).

mod effects;
mod error_information;
mod health;

pub use effects::{
    CommandEffects, CommandsSupportedAndEffects, FeatureEffects, FeatureIdentifiersSupportedAndEffects,
    LidSupported, SupportedLogPages, scope,
};
pub use error_information::{ErrorInformation, ParameterErrorLocation};
pub use health::{CriticalWarning, SmartHealthInformation, U128};

use crate::identify::AsciiField;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// LID, Log Page Identifier (Base 2.0, 5.16.1).
pub mod lid {
    /// Supported Log Pages.
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    /// Error Information.
    pub const ERROR_INFORMATION: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART_HEALTH_INFORMATION: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT_INFORMATION: u8 = 0x03;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACE_LIST: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const COMMANDS_SUPPORTED_AND_EFFECTS: u8 = 0x05;
    /// Device Self-test.
    pub const DEVICE_SELF_TEST: u8 = 0x06;
    /// Telemetry Host-Initiated.
    pub const TELEMETRY_HOST_INITIATED: u8 = 0x07;
    /// Telemetry Controller-Initiated.
    pub const TELEMETRY_CONTROLLER_INITIATED: u8 = 0x08;
    /// Endurance Group Information.
    pub const ENDURANCE_GROUP_INFORMATION: u8 = 0x09;
    /// Predictable Latency Per NVM Set.
    pub const PREDICTABLE_LATENCY_PER_NVM_SET: u8 = 0x0A;
    /// Predictable Latency Event Aggregate.
    pub const PREDICTABLE_LATENCY_EVENT_AGGREGATE: u8 = 0x0B;
    /// Asymmetric Namespace Access.
    pub const ASYMMETRIC_NAMESPACE_ACCESS: u8 = 0x0C;
    /// Persistent Event Log.
    pub const PERSISTENT_EVENT_LOG: u8 = 0x0D;
    /// LBA Status Information (NVM command set).
    pub const LBA_STATUS_INFORMATION: u8 = 0x0E;
    /// Endurance Group Event Aggregate.
    pub const ENDURANCE_GROUP_EVENT_AGGREGATE: u8 = 0x0F;
    /// Media Unit Status.
    pub const MEDIA_UNIT_STATUS: u8 = 0x10;
    /// Supported Capacity Configuration List.
    pub const SUPPORTED_CAPACITY_CONFIGURATION_LIST: u8 = 0x11;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS: u8 = 0x12;
    /// NVMe-MI Commands Supported and Effects.
    pub const NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS: u8 = 0x13;
    /// Command and Feature Lockdown.
    pub const COMMAND_AND_FEATURE_LOCKDOWN: u8 = 0x14;
    /// Boot Partition.
    pub const BOOT_PARTITION: u8 = 0x15;
    /// Rotational Media Information.
    pub const ROTATIONAL_MEDIA_INFORMATION: u8 = 0x16;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION_NOTIFICATION: u8 = 0x80;
    /// Sanitize Status.
    pub const SANITIZE_STATUS: u8 = 0x81;
}

/// Firmware Slot Information (LID 03h), 512 bytes (5.16.1.4).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlotInformation {
    /// Active Firmware Info.
    pub afi: ActiveFirmwareInfo,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// FRS1 to FRS7, Firmware Revision for Slot 1 to 7; all 0 for an empty slot.
    pub frs: [AsciiField<8>; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

layout!(FirmwareSlotInformation, 512, afi @ 0, frs @ 8, reserved64 @ 64);

impl Default for FirmwareSlotInformation {
    /// All bytes 0.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// AFI, Active Firmware Info (5.16.1.4).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActiveFirmwareInfo {
    /// The slot that the active firmware was loaded from: 1 to 7.
    #[bits(3)]
    pub active_slot: u8,
    __: bool,
    /// The slot that is activated at the next Controller Level Reset, 0 if not reported.
    #[bits(3)]
    pub next_slot: u8,
    __: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_slots_golden_bytes() {
        let mut page = FirmwareSlotInformation {
            afi: ActiveFirmwareInfo::new().with_active_slot(1).with_next_slot(2),
            ..Default::default()
        };
        page.frs[0] = AsciiField::new("0.1.0").unwrap();
        let mut expected = [0_u8; 512];
        expected[0] = 0x21;
        expected[8..16].copy_from_slice(b"0.1.0   ");
        assert_eq!(page.as_bytes(), expected);
    }
}
