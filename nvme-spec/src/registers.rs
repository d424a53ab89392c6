//! Controller properties, the first 4 KiB of BAR0 (Base 2.0, 3.1.3). Doorbells follow: [`crate::doorbell`].

use bitfield_struct::{bitenum, bitfield};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of Controller Capabilities, 8 bytes, read only (3.1.3.1).
pub const CAP: u64 = 0x00;
/// Offset of Version, 4 bytes, read only (3.1.3.2).
pub const VS: u64 = 0x08;
/// Offset of Interrupt Mask Set, 4 bytes, write 1 to set (3.1.3.3).
pub const INTMS: u64 = 0x0C;
/// Offset of Interrupt Mask Clear, 4 bytes, write 1 to clear (3.1.3.4).
pub const INTMC: u64 = 0x10;
/// Offset of Controller Configuration, 4 bytes (3.1.3.5).
pub const CC: u64 = 0x14;
/// Offset of Controller Status, 4 bytes (3.1.3.6).
pub const CSTS: u64 = 0x1C;
/// Offset of NVM Subsystem Reset, 4 bytes (3.1.3.7).
pub const NSSR: u64 = 0x20;
/// Offset of Admin Queue Attributes, 4 bytes (3.1.3.8).
pub const AQA: u64 = 0x24;
/// Offset of Admin Submission Queue Base Address, 8 bytes (3.1.3.9).
pub const ASQ: u64 = 0x28;
/// Offset of Admin Completion Queue Base Address, 8 bytes (3.1.3.10).
pub const ACQ: u64 = 0x30;
/// Offset of Controller Memory Buffer Location, 4 bytes, read only (3.1.3.11).
pub const CMBLOC: u64 = 0x38;
/// Offset of Controller Memory Buffer Size, 4 bytes, read only (3.1.3.12).
pub const CMBSZ: u64 = 0x3C;
/// Offset of Boot Partition Information, 4 bytes, read only (3.1.3.13).
pub const BPINFO: u64 = 0x40;
/// Offset of Boot Partition Read Select, 4 bytes (3.1.3.14).
pub const BPRSEL: u64 = 0x44;
/// Offset of Boot Partition Memory Buffer Location, 8 bytes (3.1.3.15).
pub const BPMBL: u64 = 0x48;
/// Offset of Controller Memory Buffer Memory Space Control, 8 bytes (3.1.3.16).
pub const CMBMSC: u64 = 0x50;
/// Offset of Controller Memory Buffer Status, 4 bytes, read only (3.1.3.17).
pub const CMBSTS: u64 = 0x58;
/// Offset of Controller Memory Buffer Elasticity Buffer Size, 4 bytes, read only (3.1.3.18).
pub const CMBEBS: u64 = 0x5C;
/// Offset of Controller Memory Buffer Sustained Write Throughput, 4 bytes, read only (3.1.3.19).
pub const CMBSWTP: u64 = 0x60;
/// Offset of NVM Subsystem Shutdown, 4 bytes (3.1.3.20).
pub const NSSD: u64 = 0x64;
/// Offset of Controller Ready Timeouts, 4 bytes, read only (3.1.3.21).
pub const CRTO: u64 = 0x68;
/// Offset of Persistent Memory Region Capabilities, 4 bytes, read only (3.1.3.22).
pub const PMRCAP: u64 = 0xE00;
/// Offset of Persistent Memory Region Control, 4 bytes (3.1.3.23).
pub const PMRCTL: u64 = 0xE04;
/// Offset of Persistent Memory Region Status, 4 bytes, read only (3.1.3.24).
pub const PMRSTS: u64 = 0xE08;
/// Offset of Persistent Memory Region Elasticity Buffer Size, 4 bytes, read only (3.1.3.25).
pub const PMREBS: u64 = 0xE0C;
/// Offset of Persistent Memory Region Sustained Write Throughput, 4 bytes, read only (3.1.3.26).
pub const PMRSWTP: u64 = 0xE10;
/// Offset of Persistent Memory Region Controller Memory Space Control Lower, 4 bytes (3.1.3.27).
pub const PMRMSCL: u64 = 0xE14;
/// Offset of Persistent Memory Region Controller Memory Space Control Upper, 4 bytes (3.1.3.28).
pub const PMRMSCU: u64 = 0xE18;
/// Where the properties end and the doorbells begin (PCIe Transport 1.0, 3.1.2).
pub const DOORBELL_BASE: u64 = 0x1000;

