//! Status Field (Base 2.0, 3.3.3.2.1; NVM Command Set 1.0, 3.1, for the codes of its commands).

use std::fmt;

/// How a command ended: the 15-bit Status Field, without the Phase Tag.
///
/// Bits 7:0 SC (Status Code), 10:8 SCT (Status Code Type), 12:11 CRD (Command Retry Delay), 13 M (More),
/// 14 DNR (Do Not Retry). The constants have CRD, M and DNR cleared to 0; compare with [`Self::is`], or [`Self::code`],
/// where these may be set. `Display` gives the specification's wording.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

/// SCT, Status Code Type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusCodeType {
    /// 0h: Generic Command Status.
    Generic,
    /// 1h: Command Specific Status.
    CommandSpecific,
    /// 2h: Media and Data Integrity Errors.
    MediaAndDataIntegrity,
    /// 3h: Path Related Status.
    PathRelated,
    /// 4h to 6h: reserved.
    Reserved(u8),
    /// 7h: Vendor Specific.
    VendorSpecific,
}

macro_rules! statuses {
    ($($sct:literal { $($sc:literal $ident:ident $text:literal)* })*) => {
        impl Status {
            $($(
                #[doc = concat!($text, " (SCT ", $sct, ", SC ", $sc, ").")]
                pub const $ident: Self = Self($sct << 8 | $sc);
            )*)*

            /// Every status with a name, in ascending order.
            pub const NAMED: &'static [Self] = &[$($(Self::$ident,)*)*];

            /// The specification's wording, if it has one here.
            pub const fn name(self) -> Option<&'static str> {
                match self.code() { $($(Self::$ident => Some($text),)*)* _ => None }
            }
        }
    };
}

