//! Common Completion Queue Entry (Base 2.0, 3.3.3.2).

use crate::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A completion, 16 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompletionQueueEntry {
    /// Dword 0: command specific.
    pub dw0: u32,
    /// Dword 1: command specific.
    pub dw1: u32,
    /// SQHD, SQ Head Pointer.
    pub sq_head: u16,
    /// SQID, SQ Identifier.
    pub sq_id: u16,
    /// CID, Command Identifier.
    pub cid: u16,
    /// Phase Tag in bit 0, [`Status`] in bits 15:1.
    pub status: u16,
}

layout!(CompletionQueueEntry, 16, dw0 @ 0, dw1 @ 4, sq_head @ 8, sq_id @ 10, cid @ 12, status @ 14);

impl CompletionQueueEntry {
    /// A completion with dwords 0 and 1 cleared to 0.
    pub const fn new(cid: u16, sq_id: u16, sq_head: u16, status: Status, phase: bool) -> Self {
        Self { dw0: 0, dw1: 0, sq_head, sq_id, cid, status: status.into_bits() << 1 | phase as u16 }
    }

    /// The same with another dword 0.
    pub const fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = dw0;
        self
    }

    /// P, Phase Tag.
    pub const fn phase(&self) -> bool {
        self.status & 1 != 0
    }

    /// How the command ended.
    pub const fn status(&self) -> Status {
        Status::from_bits(self.status >> 1)
    }

    /// `Ok` if the command ended well, and its status otherwise.
    pub fn result(&self) -> Result<(), Status> {
        match self.status() {
            status if status.is_success() => Ok(()),
            status => Err(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let status = Status::LBA_OUT_OF_RANGE.with_dnr();
        let cqe = CompletionQueueEntry::new(0x1234, 3, 0x0501, status, true).with_dw0(0xDEAD_BEEF);
        let expected = [0xEF, 0xBE, 0xAD, 0xDE, 0, 0, 0, 0, 0x01, 0x05, 3, 0, 0x34, 0x12, 0x01, 0x81];
        assert_eq!(cqe.as_bytes(), expected);
        assert!(cqe.phase());
        assert_eq!(cqe.status(), status);
        assert_eq!(cqe.result(), Err(status));
    }

    #[test]
    fn success_is_success_in_either_phase() {
        for phase in [false, true] {
            let cqe = CompletionQueueEntry::new(1, 1, 0, Status::SUCCESS, phase);
            assert_eq!((cqe.phase(), cqe.result()), (phase, Ok(())));
        }
    }
}