/// The value ("NVMe") that, written to [`NSSR`], resets the NVM subsystem (3.1.3.7).
pub const NSSR_RESET: u32 = 0x4E56_4D65;
/// The value ("Nrml") that, written to [`NSSD`], shuts the NVM subsystem down normally (3.1.3.20).
pub const NSSD_NORMAL: u32 = 0x4E72_6D6C;
/// The value ("Abpt") that, written to [`NSSD`], shuts the NVM subsystem down abruptly (3.1.3.20).
pub const NSSD_ABRUPT: u32 = 0x4162_7074;

/// Controller Capabilities (3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Maximum Queue Entries Supported of an I/O queue, 0's based.
    pub mqes: u16,
    /// Contiguous Queues Required.
    pub cqr: bool,
    /// Arbitration Mechanism Supported besides round robin: bit 0 weighted with urgent class, bit 1 vendor specific.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout of CSTS.RDY transitions, in 500 ms.
    pub to: u8,
    /// Doorbell Stride, as a power of two: 2^(2 + DSTRD) bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported.
    pub nssrs: bool,
    /// Command Sets Supported: [`Cap::CSS_NVM`] and the others.
    pub css: u8,
    /// Boot Partition Support.
    pub bps: bool,
    /// Controller Power Scope: 0 not reported, 1 controller, 2 domain, 3 NVM subsystem.
    #[bits(2)]
    pub cps: u8,
    /// Memory Page Size Minimum: 2^(12 + MPSMIN) bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory Page Size Maximum: 2^(12 + MPSMAX) bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent Memory Region Supported.
    pub pmrs: bool,
    /// Controller Memory Buffer Supported.
    pub cmbs: bool,
    /// NVM Subsystem Shutdown Supported.
    pub nsss: bool,
    /// Controller Ready With Media Support (CRMS.CRWMS): CC.CRIME may be cleared to 0.
    pub crwms: bool,
    /// Controller Ready Independent of Media Support (CRMS.CRIMS): CC.CRIME may be set to 1.
    pub crims: bool,
    #[bits(3)]
    __: u8,
}

impl Cap {
    /// [`Cap::css`]: the NVM command set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// [`Cap::css`]: one or more I/O command sets, chosen by Identify CNS 1Ch and the I/O Command Set Profile.
    pub const CSS_IO_COMMAND_SETS: u8 = 1 << 6;
    /// [`Cap::css`]: no I/O command set, Admin commands only.
    pub const CSS_NO_IO: u8 = 1 << 7;

    /// The most entries an I/O queue may have: 2 to 65 536.
    pub const fn maximum_queue_entries(self) -> u32 {
        self.mqes() as u32 + 1
    }

    /// Sets [`Cap::mqes`] for queues of at most `entries` (2 to 65 536).
    pub const fn with_maximum_queue_entries(self, entries: u32) -> Self {
        self.with_mqes(entries.wrapping_sub(1) as u16)
    }

    /// The longest a CSTS.RDY transition takes.
    pub const fn timeout(self) -> Duration {
        Duration::from_millis(500 * self.to() as u64)
    }

    /// Distance between two doorbells, in bytes.
    pub const fn doorbell_stride(self) -> u32 {
        4 << self.dstrd()
    }

    /// The smallest memory page the controller supports, in bytes.
    pub const fn memory_page_size_minimum(self) -> u64 {
        1 << (12 + self.mpsmin())
    }

    /// The largest memory page the controller supports, in bytes.
    pub const fn memory_page_size_maximum(self) -> u64 {
        1 << (12 + self.mpsmax())
    }
}

/// Version of the Base specification that a controller complies with (3.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Version {
    /// Tertiary Version Number.
    pub ter: u8,
    /// Minor Version Number.
    pub mnr: u8,
    /// Major Version Number.
    pub mjr: u16,
}

impl Version {
    /// NVMe 1.4.
    pub const V1_4: Self = Self::new().with_mjr(1).with_mnr(4);
    /// NVMe 2.0.
    pub const V2_0: Self = Self::new().with_mjr(2);
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.mjr(), self.mnr())?;
        match self.ter() {
            0 => Ok(()),
            ter => write!(f, ".{ter}"),
        }
    }
}

/// CC.SHN, Shutdown Notification (3.1.3.5).
#[bitenum]
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownNotification {
    /// 00b: no notification, no effect.
    None = 0b00,
    /// 01b: normal shutdown.
    Normal = 0b01,
    /// 10b: abrupt shutdown.
    Abrupt = 0b10,
    /// 11b: reserved.
    #[fallback]
    Reserved = 0b11,
}

