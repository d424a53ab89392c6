//! Error Information, LID 01h (Base 2.0, 5.16.1.2).

use crate::Status;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An entry of the Error Information log page (LID 01h), 64 bytes. The page has ELPE + 1 of them, the newest first;
/// unused ones have an error count of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorInformation {
    /// Error Count: unique and ascending over the life of the controller; 0 for an invalid entry.
    pub error_count: u64,
    /// Submission Queue ID, FFFFh if the error is of no queue.
    pub sqid: u16,
    /// Command ID, FFFFh if the error is of no command.
    pub cid: u16,
    /// Status Field in bits 15:1, and the Phase Tag that was posted in bit 0.
    pub status_field: u16,
    /// Parameter Error Location, [`ParameterErrorLocation::NONE`] if it is of no parameter.
    pub parameter_error_location: ParameterErrorLocation,
    /// The first LBA that had the error, if any.
    pub lba: u64,
    /// The namespace, if the error is of one.
    pub nsid: u32,
    /// Vendor Specific Information Available: a log page identifier, 0 for none.
    pub vendor_specific: u8,
    /// TRTYPE, Transport Type, 0 if not reported.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command Specific Information.
    pub command_specific: u64,
    /// Transport Type Specific Information.
    pub trtype_specific: u16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

layout!(ErrorInformation, 64, error_count @ 0, sqid @ 8, cid @ 10, status_field @ 12,
    parameter_error_location @ 14, lba @ 16, nsid @ 24, vendor_specific @ 28, trtype @ 29, command_specific @ 32,
    trtype_specific @ 40, reserved42 @ 42);

impl ErrorInformation {
    /// The status that the command ended with.
    pub const fn status(&self) -> Status {
        Status::from_bits(self.status_field >> 1)
    }

    /// Sets the status, with the Phase Tag that it was posted with.
    pub const fn set_status(&mut self, status: Status, phase: bool) {
        self.status_field = status.into_bits() << 1 | phase as u16;
    }
}

/// Parameter Error Location: the first bit of the command that is wrong.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParameterErrorLocation {
    /// Byte in the command: 0 to 63.
    pub byte: u8,
    /// Bit in that byte: 0 to 7.
    #[bits(3)]
    pub bit: u8,
    #[bits(5)]
    __: u8,
}

impl ParameterErrorLocation {
    /// The error is not specific to a command or its parameter.
    pub const NONE: Self = Self::from_bits(0xFFFF);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut entry = ErrorInformation {
            error_count: 0x0102,
            sqid: 3,
            cid: 0x0405,
            parameter_error_location: ParameterErrorLocation::new().with_byte(48).with_bit(5),
            lba: 6,
            nsid: 7,
            ..ErrorInformation::default()
        };
        entry.set_status(Status::INVALID_FIELD.with_dnr(), true);
        let mut expected = [0_u8; 64];
        expected[..16].copy_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 5, 4, 0x05, 0x80, 48, 5]);
        expected[16] = 6;
        expected[24] = 7;
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(entry.status(), Status::INVALID_FIELD.with_dnr());
        assert_eq!(ParameterErrorLocation::NONE.as_bytes(), [0xFF, 0xFF]);
    }
}
