//! Command opcodes (Base 2.0, 5, figure of Admin opcodes, and 7; NVM Command Set 1.0, 3.1).

use std::fmt;

macro_rules! opcodes {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($code:literal $ident:ident $text:literal)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u8);

        impl $name {
            $(#[doc = concat!($text, ".")] pub const $ident: Self = Self($code);)*

            /// Every opcode with a name, in ascending order.
            pub const NAMED: &'static [Self] = &[$(Self::$ident),*];

            /// The specification's name of the command, if it has one here.
            pub const fn name(self) -> Option<&'static str> {
                match self { $(Self::$ident => Some($text),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            /// The specification's name of the command, or the opcode in hexadecimal.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, concat!($what, " opcode {:02X}h"), self.0),
                }
            }
        }

        impl From<$name> for u8 {
            fn from(opcode: $name) -> u8 { opcode.0 }
        }

        impl From<u8> for $name {
            fn from(opcode: u8) -> Self { Self(opcode) }
        }
    };
}

opcodes! {
    /// Opcode of a command on the Admin Submission Queue (Base 2.0, 5).
    AdminOpcode, "Admin" {
        0x00 DELETE_IO_SUBMISSION_QUEUE "Delete I/O Submission Queue"
        0x01 CREATE_IO_SUBMISSION_QUEUE "Create I/O Submission Queue"
        0x02 GET_LOG_PAGE "Get Log Page"
        0x04 DELETE_IO_COMPLETION_QUEUE "Delete I/O Completion Queue"
        0x05 CREATE_IO_COMPLETION_QUEUE "Create I/O Completion Queue"
        0x06 IDENTIFY "Identify"
        0x08 ABORT "Abort"
        0x09 SET_FEATURES "Set Features"
        0x0A GET_FEATURES "Get Features"
        0x0C ASYNCHRONOUS_EVENT_REQUEST "Asynchronous Event Request"
        0x0D NAMESPACE_MANAGEMENT "Namespace Management"
        0x10 FIRMWARE_COMMIT "Firmware Commit"
        0x11 FIRMWARE_IMAGE_DOWNLOAD "Firmware Image Download"
        0x14 DEVICE_SELF_TEST "Device Self-test"
        0x15 NAMESPACE_ATTACHMENT "Namespace Attachment"
        0x18 KEEP_ALIVE "Keep Alive"
        0x19 DIRECTIVE_SEND "Directive Send"
        0x1A DIRECTIVE_RECEIVE "Directive Receive"
        0x1C VIRTUALIZATION_MANAGEMENT "Virtualization Management"
        0x1D NVME_MI_SEND "NVMe-MI Send"
        0x1E NVME_MI_RECEIVE "NVMe-MI Receive"
        0x20 CAPACITY_MANAGEMENT "Capacity Management"
        0x24 LOCKDOWN "Lockdown"
        0x7C DOORBELL_BUFFER_CONFIG "Doorbell Buffer Config"
        0x7F FABRICS_COMMANDS "Fabrics Commands"
        0x80 FORMAT_NVM "Format NVM"
        0x81 SECURITY_SEND "Security Send"
        0x82 SECURITY_RECEIVE "Security Receive"
        0x84 SANITIZE "Sanitize"
        0x86 GET_LBA_STATUS "Get LBA Status"
    }
}

opcodes! {
    /// Opcode of a command of the NVM command set, on an I/O Submission Queue (NVM Command Set 1.0, 3.1).
    NvmOpcode, "NVM" {
        0x00 FLUSH "Flush"
        0x01 WRITE "Write"
        0x02 READ "Read"
        0x04 WRITE_UNCORRECTABLE "Write Uncorrectable"
        0x05 COMPARE "Compare"
        0x08 WRITE_ZEROES "Write Zeroes"
        0x09 DATASET_MANAGEMENT "Dataset Management"
        0x0C VERIFY "Verify"
        0x0D RESERVATION_REGISTER "Reservation Register"
        0x0E RESERVATION_REPORT "Reservation Report"
        0x11 RESERVATION_ACQUIRE "Reservation Acquire"
        0x15 RESERVATION_RELEASE "Reservation Release"
        0x19 COPY "Copy"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_specifications_name_or_the_number() {
        assert_eq!(AdminOpcode(0x7C).to_string(), "Doorbell Buffer Config");
        assert_eq!(AdminOpcode(0xC0).to_string(), "Admin opcode C0h");
        assert_eq!(NvmOpcode::WRITE_ZEROES.to_string(), "Write Zeroes");
        assert_eq!(NvmOpcode(0x7D).to_string(), "NVM opcode 7Dh");
    }

    #[test]
    fn named_opcodes_ascend_without_repetition() {
        assert!(AdminOpcode::NAMED.is_sorted_by(|a, b| a < b));
        assert!(NvmOpcode::NAMED.is_sorted_by(|a, b| a < b));
    }
}