statuses! {
    0x0 {
        0x00 SUCCESS "Successful Completion"
        0x01 INVALID_OPCODE "Invalid Command Opcode"
        0x02 INVALID_FIELD "Invalid Field in Command"
        0x03 COMMAND_ID_CONFLICT "Command ID Conflict"
        0x04 DATA_TRANSFER_ERROR "Data Transfer Error"
        0x05 ABORTED_POWER_LOSS "Commands Aborted due to Power Loss Notification"
        0x06 INTERNAL_ERROR "Internal Error"
        0x07 ABORTED_BY_REQUEST "Command Abort Requested"
        0x08 ABORTED_SQ_DELETION "Command Aborted due to SQ Deletion"
        0x09 ABORTED_FAILED_FUSED "Command Aborted due to Failed Fused Command"
        0x0A ABORTED_MISSING_FUSED "Command Aborted due to Missing Fused Command"
        0x0B INVALID_NAMESPACE "Invalid Namespace or Format"
        0x0C COMMAND_SEQUENCE_ERROR "Command Sequence Error"
        0x0D INVALID_SGL_SEGMENT_DESCRIPTOR "Invalid SGL Segment Descriptor"
        0x0E INVALID_NUMBER_OF_SGL_DESCRIPTORS "Invalid Number of SGL Descriptors"
        0x0F DATA_SGL_LENGTH_INVALID "Data SGL Length Invalid"
        0x10 METADATA_SGL_LENGTH_INVALID "Metadata SGL Length Invalid"
        0x11 SGL_DESCRIPTOR_TYPE_INVALID "SGL Descriptor Type Invalid"
        0x12 INVALID_USE_OF_CMB "Invalid Use of Controller Memory Buffer"
        0x13 PRP_OFFSET_INVALID "PRP Offset Invalid"
        0x14 ATOMIC_WRITE_UNIT_EXCEEDED "Atomic Write Unit Exceeded"
        0x15 OPERATION_DENIED "Operation Denied"
        0x16 SGL_OFFSET_INVALID "SGL Offset Invalid"
        0x18 HOST_IDENTIFIER_INCONSISTENT_FORMAT "Host Identifier Inconsistent Format"
        0x19 KEEP_ALIVE_TIMER_EXPIRED "Keep Alive Timer Expired"
        0x1A KEEP_ALIVE_TIMEOUT_INVALID "Keep Alive Timeout Invalid"
        0x1B ABORTED_PREEMPT_AND_ABORT "Command Aborted due to Preempt and Abort"
        0x1C SANITIZE_FAILED "Sanitize Failed"
        0x1D SANITIZE_IN_PROGRESS "Sanitize In Progress"
        0x1E SGL_DATA_BLOCK_GRANULARITY_INVALID "SGL Data Block Granularity Invalid"
        0x1F COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB "Command Not Supported for Queue in CMB"
        0x20 NAMESPACE_WRITE_PROTECTED "Namespace is Write Protected"
        0x21 COMMAND_INTERRUPTED "Command Interrupted"
        0x22 TRANSIENT_TRANSPORT_ERROR "Transient Transport Error"
        0x23 COMMAND_PROHIBITED_BY_LOCKDOWN "Command Prohibited by Command and Feature Lockdown"
        0x24 ADMIN_COMMAND_MEDIA_NOT_READY "Admin Command Media Not Ready"
        0x80 LBA_OUT_OF_RANGE "LBA Out of Range"
        0x81 CAPACITY_EXCEEDED "Capacity Exceeded"
        0x82 NAMESPACE_NOT_READY "Namespace Not Ready"
        0x83 RESERVATION_CONFLICT "Reservation Conflict"
        0x84 FORMAT_IN_PROGRESS "Format In Progress"
        0x85 INVALID_VALUE_SIZE "Invalid Value Size"
        0x86 INVALID_KEY_SIZE "Invalid Key Size"
        0x87 KV_KEY_DOES_NOT_EXIST "KV Key Does Not Exist"
        0x88 UNRECOVERED_ERROR "Unrecovered Error"
        0x89 KEY_EXISTS "Key Exists"
    }
    0x1 {
        0x00 COMPLETION_QUEUE_INVALID "Completion Queue Invalid"
        0x01 INVALID_QUEUE_IDENTIFIER "Invalid Queue Identifier"
        0x02 INVALID_QUEUE_SIZE "Invalid Queue Size"
        0x03 ABORT_LIMIT_EXCEEDED "Abort Command Limit Exceeded"
        0x05 AER_LIMIT_EXCEEDED "Asynchronous Event Request Limit Exceeded"
        0x06 INVALID_FIRMWARE_SLOT "Invalid Firmware Slot"
        0x07 INVALID_FIRMWARE_IMAGE "Invalid Firmware Image"
        0x08 INVALID_INTERRUPT_VECTOR "Invalid Interrupt Vector"
        0x09 INVALID_LOG_PAGE "Invalid Log Page"
        0x0A INVALID_FORMAT "Invalid Format"
        0x0B FIRMWARE_ACTIVATION_REQUIRES_CONVENTIONAL_RESET "Firmware Activation Requires Conventional Reset"
        0x0C INVALID_QUEUE_DELETION "Invalid Queue Deletion"
        0x0D FEATURE_NOT_SAVEABLE "Feature Identifier Not Saveable"
        0x0E FEATURE_NOT_CHANGEABLE "Feature Not Changeable"
        0x0F FEATURE_NOT_NAMESPACE_SPECIFIC "Feature Not Namespace Specific"
        0x10 FIRMWARE_ACTIVATION_REQUIRES_NVM_SUBSYSTEM_RESET "Firmware Activation Requires NVM Subsystem Reset"
        0x11 FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_LEVEL_RESET "Firmware Activation Requires Controller Level Reset"
        0x12 FIRMWARE_ACTIVATION_REQUIRES_MAXIMUM_TIME_VIOLATION "Firmware Activation Requires Maximum Time Violation"
        0x13 FIRMWARE_ACTIVATION_PROHIBITED "Firmware Activation Prohibited"
        0x14 OVERLAPPING_RANGE "Overlapping Range"
        0x15 NAMESPACE_INSUFFICIENT_CAPACITY "Namespace Insufficient Capacity"
        0x16 NAMESPACE_IDENTIFIER_UNAVAILABLE "Namespace Identifier Unavailable"
        0x18 NAMESPACE_ALREADY_ATTACHED "Namespace Already Attached"
        0x19 NAMESPACE_IS_PRIVATE "Namespace Is Private"
        0x1A NAMESPACE_NOT_ATTACHED "Namespace Not Attached"
        0x1B THIN_PROVISIONING_NOT_SUPPORTED "Thin Provisioning Not Supported"
        0x1C CONTROLLER_LIST_INVALID "Controller List Invalid"
        0x1D DEVICE_SELF_TEST_IN_PROGRESS "Device Self-test In Progress"
        0x1E BOOT_PARTITION_WRITE_PROHIBITED "Boot Partition Write Prohibited"
        0x1F INVALID_CONTROLLER_IDENTIFIER "Invalid Controller Identifier"
        0x20 INVALID_SECONDARY_CONTROLLER_STATE "Invalid Secondary Controller State"
        0x21 INVALID_NUMBER_OF_CONTROLLER_RESOURCES "Invalid Number of Controller Resources"
        0x22 INVALID_RESOURCE_IDENTIFIER "Invalid Resource Identifier"
        0x23 SANITIZE_PROHIBITED_WHILE_PMR_ENABLED "Sanitize Prohibited While Persistent Memory Region is Enabled"
        0x24 ANA_GROUP_IDENTIFIER_INVALID "ANA Group Identifier Invalid"
        0x25 ANA_ATTACH_FAILED "ANA Attach Failed"
        0x26 INSUFFICIENT_CAPACITY "Insufficient Capacity"
        0x27 NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED "Namespace Attachment Limit Exceeded"
        0x28 PROHIBITION_OF_COMMAND_EXECUTION_NOT_SUPPORTED "Prohibition of Command Execution Not Supported"
        0x29 IO_COMMAND_SET_NOT_SUPPORTED "I/O Command Set Not Supported"
        0x2A IO_COMMAND_SET_NOT_ENABLED "I/O Command Set Not Enabled"
        0x2B IO_COMMAND_SET_COMBINATION_REJECTED "I/O Command Set Combination Rejected"
        0x2C INVALID_IO_COMMAND_SET "Invalid I/O Command Set"
        0x2D IDENTIFIER_UNAVAILABLE "Identifier Unavailable"
        0x80 CONFLICTING_ATTRIBUTES "Conflicting Attributes"
        0x81 INVALID_PROTECTION_INFORMATION "Invalid Protection Information"
        0x82 ATTEMPTED_WRITE_TO_READ_ONLY_RANGE "Attempted Write to Read Only Range"
        0x83 COMMAND_SIZE_LIMIT_EXCEEDED "Command Size Limit Exceeded"
    }
    0x2 {
        0x80 WRITE_FAULT "Write Fault"
        0x81 UNRECOVERED_READ_ERROR "Unrecovered Read Error"
        0x82 END_TO_END_GUARD_CHECK_ERROR "End-to-end Guard Check Error"
        0x83 END_TO_END_APPLICATION_TAG_CHECK_ERROR "End-to-end Application Tag Check Error"
        0x84 END_TO_END_REFERENCE_TAG_CHECK_ERROR "End-to-end Reference Tag Check Error"
        0x85 COMPARE_FAILURE "Compare Failure"
        0x86 ACCESS_DENIED "Access Denied"
        0x87 DEALLOCATED_OR_UNWRITTEN_LOGICAL_BLOCK "Deallocated or Unwritten Logical Block"
        0x88 END_TO_END_STORAGE_TAG_CHECK_ERROR "End-to-End Storage Tag Check Error"
    }
    0x3 {
        0x00 INTERNAL_PATH_ERROR "Internal Path Error"
        0x01 ASYMMETRIC_ACCESS_PERSISTENT_LOSS "Asymmetric Access Persistent Loss"
        0x02 ASYMMETRIC_ACCESS_INACCESSIBLE "Asymmetric Access Inaccessible"
        0x03 ASYMMETRIC_ACCESS_TRANSITION "Asymmetric Access Transition"
        0x60 CONTROLLER_PATHING_ERROR "Controller Pathing Error"
        0x70 HOST_PATHING_ERROR "Host Pathing Error"
        0x71 COMMAND_ABORTED_BY_HOST "Command Aborted By Host"
    }
}

