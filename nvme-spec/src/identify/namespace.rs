//! Identify Namespace data structures (Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Identify Namespace for the NVM command set (CNS 00h, 11h), 4096 bytes (NVM Command Set 1.0, 4.1.5.1).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size, in logical blocks.
    pub nsze: u64,
    /// Namespace Capacity, in logical blocks.
    pub ncap: u64,
    /// Namespace Utilization, in logical blocks.
    pub nuse: u64,
    /// Namespace Features.
    pub nsfeat: Nsfeat,
    /// Number of LBA Formats, 0's based.
    pub nlbaf: u8,
    /// Formatted LBA Size.
    pub flbas: Flbas,
    /// Metadata Capabilities.
    pub mc: Mc,
    /// End-to-end Data Protection Capabilities.
    pub dpc: Dpc,
    /// End-to-end Data Protection Type Settings.
    pub dps: Dps,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: Nmic,
    /// Reservation Capabilities.
    pub rescap: Rescap,
    /// Format Progress Indicator.
    pub fpi: Fpi,
    /// Deallocate Logical Block Features.
    pub dlfeat: Dlfeat,
    /// Namespace Atomic Write Unit Normal, in logical blocks, 0's based.
    pub nawun: u16,
    /// Namespace Atomic Write Unit Power Fail, in logical blocks, 0's based.
    pub nawupf: u16,
    /// Namespace Atomic Compare & Write Unit, in logical blocks, 0's based.
    pub nacwu: u16,
    /// Namespace Atomic Boundary Size Normal, in logical blocks, 0's based, 0 for none.
    pub nabsn: u16,
    /// Namespace Atomic Boundary Offset: the first LBA that a boundary is at.
    pub nabo: u16,
    /// Namespace Atomic Boundary Size Power Fail, in logical blocks, 0's based, 0 for none.
    pub nabspf: u16,
    /// Namespace Optimal I/O Boundary, in logical blocks, 0 for none.
    pub noiob: u16,
    /// NVM Capacity, in bytes (128-bit).
    pub nvmcap: [u8; 16],
    /// Namespace Preferred Write Granularity, in logical blocks, 0's based.
    pub npwg: u16,
    /// Namespace Preferred Write Alignment, in logical blocks, 0's based.
    pub npwa: u16,
    /// Namespace Preferred Deallocate Granularity, in logical blocks, 0's based.
    pub npdg: u16,
    /// Namespace Preferred Deallocate Alignment, in logical blocks, 0's based.
    pub npda: u16,
    /// Namespace Optimal Write Size, in logical blocks, 0's based.
    pub nows: u16,
    /// Maximum Single Source Range Length (Copy), in logical blocks.
    pub mssrl: u16,
    /// Maximum Copy Length, in logical blocks.
    pub mcl: u32,
    /// Maximum Source Range Count (Copy), 0's based.
    pub msrc: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA Group Identifier.
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace Attributes.
    pub nsattr: NsAttr,
    /// NVM Set Identifier.
    pub nvmsetid: u16,
    /// Endurance Group Identifier.
    pub endgid: u16,
    /// Namespace Globally Unique Identifier, most significant byte first.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, most significant byte first.
    pub eui64: [u8; 8],
    /// LBA Formats, of which NLBAF + 1 are valid.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

layout!(IdentifyNamespace, 4096, nsze @ 0, ncap @ 8, nuse @ 16, nsfeat @ 24, nlbaf @ 25, flbas @ 26, mc @ 27, dpc @ 28,
    dps @ 29, nmic @ 30, rescap @ 31, fpi @ 32, dlfeat @ 33, nawun @ 34, nawupf @ 36, nacwu @ 38, nabsn @ 40,
    nabo @ 42, nabspf @ 44, noiob @ 46, nvmcap @ 48, npwg @ 64, npwa @ 66, npdg @ 68, npda @ 70, nows @ 72,
    mssrl @ 74, mcl @ 76, msrc @ 80, anagrpid @ 92, nsattr @ 99, nvmsetid @ 100, endgid @ 102, nguid @ 104,
    eui64 @ 120, lbaf @ 128, vs @ 384);

