//! Asynchronous events: what completes an Asynchronous Event Request (Base 2.0, 5.2).

use crate::log_page::lid;
use bitfield_struct::bitfield;

/// Completion dword 0 of an Asynchronous Event Request (Base 2.0, 5.2.1).
///
/// The named constants are whole dwords, with the log page that belongs to the event.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsynchronousEvent {
    /// Asynchronous Event Type: [`Self::TYPE_ERROR_STATUS`] and the others.
    #[bits(3)]
    pub event_type: u8,
    #[bits(5)]
    __: u8,
    /// Asynchronous Event Information, as the type defines it.
    pub information: u8,
    /// Log Page Identifier: reading it clears the event.
    pub lid: u8,
    __: u8,
}

impl AsynchronousEvent {
    /// [`Self::event_type`]: Error status.
    pub const TYPE_ERROR_STATUS: u8 = 0b000;
    /// [`Self::event_type`]: SMART / Health status.
    pub const TYPE_SMART_HEALTH_STATUS: u8 = 0b001;
    /// [`Self::event_type`]: Notice.
    pub const TYPE_NOTICE: u8 = 0b010;
    /// [`Self::event_type`]: I/O Command Specific Status.
    pub const TYPE_IO_COMMAND_SPECIFIC_STATUS: u8 = 0b110;
    /// [`Self::event_type`]: Vendor specific.
    pub const TYPE_VENDOR_SPECIFIC: u8 = 0b111;

    /// Error: a doorbell of a queue that does not exist was written.
    pub const INVALID_DOORBELL_REGISTER: Self = Self::error(0x00);
    /// Error: a doorbell was written with a value out of the queue's range, or the one it had.
    pub const INVALID_DOORBELL_VALUE: Self = Self::error(0x01);
    /// Error: diagnostic failure.
    pub const DIAGNOSTIC_FAILURE: Self = Self::error(0x02);
    /// Error: persistent internal error.
    pub const PERSISTENT_INTERNAL_ERROR: Self = Self::error(0x03);
    /// Error: transient internal error.
    pub const TRANSIENT_INTERNAL_ERROR: Self = Self::error(0x04);
    /// Error: firmware image load error. Its log page is Firmware Slot Information.
    pub const FIRMWARE_IMAGE_LOAD_ERROR: Self = Self::error(0x05).with_lid(lid::FIRMWARE_SLOT_INFORMATION);

    /// SMART / Health: the NVM subsystem's reliability is compromised.
    pub const NVM_SUBSYSTEM_RELIABILITY: Self = Self::smart_health(0x00);
    /// SMART / Health: a temperature reached its threshold.
    pub const TEMPERATURE_THRESHOLD: Self = Self::smart_health(0x01);
    /// SMART / Health: available spare is below its threshold.
    pub const SPARE_BELOW_THRESHOLD: Self = Self::smart_health(0x02);

    /// Notice: namespace attributes changed, or namespaces came or went.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: Self = Self::notice(0x00, lid::CHANGED_NAMESPACE_LIST);
    /// Notice: firmware activation starts.
    pub const FIRMWARE_ACTIVATION_STARTING: Self = Self::notice(0x01, lid::FIRMWARE_SLOT_INFORMATION);
    /// Notice: the controller-initiated telemetry log changed.
    pub const TELEMETRY_LOG_CHANGED: Self = Self::notice(0x02, lid::TELEMETRY_CONTROLLER_INITIATED);
    /// Notice: asymmetric namespace access changed.
    pub const ASYMMETRIC_NAMESPACE_ACCESS_CHANGE: Self = Self::notice(0x03, lid::ASYMMETRIC_NAMESPACE_ACCESS);

    const fn error(information: u8) -> Self {
        Self::new()
            .with_event_type(Self::TYPE_ERROR_STATUS)
            .with_information(information)
            .with_lid(lid::ERROR_INFORMATION)
    }

    const fn smart_health(information: u8) -> Self {
        Self::new()
            .with_event_type(Self::TYPE_SMART_HEALTH_STATUS)
            .with_information(information)
            .with_lid(lid::SMART_HEALTH_INFORMATION)
    }

    const fn notice(information: u8, lid: u8) -> Self {
        Self::new().with_event_type(Self::TYPE_NOTICE).with_information(information).with_lid(lid)
    }
}

#[cfg(test)]
mod tests {
    use super::AsynchronousEvent;

    #[test]
    fn dwords_are_the_specifications() {
        assert_eq!(AsynchronousEvent::INVALID_DOORBELL_REGISTER.into_bits(), 0x0001_0000);
        assert_eq!(AsynchronousEvent::INVALID_DOORBELL_VALUE.into_bits(), 0x0001_0100);
        assert_eq!(AsynchronousEvent::FIRMWARE_IMAGE_LOAD_ERROR.into_bits(), 0x0003_0500);
        assert_eq!(AsynchronousEvent::SPARE_BELOW_THRESHOLD.into_bits(), 0x0002_0201);
        assert_eq!(AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits(), 0x0004_0002);
    }
}
