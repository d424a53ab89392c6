//! Command-specific dwords of the NVM command set (NVM Command Set 1.0, 3.2). Flush has none (Base 2.0, 7.1).

use crate::submission_queue_entry::command_dwords;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read (3.2.4) and Write (3.2.6), CDW10–13. Directive fields are Write's only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ReadWrite {
    /// SLBA, Starting LBA.
    pub slba: u64,
    /// NLB, Number of Logical Blocks, 0's based.
    pub nlb: u16,
    #[bits(4)]
    __: u8,
    /// DTYPE, Directive Type (Write).
    #[bits(4)]
    pub dtype: u8,
    /// STC, Storage Tag Check.
    pub stc: bool,
    __: bool,
    /// PRINFO, Protection Information Field.
    #[bits(4)]
    pub prinfo: ProtectionInformation,
    /// FUA, Force Unit Access.
    pub fua: bool,
    /// LR, Limited Retry.
    pub lr: bool,
    /// DSM, Dataset Management.
    #[bits(8)]
    pub dsm: DatasetManagementHint,
    __: u8,
    /// DSPEC, Directive Specific (Write).
    pub dspec: u16,
}

/// Compare (3.2.1), CDW10–12.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Compare {
    /// SLBA, Starting LBA.
    pub slba: u64,
    /// NLB, Number of Logical Blocks, 0's based.
    pub nlb: u16,
    __: u8,
    /// STC, Storage Tag Check.
    pub stc: bool,
    __: bool,
    /// PRINFO, Protection Information Field.
    #[bits(4)]
    pub prinfo: ProtectionInformation,
    /// FUA, Force Unit Access.
    pub fua: bool,
    /// LR, Limited Retry.
    pub lr: bool,
    __: u32,
}

/// Verify (3.2.5), CDW10–12: the fields of Compare, in the same places.
pub type Verify = Compare;

/// Write Zeroes (3.2.8), CDW10–12.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct WriteZeroes {
    /// SLBA, Starting LBA.
    pub slba: u64,
    /// NLB, Number of Logical Blocks, 0's based.
    pub nlb: u16,
    __: u8,
    /// STC, Storage Tag Check.
    pub stc: bool,
    /// DEAC, Deallocate: the host asks for the blocks to be deallocated.
    pub deac: bool,
    /// PRINFO, Protection Information Field.
    #[bits(4)]
    pub prinfo: ProtectionInformation,
    /// FUA, Force Unit Access.
    pub fua: bool,
    /// LR, Limited Retry.
    pub lr: bool,
    __: u32,
}

/// Write Uncorrectable (3.2.7), CDW10–12.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct WriteUncorrectable {
    /// SLBA, Starting LBA.
    pub slba: u64,
    /// NLB, Number of Logical Blocks, 0's based.
    pub nlb: u16,
    #[bits(48)]
    __: u64,
}

macro_rules! number_of_logical_blocks {
    ($($t:ty),*) => {
        $(impl $t {
            /// How many logical blocks: 1 to 65 536.
            #[inline]
            pub const fn number_of_logical_blocks(self) -> u32 {
                self.nlb() as u32 + 1
            }

            /// Sets [`Self::nlb`] to that many logical blocks (1 to 65 536).
            #[inline]
            pub const fn with_number_of_logical_blocks(self, blocks: u32) -> Self {
                self.with_nlb(blocks.wrapping_sub(1) as u16)
            }
        })*
    };
}
number_of_logical_blocks!(ReadWrite, Compare, WriteZeroes, WriteUncorrectable);

macro_rules! number_of_ranges {
    ($($t:ty),*) => {
        $(impl $t {
            /// How many ranges: 1 to 256.
            pub const fn number_of_ranges(self) -> u32 {
                self.nr() as u32 + 1
            }

            /// Sets [`Self::nr`] to that many ranges (1 to 256).
            pub const fn with_number_of_ranges(self, ranges: u32) -> Self {
                self.with_nr(ranges.wrapping_sub(1) as u8)
            }
        })*
    };
}
number_of_ranges!(DatasetManagement, CopyRanges);