impl Default for IdentifyNamespace {
    /// All bytes 0.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyNamespace {
    /// How many LBA formats there are: 1 to 64 are possible.
    pub const fn number_of_lba_formats(&self) -> u32 {
        self.nlbaf as u32 + 1
    }

    /// The LBA format in use.
    pub const fn formatted_lba(&self) -> LbaFormat {
        let lower = self.flbas.format_lower();
        // The upper bits count only if there are more formats than the lower bits can tell apart.
        let upper = if self.nlbaf >= 16 { self.flbas.format_upper() } else { 0 };
        self.lbaf[(upper << 4 | lower) as usize]
    }
}

/// LBA Format, 4 bytes (NVM Command Set 1.0, 4.1.5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaFormat {
    /// MS, Metadata Size, in bytes.
    pub ms: u16,
    /// LBADS, LBA Data Size: 2^LBADS bytes; below 9 the format is not supported.
    pub lbads: u8,
    /// RP, Relative Performance: 0 best to 3 degraded.
    #[bits(2)]
    pub rp: u8,
    #[bits(6)]
    __: u8,
}

impl LbaFormat {
    /// The format with logical blocks of 2^`lbads` bytes without metadata.
    pub const fn of(lbads: u8) -> Self {
        Self::new().with_lbads(lbads)
    }

    /// Size of a logical block in bytes, without metadata; `None` if the format is not supported.
    pub const fn lba_data_size(self) -> Option<u64> {
        match self.lbads() {
            lbads @ 9..64 => Some(1 << lbads),
            _ => None,
        }
    }
}

/// NSFEAT, Namespace Features.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nsfeat {
    /// THINP: NCAP may be less than NSZE.
    pub thinp: bool,
    /// NSABP: NAWUN, NAWUPF and NACWU are this namespace's.
    pub nsabp: bool,
    /// DAE: the Deallocated or Unwritten Logical Block error is supported.
    pub dae: bool,
    /// UIDREUSE: identifiers are never used again.
    pub uidreuse: bool,
    /// OPTPERF: NPWG, NPWA, NPDG, NPDA and NOWS are valid.
    pub optperf: bool,
    #[bits(3)]
    __: u8,
}

/// FLBAS, Formatted LBA Size.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flbas {
    /// LBA format index, bits 3:0.
    #[bits(4)]
    pub format_lower: u8,
    /// Metadata is transferred at the end of each logical block, not in a buffer of its own.
    pub extended: bool,
    /// LBA format index, bits 5:4; ignored if there are 16 formats or less.
    #[bits(2)]
    pub format_upper: u8,
    __: bool,
}

/// MC, Metadata Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mc {
    /// Metadata at the end of each logical block.
    pub extended: bool,
    /// Metadata in a buffer of its own.
    pub separate: bool,
    #[bits(6)]
    __: u8,
}

/// DPC, End-to-end Data Protection Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dpc {
    /// Protection Information Type 1.
    pub type1: bool,
    /// Protection Information Type 2.
    pub type2: bool,
    /// Protection Information Type 3.
    pub type3: bool,
    /// Protection information as the first bytes of metadata.
    pub first: bool,
    /// Protection information as the last bytes of metadata.
    pub last: bool,
    #[bits(3)]
    __: u8,
}

/// DPS, End-to-end Data Protection Type Settings.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dps {
    /// Protection Information Type: 0 disabled, or 1 to 3.
    #[bits(3)]
    pub pi_type: u8,
    /// Protection information is the first bytes of metadata.
    pub first: bool,
    #[bits(4)]
    __: u8,
}

/// NMIC, Namespace Multi-path I/O and Namespace Sharing Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nmic {
    /// The namespace may be attached to several controllers at once.
    pub shared: bool,
    #[bits(7)]
    __: u8,
}