/// CSTS.SHST, Shutdown Status (3.1.3.6).
#[bitenum]
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// 00b: normal operation, no shutdown requested.
    Normal = 0b00,
    /// 01b: shutdown processing occurring.
    Occurring = 0b01,
    /// 10b: shutdown processing complete.
    Complete = 0b10,
    /// 11b: reserved.
    #[fallback]
    Reserved = 0b11,
}

/// Controller Configuration (3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerConfiguration {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected: [`Self::CSS_NVM`] and the others.
    #[bits(3)]
    pub css: u8,
    /// Memory Page Size: 2^(12 + MPS) bytes.
    #[bits(4)]
    pub mps: u8,
    /// Arbitration Mechanism Selected: 0 round robin, 1 weighted with urgent class, 7 vendor specific.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown Notification.
    #[bits(2)]
    pub shn: ShutdownNotification,
    /// I/O Submission Queue Entry Size: 2^IOSQES bytes.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size: 2^IOCQES bytes.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

impl ControllerConfiguration {
    /// [`Self::css`]: the NVM command set.
    pub const CSS_NVM: u8 = 0b000;
    /// [`Self::css`]: all supported I/O command sets.
    pub const CSS_ALL: u8 = 0b110;
    /// [`Self::css`]: Admin commands only.
    pub const CSS_ADMIN_ONLY: u8 = 0b111;

    /// The memory page size selected, in bytes: the unit of PRP entries.
    pub const fn memory_page_size(self) -> u64 {
        1 << (12 + self.mps())
    }
}

/// Controller Status (3.1.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerStatus {
    /// Ready.
    pub rdy: bool,
    /// Controller Fatal Status.
    pub cfs: bool,
    /// Shutdown Status.
    #[bits(2)]
    pub shst: ShutdownStatus,
    /// NVM Subsystem Reset Occurred, write 1 to clear.
    pub nssro: bool,
    /// Processing Paused.
    pub pp: bool,
    /// Shutdown Type: set while the shutdown that SHST speaks of is one of the whole NVM subsystem.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// Admin Queue Attributes (3.1.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AdminQueueAttributes {
    /// Admin Submission Queue Size in entries, 0's based.
    #[bits(12)]
    pub asqs: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size in entries, 0's based.
    #[bits(12)]
    pub acqs: u16,
    #[bits(4)]
    __: u8,
}

impl AdminQueueAttributes {
    /// Attributes of queues with that many entries each (2 to 4096).
    pub const fn with_entries(submission: u16, completion: u16) -> Self {
        Self::new()
            .with_asqs(submission.wrapping_sub(1) & 0xFFF)
            .with_acqs(completion.wrapping_sub(1) & 0xFFF)
    }

    /// Entries of the Admin Submission Queue. 1 is what a host that never set it gets, and no legal size.
    pub const fn submission_queue_entries(self) -> u32 {
        self.asqs() as u32 + 1
    }

    /// Entries of the Admin Completion Queue. 1 is what a host that never set it gets, and no legal size.
    pub const fn completion_queue_entries(self) -> u32 {
        self.acqs() as u32 + 1
    }
}

/// Controller Memory Buffer Location (3.1.3.11).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CmbLocation {
    /// Base Indicator Register: which BAR.
    #[bits(3)]
    pub bir: u8,
    /// CMB Queue Mixed Memory Support.
    pub cqmms: bool,
    /// CMB Queue Physically Discontiguous Support.
    pub cqpds: bool,
    /// CMB Data Pointer Mixed Locations Support.
    pub cdpmls: bool,
    /// CMB Data Pointer and Command Independent Locations Support.
    pub cdpcils: bool,
    /// CMB Data Metadata Mixed Memory Support.
    pub cdmmms: bool,
    /// CMB Queue Dword Alignment.
    pub cqda: bool,
    #[bits(3)]
    __: u8,
    /// Offset within the BAR, in units of [`CmbSize::szu`].
    #[bits(20)]
    pub ofst: u32,
}

/// Controller Memory Buffer Size (3.1.3.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CmbSize {
    /// Submission Queue Support.
    pub sqs: bool,
    /// Completion Queue Support.
    pub cqs: bool,
    /// PRP SGL List Support.
    pub lists: bool,
    /// Read Data Support.
    pub rds: bool,
    /// Write Data Support.
    pub wds: bool,
    #[bits(3)]
    __: u8,
    /// Size Units: 4 KiB × 16^SZU.
    #[bits(4)]
    pub szu: u8,
    /// Size, in size units.
    #[bits(20)]
    pub sz: u32,
}