/// PRINFO, Protection Information Field (NVM Command Set 1.0, 3.2.4, Command Dword 12).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ProtectionInformation {
    /// PRCHK bit 0: check the reference tag.
    pub check_reference_tag: bool,
    /// PRCHK bit 1: check the application tag.
    pub check_application_tag: bool,
    /// PRCHK bit 2: check the guard.
    pub check_guard: bool,
    /// PRACT, Protection Information Action: insert or strip.
    pub pract: bool,
    #[bits(4)]
    __: u8,
}

/// DSM, Dataset Management hints of Read and Write (3.2.4, 3.2.6).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct DatasetManagementHint {
    /// Access Frequency.
    #[bits(4)]
    pub access_frequency: u8,
    /// Access Latency: 0 none, 1 idle, 2 normal, 3 low.
    #[bits(2)]
    pub access_latency: u8,
    /// Sequential Request.
    pub sequential_request: bool,
    /// Incompressible.
    pub incompressible: bool,
}

/// Dataset Management, CDW10–11 (3.2.3). Its data is up to 256 [`DatasetManagementRange`]s.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DatasetManagement {
    /// NR, Number of Ranges, 0's based.
    pub nr: u8,
    #[bits(24)]
    __: u32,
    /// IDR, Integral Dataset for Read.
    pub idr: bool,
    /// IDW, Integral Dataset for Write.
    pub idw: bool,
    /// AD, Deallocate.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// A range of Dataset Management, 16 bytes (3.2.3, Range Definition).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatasetManagementRange {
    /// Context Attributes.
    pub context_attributes: u32,
    /// Length in logical blocks. Not 0's based: 0 is an empty range.
    pub length_lbas: u32,
    /// Starting LBA.
    pub slba: u64,
}

layout!(DatasetManagementRange, 16, context_attributes @ 0, length_lbas @ 4, slba @ 8);

/// Copy, CDW10–12 (3.2.2). Its data is up to 256 [`CopySourceRange`]s.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct CopyRanges {
    /// SDLBA, Starting Destination LBA.
    pub sdlba: u64,
    /// NR, Number of Ranges, 0's based.
    pub nr: u8,
    /// Descriptor Format: 0 is that of [`CopySourceRange`].
    #[bits(4)]
    pub descriptor_format: u8,
    /// PRINFOR, Protection Information Field Read.
    #[bits(4)]
    pub prinfor: ProtectionInformation,
    #[bits(4)]
    __: u8,
    /// DTYPE, Directive Type.
    #[bits(4)]
    pub dtype: u8,
    #[bits(2)]
    __: u8,
    /// PRINFOW, Protection Information Field Write.
    #[bits(4)]
    pub prinfow: ProtectionInformation,
    /// FUA, Force Unit Access.
    pub fua: bool,
    /// LR, Limited Retry.
    pub lr: bool,
    __: u32,
}

/// A source range of Copy, 32 bytes (3.2.2, Source Range Entries, Descriptor Format 0h); without protection information.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopySourceRange {
    reserved_0: u64,
    /// Starting LBA.
    pub slba: u64,
    /// Number of Logical Blocks, 0's based.
    pub nlb: u16,
    reserved_18: [u8; 14],
}

layout!(CopySourceRange, 32, slba @ 8, nlb @ 16);

impl CopySourceRange {
    /// That many blocks (1 to 65,536) from an LBA on.
    pub const fn new(slba: u64, blocks: u32) -> Self {
        Self { reserved_0: 0, slba, nlb: blocks.wrapping_sub(1) as u16, reserved_18: [0; 14] }
    }
}

