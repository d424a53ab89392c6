//! Why an admin command fails, and which of its fields is to blame.

use nvme_spec::Status;
use nvme_spec::log_page::ParameterErrorLocation;

/// First bytes of fields of a submission queue entry (NVMe Base 2.0c, Figure 87), for parameter error locations.
pub(super) mod field {
    pub const OPCODE: u8 = 0;
    /// FUSE and PSDT.
    pub const FLAGS: u8 = 1;
    pub const NSID: u8 = 4;
    pub const CDW10: u8 = 40;
    pub const CDW11: u8 = 44;
    pub const CDW12: u8 = 48;
    pub const CDW14: u8 = 56;
}

/// A failed command: its status, and the field that it failed for, if it was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: Status,
    pub(super) location: ParameterErrorLocation,
}

impl Fault {
    /// A wrong value in the field that begins at `byte`. Sending it again would not help.
    pub(super) fn new(status: Status, byte: u8) -> Self {
        Self { status: status.with_dnr(), location: ParameterErrorLocation::new().with_byte(byte) }
    }

    /// As [`Fault::new`], where the field begins at a bit of that byte.
    pub(super) fn at_bit(self, bit: u8) -> Self {
        Self { location: self.location.with_bit(bit), ..self }
    }

    pub(super) fn invalid_field(byte: u8) -> Self {
        Self::new(Status::INVALID_FIELD, byte)
    }

    pub(super) fn invalid_opcode() -> Self {
        Self::new(Status::INVALID_OPCODE, field::OPCODE)
    }

    /// The NSID cannot exist (NVMe Base 2.0c, 3.2.1.5).
    pub(super) fn invalid_namespace() -> Self {
        Self::new(Status::INVALID_NAMESPACE, field::NSID)
    }
}

/// No field's fault.
impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self { status, location: ParameterErrorLocation::NONE }
    }
}