impl CmbSize {
    /// Bytes per size unit, or `None` for a reserved [`Self::szu`] (7 and above).
    pub const fn unit(self) -> Option<u64> {
        match self.szu() {
            szu @ 0..=6 => Some(4096 << (4 * szu)),
            _ => None,
        }
    }

    /// Size of the buffer in bytes, or `None` for a reserved [`Self::szu`].
    pub const fn size(self) -> Option<u64> {
        match self.unit() {
            Some(unit) => Some(unit * self.sz() as u64),
            None => None,
        }
    }
}

/// Controller Memory Buffer Memory Space Control (3.1.3.16).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CmbMemorySpaceControl {
    /// Capabilities Registers Enabled: CMBLOC and CMBSZ report the buffer.
    pub cre: bool,
    /// Controller Memory Space Enable.
    pub cmse: bool,
    #[bits(10)]
    __: u16,
    /// Controller Base Address, bits 63:12.
    #[bits(52)]
    pub cba: u64,
}

/// Controller Ready Timeouts, in 500 ms (3.1.3.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerReadyTimeouts {
    /// Controller Ready With Media Timeout.
    pub crwmt: u16,
    /// Controller Ready Independent of Media Timeout.
    pub crimt: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_bits_are_where_the_specification_puts_them() {
        let cap = Cap::new()
            .with_maximum_queue_entries(65_536)
            .with_cqr(true)
            .with_to(20)
            .with_dstrd(1)
            .with_nssrs(true)
            .with_css(Cap::CSS_NVM | Cap::CSS_IO_COMMAND_SETS)
            .with_mpsmin(0)
            .with_mpsmax(4)
            .with_cmbs(true)
            .with_crwms(true);
        assert_eq!(
            cap.into_bits(),
            0xFFFF | 1 << 16 | 20 << 24 | 1 << 32 | 1 << 36 | 1 << 37 | 1 << 43 | 4 << 52 | 1 << 57 | 1 << 59
        );
        assert_eq!(cap.maximum_queue_entries(), 65_536);
        assert_eq!(cap.timeout(), Duration::from_secs(10));
        assert_eq!(cap.doorbell_stride(), 8);
        assert_eq!((cap.memory_page_size_minimum(), cap.memory_page_size_maximum()), (4096, 65_536));
    }

    #[test]
    fn cc_as_linux_writes_it() {
        let cc = ControllerConfiguration::from_bits(0x0046_0001);
        assert!(cc.en());
        assert_eq!((cc.iosqes(), cc.iocqes(), cc.memory_page_size()), (6, 4, 4096));
        assert_eq!(cc.with_shn(ShutdownNotification::Normal).into_bits(), 0x0046_4001);
        assert_eq!(ControllerConfiguration::from_bits(0xC000).shn(), ShutdownNotification::Reserved);
        assert_eq!(ControllerConfiguration::new().with_mps(15).memory_page_size(), 1 << 27);
    }

    #[test]
    fn csts_and_version_and_queue_attributes() {
        let csts =
            ControllerStatus::new().with_rdy(true).with_shst(ShutdownStatus::Complete).with_nssro(true);
        assert_eq!(csts.into_bits(), 0x19);
        assert_eq!(Version::V2_0.into_bits(), 0x0002_0000);
        assert_eq!(Version::V1_4.to_string(), "1.4");
        assert_eq!(Version::from_bits(0x0001_0201).to_string(), "1.2.1");
        assert_eq!(AdminQueueAttributes::with_entries(32, 4096).into_bits(), 0x0FFF_001F);
        assert_eq!(AdminQueueAttributes::new().submission_queue_entries(), 1);
        assert_eq!(NSSR_RESET.to_be_bytes(), *b"NVMe");
        assert_eq!(NSSD_NORMAL.to_be_bytes(), *b"Nrml");
        assert_eq!(NSSD_ABRUPT.to_be_bytes(), *b"Abpt");
    }

    #[test]
    fn cmb_size_is_in_units_of_16_to_the_szu() {
        assert_eq!(CmbSize::new().with_szu(2).with_sz(3).size(), Some(3 << 20));
        assert_eq!(CmbSize::new().with_szu(7).with_sz(3).size(), None);
    }
}