command_dwords!(
    CopyRanges: u128,
    ReadWrite: u128,
    Compare: u128,
    WriteZeroes: u128,
    WriteUncorrectable: u128,
    DatasetManagement: u64,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_command::{GetLogPage, SetFeatures};
    use crate::{NvmOpcode, SubmissionQueueEntry};
    use proptest::prelude::*;

    #[test]
    fn read_write_dwords() {
        let dwords = ReadWrite::new()
            .with_slba(0x1122_3344_5566_7788)
            .with_number_of_logical_blocks(65_536)
            .with_dtype(1)
            .with_prinfo(ProtectionInformation::new().with_pract(true).with_check_reference_tag(true))
            .with_fua(true)
            .with_lr(true)
            .with_dsm(DatasetManagementHint::new().with_sequential_request(true).with_access_frequency(3))
            .with_dspec(0xABCD);
        let sqe = SubmissionQueueEntry::new(NvmOpcode::WRITE, 1).with_dwords(dwords);
        assert_eq!((sqe.cdw10, sqe.cdw11), (0x5566_7788, 0x1122_3344));
        assert_eq!(sqe.cdw12, 0xFFFF | 1 << 20 | 1 << 26 | 1 << 29 | 1 << 30 | 1 << 31);
        assert_eq!(sqe.cdw13, 0xABCD_0043);
        assert_eq!(sqe.dwords::<ReadWrite>(), dwords);
        assert_eq!(dwords.number_of_logical_blocks(), 65_536);
    }

    #[test]
    fn write_zeroes_deallocates_with_bit_25() {
        let sqe = SubmissionQueueEntry::new(NvmOpcode::WRITE_ZEROES, 1)
            .with_dwords(WriteZeroes::new().with_number_of_logical_blocks(1).with_deac(true));
        assert_eq!((sqe.cdw12, sqe.cdw13), (1 << 25, 0));
    }

    #[test]
    fn compare_and_verify_share_reads_positions() {
        let read = ReadWrite::new().with_slba(5).with_nlb(7).with_stc(true).with_fua(true).with_lr(true);
        let verify = Verify::new().with_slba(5).with_nlb(7).with_stc(true).with_fua(true).with_lr(true);
        assert_eq!(verify.into_bits(), read.into_bits());
    }

    #[test]
    fn dataset_management_dwords_and_range() {
        let sqe = SubmissionQueueEntry::new(NvmOpcode::DATASET_MANAGEMENT, 1)
            .with_dwords(DatasetManagement::new().with_number_of_ranges(256).with_ad(true));
        assert_eq!((sqe.cdw10, sqe.cdw11), (0xFF, 4));
        assert_eq!(sqe.dwords::<DatasetManagement>().number_of_ranges(), 256);
        let range = DatasetManagementRange { context_attributes: 1, length_lbas: 2, slba: 3 };
        assert_eq!(range.as_bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn copy_dwords_and_range() {
        let dwords = CopyRanges::new().with_sdlba(0x1_0000_0002).with_number_of_ranges(128).with_fua(true);
        let sqe = SubmissionQueueEntry::new(NvmOpcode::COPY, 1).with_dwords(dwords);
        assert_eq!((sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13), (2, 1, 0x4000_007F, 0));
        assert_eq!(sqe.dwords::<CopyRanges>().number_of_ranges(), 128);
        let mut expected = [0; 32];
        (expected[8], expected[16], expected[17]) = (5, 0xFF, 0xFF);
        assert_eq!(CopySourceRange::new(5, 65_536).as_bytes(), expected);
    }

    proptest! {
        #[test]
        fn writing_back_what_was_read_changes_no_bit_of_a_command(bytes: [[u8; 32]; 2]) {
            let sqe = SubmissionQueueEntry::read_from_bytes(bytes.as_flattened()).unwrap();
            prop_assert_eq!(sqe.with_dwords(sqe.dwords::<ReadWrite>()), sqe);
            prop_assert_eq!(sqe.with_dwords(sqe.dwords::<WriteZeroes>()), sqe);
            prop_assert_eq!(sqe.with_dwords(sqe.dwords::<DatasetManagement>()), sqe);
            prop_assert_eq!(sqe.with_dwords(sqe.dwords::<GetLogPage>()), sqe);
            prop_assert_eq!(sqe.with_dwords(sqe.dwords::<SetFeatures>()), sqe);
            prop_assert_eq!(sqe.with_sgl(sqe.sgl1()).sgl1(), sqe.sgl1());
        }

        #[test]
        fn slba_and_blocks_are_the_dwords_of_the_command(cdw10: u32, cdw11: u32, nlb: u16, cdw12_high: u16) {
            let cdw12 = u32::from(cdw12_high) << 16 | u32::from(nlb);
            let command = SubmissionQueueEntry { cdw10, cdw11, cdw12, ..Default::default() }.dwords::<ReadWrite>();
            prop_assert_eq!(command.slba(), u64::from(cdw11) << 32 | u64::from(cdw10));
            prop_assert_eq!(command.number_of_logical_blocks(), u32::from(nlb) + 1);
            prop_assert_eq!(command.fua(), cdw12 & 1 << 30 != 0);
        }
    }
}