/// RESCAP, Reservation Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rescap {
    /// Persist Through Power Loss.
    pub persist_through_power_loss: bool,
    /// Write Exclusive.
    pub write_exclusive: bool,
    /// Exclusive Access.
    pub exclusive_access: bool,
    /// Write Exclusive – Registrants Only.
    pub write_exclusive_registrants_only: bool,
    /// Exclusive Access – Registrants Only.
    pub exclusive_access_registrants_only: bool,
    /// Write Exclusive – All Registrants.
    pub write_exclusive_all_registrants: bool,
    /// Exclusive Access – All Registrants.
    pub exclusive_access_all_registrants: bool,
    /// Ignore Existing Key as of NVMe 1.3.
    pub ignore_existing_key_1_3: bool,
}

/// FPI, Format Progress Indicator.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fpi {
    /// How much of the namespace remains to be formatted, in percent.
    #[bits(7)]
    pub remaining: u8,
    /// The indicator is supported.
    pub supported: bool,
}

/// DLFEAT, Deallocate Logical Block Features.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dlfeat {
    /// What a deallocated logical block reads as: [`Self::READS_ZEROES`] and the others.
    #[bits(3)]
    pub read_behavior: u8,
    /// The Deallocate bit of Write Zeroes is supported.
    pub write_zeroes_deallocate: bool,
    /// The guard of deallocated logical blocks is the CRC of what is read.
    pub guard_crc: bool,
    #[bits(3)]
    __: u8,
}

impl Dlfeat {
    /// [`Self::read_behavior`]: not reported.
    pub const READS_NOT_REPORTED: u8 = 0b000;
    /// [`Self::read_behavior`]: all bytes 00h.
    pub const READS_ZEROES: u8 = 0b001;
    /// [`Self::read_behavior`]: all bytes FFh.
    pub const READS_ONES: u8 = 0b010;
}

/// NSATTR, Namespace Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NsAttr {
    /// The namespace is write protected.
    pub write_protected: bool,
    #[bits(7)]
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut id = IdentifyNamespace {
            nsze: 0x1_0203_0405,
            nsfeat: Nsfeat::new().with_optperf(true).with_thinp(true),
            nlbaf: 1,
            flbas: Flbas::new().with_format_lower(1),
            dlfeat: Dlfeat::new().with_read_behavior(Dlfeat::READS_ZEROES).with_write_zeroes_deallocate(true),
            npdg: 0x0708,
            nsattr: NsAttr::new().with_write_protected(true),
            eui64: [1, 2, 3, 4, 5, 6, 7, 8],
            ..IdentifyNamespace::default()
        };
        id.lbaf[0] = LbaFormat::of(9);
        id.lbaf[1] = LbaFormat::of(12).with_ms(8).with_rp(1);
        let mut expected = [0_u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[5, 4, 3, 2, 1]);
        put(24, &[0x11, 1, 1]);
        put(33, &[0x09]);
        put(68, &[8, 7]);
        put(99, &[1]);
        put(120, &[1, 2, 3, 4, 5, 6, 7, 8]);
        put(128, &[0, 0, 9, 0, 8, 0, 12, 1]);
        assert_eq!(id.as_bytes(), expected);
        assert_eq!(id.formatted_lba().lba_data_size(), Some(4096));
    }

    #[test]
    fn upper_format_bits_count_only_beyond_16_formats() {
        let mut id = IdentifyNamespace { nlbaf: 15, ..Default::default() };
        id.flbas = Flbas::new().with_format_lower(1).with_format_upper(1);
        id.lbaf[1] = LbaFormat::of(9);
        id.lbaf[17] = LbaFormat::of(12);
        assert_eq!(id.formatted_lba(), LbaFormat::of(9));
        id.nlbaf = 17;
        assert_eq!(id.formatted_lba(), LbaFormat::of(12));
    }

    #[test]
    fn data_sizes_below_512_bytes_are_unsupported_formats() {
        assert_eq!(LbaFormat::of(0).lba_data_size(), None);
        assert_eq!(LbaFormat::of(8).lba_data_size(), None);
        assert_eq!(LbaFormat::of(9).lba_data_size(), Some(512));
        assert_eq!(LbaFormat::of(64).lba_data_size(), None);
    }
}
