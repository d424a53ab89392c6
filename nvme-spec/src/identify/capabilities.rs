//! Bits by which Identify Controller says what a controller supports (Base 2.0, 5.17.2.1; NVM Command Set 1.0,
//! 4.1.5.2).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CMIC, Controller Multi-Path I/O and Namespace Sharing Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmic {
    /// The NVM subsystem may have several ports.
    pub multiple_ports: bool,
    /// The NVM subsystem may have several controllers.
    pub multiple_controllers: bool,
    /// The controller is an SR-IOV virtual function.
    pub virtual_function: bool,
    /// Asymmetric Namespace Access Reporting is supported.
    pub ana_reporting: bool,
    #[bits(4)]
    __: u8,
}

/// OAES, Optional Asynchronous Events Supported.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oaes {
    __: u8,
    /// Namespace Attribute Notices.
    pub namespace_attribute: bool,
    /// Firmware Activation Notices.
    pub firmware_activation: bool,
    __: bool,
    /// Asymmetric Namespace Access Change Notices.
    pub ana_change: bool,
    /// Predictable Latency Event Aggregate Log Change Notices.
    pub predictable_latency_event: bool,
    /// LBA Status Information Alert Notices.
    pub lba_status_information: bool,
    /// Endurance Group Event Aggregate Log Page Change Notices.
    pub endurance_group_event: bool,
    /// Normal NVM Subsystem Shutdown event.
    pub normal_subsystem_shutdown: bool,
    #[bits(11)]
    __: u16,
    /// Zone Descriptor Changed Notices.
    pub zone_descriptor_changed: bool,
    #[bits(3)]
    __: u8,
    /// Discovery Log Page Change Notices.
    pub discovery_log_page_change: bool,
}

/// CTRATT, Controller Attributes.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ctratt {
    /// Host Identifiers of 128 bits are supported.
    pub host_identifier_128: bool,
    /// Non-Operational Power State Permissive Mode.
    pub non_operational_power_state_permissive: bool,
    /// NVM Sets.
    pub nvm_sets: bool,
    /// Read Recovery Levels.
    pub read_recovery_levels: bool,
    /// Endurance Groups.
    pub endurance_groups: bool,
    /// Predictable Latency Mode.
    pub predictable_latency_mode: bool,
    /// TBKAS, Traffic Based Keep Alive Support.
    pub tbkas: bool,
    /// Namespace Granularity.
    pub namespace_granularity: bool,
    /// SQ Associations.
    pub sq_associations: bool,
    /// UUID List.
    pub uuid_list: bool,
    /// MDS, Multi-Domain Subsystem.
    pub mds: bool,
    /// Fixed Capacity Management.
    pub fixed_capacity_management: bool,
    /// Variable Capacity Management.
    pub variable_capacity_management: bool,
    /// Delete Endurance Group.
    pub delete_endurance_group: bool,
    /// Delete NVM Set.
    pub delete_nvm_set: bool,
    /// ELBAS, Extended LBA Formats Supported.
    pub elbas: bool,
    __: u16,
}

/// OACS, Optional Admin Command Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oacs {
    /// Security Send and Security Receive.
    pub security: bool,
    /// Format NVM.
    pub format_nvm: bool,
    /// Firmware Commit and Firmware Image Download.
    pub firmware: bool,
    /// Namespace Management and Namespace Attachment.
    pub namespace_management: bool,
    /// Device Self-test.
    pub device_self_test: bool,
    /// Directives.
    pub directives: bool,
    /// NVMe-MI Send and NVMe-MI Receive.
    pub nvme_mi: bool,
    /// Virtualization Management.
    pub virtualization_management: bool,
    /// Doorbell Buffer Config.
    pub doorbell_buffer_config: bool,
    /// Get LBA Status.
    pub get_lba_status: bool,
    /// Command and Feature Lockdown.
    pub lockdown: bool,
    #[bits(5)]
    __: u8,
}

/// FRMW, Firmware Updates.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frmw {
    /// The first firmware slot is read only.
    pub first_slot_read_only: bool,
    /// Number of firmware slots: 1 to 7.
    #[bits(3)]
    pub slots: u8,
    /// Firmware activation without a reset is supported.
    pub activation_without_reset: bool,
    /// Overlapping firmware and boot partition image updates are detected.
    pub multiple_update_detection: bool,
    #[bits(2)]
    __: u8,
}

/// LPA, Log Page Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lpa {
    /// SMART / Health Information per namespace.
    pub smart_per_namespace: bool,
    /// Commands Supported and Effects log page (05h).
    pub commands_supported_and_effects: bool,
    /// Extended data of Get Log Page: a 32-bit NUMD, and the Log Page Offset.
    pub extended_data: bool,
    /// Telemetry log pages and notices.
    pub telemetry: bool,
    /// Persistent Event log page.
    pub persistent_event: bool,
    /// Log pages 00h, 12h, 13h, and the scope of each command in 05h.
    pub supported_log_pages: bool,
    /// Telemetry Data Area 4.
    pub telemetry_data_area_4: bool,
    __: bool,
}

