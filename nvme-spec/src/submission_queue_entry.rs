//! Submission Queue Entry, Common Command Format (Base 2.0, 3.3.3.1).

use crate::sgl::SglDescriptor;
use bitfield_struct::{bitenum, bitfield};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A command, 64 bytes.
///
/// The dwords specific to a command are read and written as the types of [`crate::admin_command`] and
/// [`crate::nvm_command`], through [`Self::dwords`] and [`Self::set_dwords`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubmissionQueueEntry {
    /// OPC, Opcode: an [`crate::AdminOpcode`] or [`crate::NvmOpcode`], as the queue says.
    pub opcode: u8,
    /// FUSE and PSDT.
    pub flags: CommandFlags,
    /// CID, Command Identifier.
    pub cid: u16,
    /// NSID, Namespace Identifier.
    pub nsid: u32,
    /// Command Dword 2.
    pub cdw2: u32,
    /// Command Dword 3.
    pub cdw3: u32,
    /// MPTR, Metadata Pointer.
    pub mptr: u64,
    /// DPTR, first half: PRP Entry 1. See [`Self::data_pointer`].
    pub prp1: u64,
    /// DPTR, second half: PRP Entry 2. See [`Self::data_pointer`].
    pub prp2: u64,
    /// Command Dword 10.
    pub cdw10: u32,
    /// Command Dword 11.
    pub cdw11: u32,
    /// Command Dword 12.
    pub cdw12: u32,
    /// Command Dword 13.
    pub cdw13: u32,
    /// Command Dword 14.
    pub cdw14: u32,
    /// Command Dword 15.
    pub cdw15: u32,
}

layout!(SubmissionQueueEntry, 64, opcode @ 0, flags @ 1, cid @ 2, nsid @ 4, cdw2 @ 8, mptr @ 16, prp1 @ 24,
    prp2 @ 32, cdw10 @ 40, cdw11 @ 44, cdw12 @ 48, cdw13 @ 52, cdw14 @ 56, cdw15 @ 60);

/// Bits 15:8 of Command Dword 0.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandFlags {
    /// FUSE, Fused Operation.
    #[bits(2)]
    pub fuse: FusedOperation,
    #[bits(4)]
    __: u8,
    /// PSDT, PRP or SGL for Data Transfer: [`Self::PSDT_PRP`] and the others.
    #[bits(2)]
    pub psdt: u8,
}

impl CommandFlags {
    /// [`Self::psdt`]: PRPs.
    pub const PSDT_PRP: u8 = 0b00;
    /// [`Self::psdt`]: SGLs; MPTR is the address of a contiguous buffer.
    pub const PSDT_SGL: u8 = 0b01;
    /// [`Self::psdt`]: SGLs; MPTR is the address of an SGL segment of one descriptor.
    pub const PSDT_SGL_METADATA_SGL: u8 = 0b10;
}

/// CDW0.FUSE, Fused Operation.
#[bitenum]
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedOperation {
    /// 00b: normal operation.
    Normal = 0b00,
    /// 01b: fused operation, first command.
    First = 0b01,
    /// 10b: fused operation, second command.
    Second = 0b10,
    /// 11b: reserved.
    #[fallback]
    Reserved = 0b11,
}

/// DPTR, as CDW0.PSDT says how to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPointer {
    /// PRP Entry 1 and PRP Entry 2.
    Prp(u64, u64),
    /// SGL Entry 1.
    Sgl(SglDescriptor),
}

/// The dwords that give a command its parameters, as one type.
pub trait CommandDwords {
    /// Reads them from a command.
    fn read(sqe: &SubmissionQueueEntry) -> Self;
    /// Writes them to a command, leaving its other dwords alone.
    fn write(self, sqe: &mut SubmissionQueueEntry);
}

impl SubmissionQueueEntry {
    /// A command with this opcode and identifier and everything else 0.
    pub fn new(opcode: impl Into<u8>, cid: u16) -> Self {
        Self { opcode: opcode.into(), cid, ..Self::default() }
    }

    /// The same for a namespace.
    pub const fn with_nsid(mut self, nsid: u32) -> Self {
        self.nsid = nsid;
        self
    }

    /// The same with PRPs for its data.
    pub const fn with_prp(mut self, prp1: u64, prp2: u64) -> Self {
        self.prp1 = prp1;
        self.prp2 = prp2;
        self.flags = self.flags.with_psdt(CommandFlags::PSDT_PRP);
        self
    }

    /// The same with an SGL for its data.
    pub fn with_sgl(mut self, descriptor: SglDescriptor) -> Self {
        (self.prp1, self.prp2) = descriptor.to_dptr();
        self.flags = self.flags.with_psdt(CommandFlags::PSDT_SGL);
        self
    }

    /// The same with those command-specific dwords.
    pub fn with_dwords(mut self, dwords: impl CommandDwords) -> Self {
        dwords.write(&mut self);
        self
    }

