//! Command-specific dwords of the Admin commands (Base 2.0, 5).
//!
//! Each type covers CDW10, CDW10–11 or CDW10–13; a CDW14 is a type of its own.

use crate::submission_queue_entry::command_dwords;
use bitfield_struct::bitfield;

/// Create I/O Completion Queue, CDW10–11 (5.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CreateIoCompletionQueue {
    /// QID, Queue Identifier.
    pub qid: u16,
    /// QSIZE, Queue Size in entries, 0's based.
    pub qsize: u16,
    /// PC, Physically Contiguous.
    pub pc: bool,
    /// IEN, Interrupts Enabled.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// IV, Interrupt Vector.
    pub iv: u16,
}

impl CreateIoCompletionQueue {
    /// Entries of the queue: 1 to 65 536, of which 1 is not allowed.
    pub const fn queue_size(self) -> u32 {
        self.qsize() as u32 + 1
    }

    /// Sets [`Self::qsize`] to that many entries (2 to 65 536).
    pub const fn with_queue_size(self, entries: u32) -> Self {
        self.with_qsize(entries.wrapping_sub(1) as u16)
    }
}

/// Create I/O Submission Queue, CDW10–12 (5.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct CreateIoSubmissionQueue {
    /// QID, Queue Identifier.
    pub qid: u16,
    /// QSIZE, Queue Size in entries, 0's based.
    pub qsize: u16,
    /// PC, Physically Contiguous.
    pub pc: bool,
    /// QPRIO, Queue Priority: 0 urgent, 1 high, 2 medium, 3 low.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
    /// CQID, Completion Queue Identifier.
    pub cqid: u16,
    /// NVMSETID, NVM Set Identifier.
    pub nvmsetid: u16,
    #[bits(48)]
    __: u64,
}

impl CreateIoSubmissionQueue {
    /// Entries of the queue: 1 to 65 536, of which 1 is not allowed.
    pub const fn queue_size(self) -> u32 {
        self.qsize() as u32 + 1
    }

    /// Sets [`Self::qsize`] to that many entries (2 to 65 536).
    pub const fn with_queue_size(self, entries: u32) -> Self {
        self.with_qsize(entries.wrapping_sub(1) as u16)
    }
}

/// Delete I/O Completion Queue (5.6) and Delete I/O Submission Queue (5.7), CDW10.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeleteIoQueue {
    /// QID, Queue Identifier.
    pub qid: u16,
    __: u16,
}

/// Identify, CDW10–11 (5.17).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Identify {
    /// CNS, Controller or Namespace Structure.
    pub cns: u8,
    __: u8,
    /// CNTID, Controller Identifier.
    pub cntid: u16,
    /// CNS Specific Identifier.
    pub cnssid: u16,
    __: u8,
    /// CSI, Command Set Identifier.
    pub csi: u8,
}

/// CDW14 of Identify, Get Log Page (which has more in it), Get Features and Set Features.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct UuidIndex {
    /// UUID Index.
    #[bits(7)]
    pub uuid_index: u8,
    #[bits(25)]
    __: u32,
}

/// Get Log Page, CDW10–13 (5.16).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct GetLogPage {
    /// LID, Log Page Identifier.
    pub lid: u8,
    /// LSP, Log Specific Parameter.
    #[bits(7)]
    pub lsp: u8,
    /// RAE, Retain Asynchronous Event.
    pub rae: bool,
    /// NUMD, Number of Dwords, 0's based (NUMDL and NUMDU).
    pub numd: u32,
    /// LSI, Log Specific Identifier.
    pub lsi: u16,
    /// LPO, Log Page Offset: in bytes, or an index if CDW14.OT is set.
    pub lpo: u64,
}

impl GetLogPage {
    /// How much to return, in bytes: 4 to 16 GiB.
    pub const fn number_of_bytes(self) -> u64 {
        (self.numd() as u64 + 1) * 4
    }

    /// Sets [`Self::numd`] for that many bytes (a multiple of 4, 4 to 16 GiB).
    pub const fn with_number_of_bytes(self, bytes: u64) -> Self {
        self.with_numd((bytes / 4).wrapping_sub(1) as u32)
    }
}

/// Get Log Page, CDW14 (5.16).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageCdw14 {
    /// UUID Index.
    #[bits(7)]
    pub uuid_index: u8,
    __: u16,
    /// OT, Offset Type: LPO is an index into a list of data structures.
    pub ot: bool,
    /// CSI, Command Set Identifier.
    pub csi: u8,
}

/// Get Features, CDW10; CDW11 is the feature's (5.15).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetFeatures {
    /// FID, Feature Identifier.
    pub fid: u8,
    /// SEL, Select: [`Self::SEL_CURRENT`] and the others.
    #[bits(3)]
    pub sel: u8,
    #[bits(21)]
    __: u32,
}

impl GetFeatures {
    /// [`Self::sel`]: the current value.
    pub const SEL_CURRENT: u8 = 0b000;
    /// [`Self::sel`]: the default value.
    pub const SEL_DEFAULT: u8 = 0b001;
    /// [`Self::sel`]: the saved value.
    pub const SEL_SAVED: u8 = 0b010;
    /// [`Self::sel`]: what can be done with it.
    pub const SEL_SUPPORTED_CAPABILITIES: u8 = 0b011;
}