/// SQES and CQES: sizes of queue entries, as powers of two in bytes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntrySizes {
    /// Required (and smallest) size: 2^n bytes.
    #[bits(4)]
    pub minimum: u8,
    /// Maximum size: 2^n bytes.
    #[bits(4)]
    pub maximum: u8,
}

/// ONCS, Optional NVM Command Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oncs {
    /// Compare.
    pub compare: bool,
    /// Write Uncorrectable.
    pub write_uncorrectable: bool,
    /// Dataset Management.
    pub dataset_management: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// The Save field of Set Features and the Select field of Get Features.
    pub save_and_select: bool,
    /// Reservations.
    pub reservations: bool,
    /// Timestamp feature.
    pub timestamp: bool,
    /// Verify.
    pub verify: bool,
    /// Copy.
    pub copy: bool,
    #[bits(7)]
    __: u8,
}

/// FUSES, Fused Operation Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fuses {
    /// Compare and Write.
    pub compare_and_write: bool,
    #[bits(15)]
    __: u16,
}

/// FNA, Format NVM Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fna {
    /// Format applies to all namespaces.
    pub format_all: bool,
    /// Secure erase applies to all namespaces.
    pub secure_erase_all: bool,
    /// Cryptographic erase is supported.
    pub cryptographic_erase: bool,
    /// An NSID of FFFFFFFFh is not supported.
    pub broadcast_not_supported: bool,
    #[bits(4)]
    __: u8,
}

/// VWC, Volatile Write Cache.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwc {
    /// A volatile write cache is present.
    pub present: bool,
    /// What Flush does with an NSID of FFFFFFFFh: [`Self::FLUSH_BROADCAST_SUPPORTED`] and the others.
    #[bits(2)]
    pub flush_broadcast: u8,
    #[bits(5)]
    __: u8,
}

impl Vwc {
    /// [`Self::flush_broadcast`]: not said (before NVMe 1.4).
    pub const FLUSH_BROADCAST_NOT_REPORTED: u8 = 0b00;
    /// [`Self::flush_broadcast`]: such a Flush fails with Invalid Namespace or Format.
    pub const FLUSH_BROADCAST_NOT_SUPPORTED: u8 = 0b10;
    /// [`Self::flush_broadcast`]: such a Flush covers all namespaces attached to the controller.
    pub const FLUSH_BROADCAST_SUPPORTED: u8 = 0b11;
}

/// SGLS, SGL Support.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sgls {
    /// Whether SGLs are supported for I/O: [`Self::SUPPORTED`] and the others.
    #[bits(2)]
    pub support: u8,
    /// Keyed SGL Data Block descriptor.
    pub keyed_data_block: bool,
    #[bits(5)]
    __: u8,
    /// SDT, SGL Descriptor Threshold: the recommended most descriptors in a command, 0 for no recommendation.
    pub sdt: u8,
    /// SGL Bit Bucket descriptor.
    pub bit_bucket: bool,
    /// MPTR as the address of a byte-aligned contiguous buffer.
    pub byte_aligned_metadata: bool,
    /// SGLs longer than the data of the command.
    pub excess_length: bool,
    /// MPTR as the address of an SGL segment of one descriptor.
    pub metadata_sgl: bool,
    /// Address field as an offset.
    pub address_as_offset: bool,
    /// Transport SGL Data Block descriptor.
    pub transport_data_block: bool,
    #[bits(10)]
    __: u16,
}

impl Sgls {
    /// [`Self::support`]: SGLs are not supported.
    pub const NOT_SUPPORTED: u8 = 0b00;
    /// [`Self::support`]: supported, without alignment or granularity requirements on data blocks.
    pub const SUPPORTED: u8 = 0b01;
    /// [`Self::support`]: supported, with dword alignment and granularity of data blocks.
    pub const SUPPORTED_DWORD_ALIGNED: u8 = 0b10;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_bits() {
        assert_eq!(
            Oaes::new().with_namespace_attribute(true).with_normal_subsystem_shutdown(true).into_bits(),
            0x8100
        );
        assert_eq!(Oaes::new().with_discovery_log_page_change(true).into_bits(), 1 << 31);
        assert_eq!(Ctratt::new().with_tbkas(true).with_elbas(true).into_bits(), 0x8040);
        assert_eq!(Lpa::new().with_extended_data(true).with_supported_log_pages(true).into_bits(), 0x24);
        assert_eq!(Frmw::new().with_first_slot_read_only(true).with_slots(1).into_bits(), 0x03);
        assert_eq!(Cmic::new().with_multiple_controllers(true).into_bits(), 0x02);
        assert_eq!(Fna::new().with_broadcast_not_supported(true).into_bits(), 0x08);
        assert_eq!(Sgls::new().with_sdt(0xFF).with_transport_data_block(true).into_bits(), 0x20_FF00);
    }
}