    /// Sets the dwords specific to a command.
    pub fn set_dwords(&mut self, dwords: impl CommandDwords) {
        dwords.write(self);
    }

    /// The dwords specific to a command, read as that command's.
    pub fn dwords<T: CommandDwords>(&self) -> T {
        T::read(self)
    }

    /// SGL Entry 1: the data pointer read as an SGL descriptor.
    pub fn sgl1(&self) -> SglDescriptor {
        SglDescriptor::from_dptr(self.prp1, self.prp2)
    }

    /// The data pointer as PSDT says, or `None` if PSDT is 11b, which is reserved.
    pub fn data_pointer(&self) -> Option<DataPointer> {
        match self.flags.psdt() {
            CommandFlags::PSDT_PRP => Some(DataPointer::Prp(self.prp1, self.prp2)),
            CommandFlags::PSDT_SGL | CommandFlags::PSDT_SGL_METADATA_SGL => {
                Some(DataPointer::Sgl(self.sgl1()))
            }
            _ => None,
        }
    }
}

/// Lets bitfields over CDW10 (`u32`), CDW10–11 (`u64`) or CDW10–13 (`u128`) be read from and written to a command.
macro_rules! command_dwords {
    ($($t:ty: $repr:tt),* $(,)?) => {
        $(impl crate::CommandDwords for $t {
            #[inline]
            fn read(sqe: &crate::SubmissionQueueEntry) -> Self {
                command_dwords!(@read $repr, sqe)
            }
            #[inline]
            fn write(self, sqe: &mut crate::SubmissionQueueEntry) {
                command_dwords!(@write $repr, self, sqe)
            }
        })*
    };
    (@read u32, $sqe:ident) => { Self::from_bits($sqe.cdw10) };
    (@read u64, $sqe:ident) => { Self::from_bits($sqe.cdw10 as u64 | ($sqe.cdw11 as u64) << 32) };
    (@read u128, $sqe:ident) => {
        Self::from_bits($sqe.cdw10 as u128
            | ($sqe.cdw11 as u128) << 32
            | ($sqe.cdw12 as u128) << 64
            | ($sqe.cdw13 as u128) << 96)
    };
    (@write u32, $self:ident, $sqe:ident) => { $sqe.cdw10 = $self.into_bits() };
    (@write u64, $self:ident, $sqe:ident) => {{
        let bits = $self.into_bits();
        ($sqe.cdw10, $sqe.cdw11) = (bits as u32, (bits >> 32) as u32);
    }};
    (@write u128, $self:ident, $sqe:ident) => {{
        let bits = $self.into_bits();
        ($sqe.cdw10, $sqe.cdw11) = (bits as u32, (bits >> 32) as u32);
        ($sqe.cdw12, $sqe.cdw13) = ((bits >> 64) as u32, (bits >> 96) as u32);
    }};
}
pub(crate) use command_dwords;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NvmOpcode;

    #[test]
    fn golden_bytes() {
        let mut sqe = SubmissionQueueEntry::new(NvmOpcode::READ, 0x1234)
            .with_nsid(0x0A0B_0C0D)
            .with_prp(0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00);
        sqe.mptr = 0x0102_0304_0506_0708;
        sqe.cdw10 = 0x1010_1010;
        sqe.cdw15 = 0x1515_1515;
        let mut expected = [0; 64];
        expected[..8].copy_from_slice(&[0x02, 0x00, 0x34, 0x12, 0x0D, 0x0C, 0x0B, 0x0A]);
        expected[16..24].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        expected[24..32].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        expected[32..40].copy_from_slice(&[0x00, 0xFF, 0xEE, 0xDD, 0xCC, 0xBB, 0xAA, 0x99]);
        expected[40..44].fill(0x10);
        expected[60..].fill(0x15);
        assert_eq!(sqe.as_bytes(), expected);
        assert_eq!(SubmissionQueueEntry::read_from_bytes(&expected).unwrap(), sqe);
    }

    #[test]
    fn flags_are_bits_15_to_8_of_dword_0() {
        let flags = CommandFlags::new().with_fuse(FusedOperation::Second).with_psdt(CommandFlags::PSDT_SGL);
        assert_eq!(flags.into_bits(), 0x42);
    }

    #[test]
    fn data_pointer_is_read_as_psdt_says() {
        let mut sqe = SubmissionQueueEntry::new(NvmOpcode::WRITE, 0).with_prp(1, 2);
        assert_eq!(sqe.data_pointer(), Some(DataPointer::Prp(1, 2)));
        let descriptor = SglDescriptor::data_block(0x1000, 512);
        sqe = sqe.with_sgl(descriptor);
        assert_eq!(sqe.data_pointer(), Some(DataPointer::Sgl(descriptor)));
        sqe.flags.set_psdt(0b11);
        assert_eq!(sqe.data_pointer(), None);
    }
}
