//! Doorbell registers, and the shadow doorbell buffer laid out like them (PCIe Transport 1.0, 3.1.2; Base 2.0,
//! 5.8 Doorbell Buffer Config).

use crate::registers::DOORBELL_BASE;

/// One doorbell register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doorbell {
    /// SQyTDBL of the queue with this identifier.
    SubmissionQueueTail(u16),
    /// CQyHDBL of the queue with this identifier.
    CompletionQueueHead(u16),
}

impl Doorbell {
    /// Offset within BAR0, in bytes, with CAP.DSTRD = `dstrd`.
    pub const fn offset(self, dstrd: u8) -> u64 {
        DOORBELL_BASE + self.offset_in_buffer(dstrd)
    }

    /// Offset within the shadow doorbell and EventIdx buffers, in bytes, with CAP.DSTRD = `dstrd`.
    pub const fn offset_in_buffer(self, dstrd: u8) -> u64 {
        let index = match self {
            Self::SubmissionQueueTail(y) => 2 * y as u64,
            Self::CompletionQueueHead(y) => 2 * y as u64 + 1,
        };
        index * (4 << (dstrd & 0xF))
    }

    /// The doorbell that starts at `offset` of BAR0, if one can start there.
    pub const fn at(offset: u64, dstrd: u8) -> Option<Self> {
        let stride = 4_u64 << (dstrd & 0xF);
        if offset < DOORBELL_BASE || !(offset - DOORBELL_BASE).is_multiple_of(stride) {
            return None;
        }
        let index = (offset - DOORBELL_BASE) / stride;
        if index >> 1 > u16::MAX as u64 {
            return None;
        }
        let y = (index >> 1) as u16;
        Some(match index & 1 {
            0 => Self::SubmissionQueueTail(y),
            _ => Self::CompletionQueueHead(y),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Doorbell::{self, *};
    use proptest::prelude::*;

    #[test]
    fn offsets_follow_the_stride() {
        assert_eq!(SubmissionQueueTail(0).offset(0), 0x1000);
        assert_eq!(CompletionQueueHead(0).offset(0), 0x1004);
        assert_eq!(SubmissionQueueTail(3).offset(0), 0x1018);
        assert_eq!(CompletionQueueHead(3).offset(2), 0x1000 + 7 * 16);
        assert_eq!(CompletionQueueHead(3).offset_in_buffer(2), 7 * 16);
    }

    #[test]
    fn at_is_the_inverse_of_offset_and_nothing_else_is_a_doorbell() {
        for dstrd in 0..16 {
            for doorbell in [SubmissionQueueTail(0), CompletionQueueHead(1), SubmissionQueueTail(0xFFFF)] {
                assert_eq!(Doorbell::at(doorbell.offset(dstrd), dstrd), Some(doorbell));
            }
        }
        assert_eq!(Doorbell::at(0xFFC, 0), None);
        assert_eq!(Doorbell::at(0x1002, 0), None);
        assert_eq!(Doorbell::at(0x1004, 1), None);
        assert_eq!(Doorbell::at(u64::MAX - 3, 0), None);
    }

    proptest! {
        #[test]
        fn whatever_offset_holds_a_doorbell_is_that_doorbells_offset(
            offset in prop_oneof![0x0F00..0x4_0000_u64, any::<u64>()],
            dstrd in any::<u8>(),
        ) {
            if let Some(doorbell) = Doorbell::at(offset, dstrd) {
                prop_assert_eq!(doorbell.offset(dstrd), offset);
            }
        }
    }
}