/// Set Features, CDW10; CDW11 and on are the feature's (5.27).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SetFeatures {
    /// FID, Feature Identifier.
    pub fid: u8,
    #[bits(23)]
    __: u32,
    /// SV, Save: keep the value through power cycles and resets.
    pub sv: bool,
}

/// Abort, CDW10 (5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Abort {
    /// SQID, Submission Queue Identifier.
    pub sqid: u16,
    /// CID, Command Identifier.
    pub cid: u16,
}

impl Abort {
    /// Bit of completion dword 0 that says that the command was *not* aborted.
    pub const NOT_ABORTED: u32 = 1;
}

/// Format NVM, CDW10 (5.14).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FormatNvm {
    /// LBAFL, LBA Format Lower.
    #[bits(4)]
    pub lbafl: u8,
    /// MSET, Metadata Settings: metadata at the end of each logical block.
    pub mset: bool,
    /// PI, Protection Information: 0 none, else the type.
    #[bits(3)]
    pub pi: u8,
    /// PIL, Protection Information Location: first bytes of metadata, not last.
    pub pil: bool,
    /// SES, Secure Erase Settings: 0 none, 1 user data erase, 2 cryptographic erase.
    #[bits(3)]
    pub ses: u8,
    /// LBAFU, LBA Format Upper.
    #[bits(2)]
    pub lbafu: u8,
    #[bits(18)]
    __: u32,
}

impl FormatNvm {
    /// The LBA format asked for: 0 to 63.
    pub const fn lba_format(self) -> u8 {
        self.lbafu() << 4 | self.lbafl()
    }
}

/// Doorbell Buffer Config (5.8) has no dwords: PRP1 is the shadow doorbell buffer, PRP2 the EventIdx buffer, both
/// aligned to the memory page size. Their layout is [`crate::doorbell::Doorbell::offset_in_buffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorbellBufferConfig {
    /// Address of the shadow doorbell buffer.
    pub shadow_doorbells: u64,
    /// Address of the EventIdx buffer.
    pub event_idx: u64,
}

impl crate::CommandDwords for DoorbellBufferConfig {
    fn read(sqe: &crate::SubmissionQueueEntry) -> Self {
        Self { shadow_doorbells: sqe.prp1, event_idx: sqe.prp2 }
    }

    fn write(self, sqe: &mut crate::SubmissionQueueEntry) {
        (sqe.prp1, sqe.prp2) = (self.shadow_doorbells, self.event_idx);
    }
}

command_dwords!(
    CreateIoCompletionQueue: u64,
    CreateIoSubmissionQueue: u128,
    DeleteIoQueue: u32,
    Identify: u64,
    GetLogPage: u128,
    GetFeatures: u32,
    SetFeatures: u32,
    Abort: u32,
    FormatNvm: u32,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdminOpcode, SubmissionQueueEntry};

    #[test]
    fn create_io_completion_queue_dwords() {
        let dwords = CreateIoCompletionQueue::new()
            .with_qid(3)
            .with_queue_size(1024)
            .with_pc(true)
            .with_ien(true)
            .with_iv(9);
        let sqe = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 1).with_dwords(dwords);
        assert_eq!((sqe.cdw10, sqe.cdw11, sqe.cdw12), (0x03FF_0003, 0x0009_0003, 0));
        assert_eq!(sqe.dwords::<CreateIoCompletionQueue>().queue_size(), 1024);
    }

    #[test]
    fn create_io_submission_queue_dwords() {
        let dwords = CreateIoSubmissionQueue::new()
            .with_qid(3)
            .with_queue_size(65_536)
            .with_pc(true)
            .with_qprio(2)
            .with_cqid(4)
            .with_nvmsetid(5);
        let sqe = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 1).with_dwords(dwords);
        assert_eq!((sqe.cdw10, sqe.cdw11, sqe.cdw12), (0xFFFF_0003, 0x0004_0005, 5));
        assert_eq!(sqe.dwords::<CreateIoSubmissionQueue>().queue_size(), 65_536);
    }

    #[test]
    fn get_log_page_dwords() {
        let dwords = GetLogPage::new()
            .with_lid(2)
            .with_lsp(0x7F)
            .with_rae(true)
            .with_number_of_bytes(0x10_0000 * 4)
            .with_lsi(0x1234)
            .with_lpo(0x1_0000_0004);
        let sqe = SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 1).with_dwords(dwords);
        assert_eq!((sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13), (0xFFFF_FF02, 0x1234_000F, 4, 1));
        assert_eq!(GetLogPage::new().with_numd(u32::MAX).number_of_bytes(), 1 << 34);
        assert_eq!(GetLogPageCdw14::new().with_ot(true).with_csi(2).into_bits(), 0x0280_0000);
    }

    #[test]
    fn other_dwords() {
        let identify = Identify::new().with_cns(0x13).with_cntid(7).with_cnssid(8).with_csi(2);
        assert_eq!(identify.into_bits(), 0x0200_0008_0007_0013);
        assert_eq!(GetFeatures::new().with_fid(7).with_sel(3).into_bits(), 0x0307);
        assert_eq!(SetFeatures::new().with_fid(7).with_sv(true).into_bits(), 0x8000_0007);
        assert_eq!(Abort::new().with_sqid(1).with_cid(2).into_bits(), 0x0002_0001);
        let format = FormatNvm::new().with_lbafl(1).with_lbafu(2).with_ses(1).with_pil(true);
        assert_eq!((format.into_bits(), format.lba_format()), (0x2301, 0x21));
    }
}