impl Status {
    const MORE: u16 = 1 << 13;
    const DNR: u16 = 1 << 14;

    /// The status with these 15 bits. Bit 15 is dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7FFF)
    }

    /// The 15 bits of the status.
    pub const fn into_bits(self) -> u16 {
        self.0
    }

    /// SC, Status Code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// SCT, Status Code Type.
    pub const fn sct(self) -> StatusCodeType {
        match (self.0 >> 8 & 7) as u8 {
            0 => StatusCodeType::Generic,
            1 => StatusCodeType::CommandSpecific,
            2 => StatusCodeType::MediaAndDataIntegrity,
            3 => StatusCodeType::PathRelated,
            7 => StatusCodeType::VendorSpecific,
            other => StatusCodeType::Reserved(other),
        }
    }

    /// CRD, Command Retry Delay: 0 none, else which CRDT of Identify Controller.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11 & 3) as u8
    }

    /// M, More: the Error Information log page has more on this.
    pub const fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// DNR, Do Not Retry: the same command would fail again.
    pub const fn dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// The same, with Do Not Retry set.
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// The same, with More set.
    pub const fn with_more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// Only SCT and SC, to compare with the constants.
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7FF)
    }

    /// Whether SCT and SC are those of `other`, whatever CRD, M and DNR are.
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// Whether the command completed successfully.
    pub const fn is_success(self) -> bool {
        self.is(Self::SUCCESS)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "status code type {:X}h, status code {:02X}h", self.0 >> 8 & 7, self.sc()),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x}: {self}", self.0)?;
        for (set, name) in [(self.more(), ", M"), (self.dnr(), ", DNR")] {
            f.write_str(if set { name } else { "" })?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_specifications() {
        assert_eq!(Status::INVALID_FIELD.with_dnr().into_bits(), 0x4002);
        assert_eq!(Status::INVALID_QUEUE_DELETION.into_bits(), 0x010C);
        assert_eq!(Status::COMPARE_FAILURE.into_bits(), 0x0285);
        assert_eq!(Status::LBA_OUT_OF_RANGE.with_more().into_bits(), 0x2080);
        assert_eq!(Status::from_bits(0x1800).crd(), 3);
        assert!(Status::NAMED.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn display_is_the_specifications_wording_or_the_numbers() {
        assert_eq!(Status::PRP_OFFSET_INVALID.with_dnr().to_string(), "PRP Offset Invalid");
        assert_eq!(Status::from_bits(0x7C1).to_string(), "status code type 7h, status code C1h");
        assert_eq!(format!("{:?}", Status::SUCCESS.with_dnr()), "Status(0x4000: Successful Completion, DNR)");
    }

    #[test]
    fn comparison_by_code_ignores_the_flags() {
        assert!(Status::COMPARE_FAILURE.with_dnr().is(Status::COMPARE_FAILURE));
        assert_ne!(Status::COMPARE_FAILURE.with_dnr(), Status::COMPARE_FAILURE);
        assert!(Status::SUCCESS.with_more().is_success());
        assert_eq!(Status::from_bits(0x400).sct(), StatusCodeType::Reserved(4));
    }
}
