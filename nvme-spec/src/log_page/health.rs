//! SMART / Health Information, LID 02h (Base 2.0, 5.16.1.3).

use bitfield_struct::bitfield;
use std::fmt;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A 128-bit counter, of any alignment.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct U128([u8; 16]);

impl U128 {
    /// Its value.
    pub const fn get(self) -> u128 {
        u128::from_le_bytes(self.0)
    }

    /// Sets its value.
    pub const fn set(&mut self, value: u128) {
        self.0 = value.to_le_bytes();
    }
}

impl<T: Into<u128>> From<T> for U128 {
    fn from(value: T) -> Self {
        Self(value.into().to_le_bytes())
    }
}

impl fmt::Display for U128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for U128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// SMART / Health Information (LID 02h), 512 bytes (5.16.1.3).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmartHealthInformation {
    /// Critical Warning.
    pub critical_warning: CriticalWarning,
    /// Composite Temperature in kelvins, least significant byte first: [`Self::composite_temperature_kelvin`].
    pub composite_temperature: [u8; 2],
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage Used of the estimated endurance; may exceed 100.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_critical_warning_summary: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data Units Read, in thousands of 512 bytes, rounded up: see [`Self::data_units`].
    pub data_units_read: U128,
    /// Data Units Written, in thousands of 512 bytes, rounded up: see [`Self::data_units`].
    pub data_units_written: U128,
    /// Host Read Commands: completed reads and compares.
    pub host_read_commands: U128,
    /// Host Write Commands: completed writes.
    pub host_write_commands: U128,
    /// Controller Busy Time, in minutes.
    pub controller_busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_and_data_integrity_errors: U128,
    /// Number of Error Information Log Entries over the life of the controller.
    pub number_of_error_information_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_composite_temperature_time: u32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_composite_temperature_time: u32,
    /// Temperature Sensor 1 to 8 in kelvins, 0 if there is none.
    pub temperature_sensors: [u16; 8],
    /// Thermal Management Temperature 1 and 2 Transition Count.
    pub thermal_management_transition_count: [u32; 2],
    /// Total Time For Thermal Management Temperature 1 and 2, in seconds.
    pub thermal_management_total_time: [u32; 2],
    /// Reserved.
    pub reserved232: [u8; 280],
}

layout!(SmartHealthInformation, 512, critical_warning @ 0, composite_temperature @ 1, available_spare @ 3,
    available_spare_threshold @ 4, percentage_used @ 5, endurance_group_critical_warning_summary @ 6,
    data_units_read @ 32, data_units_written @ 48, host_read_commands @ 64, host_write_commands @ 80,
    controller_busy_time @ 96, power_cycles @ 112, power_on_hours @ 128, unsafe_shutdowns @ 144,
    media_and_data_integrity_errors @ 160, number_of_error_information_log_entries @ 176,
    warning_composite_temperature_time @ 192, critical_composite_temperature_time @ 196, temperature_sensors @ 200,
    thermal_management_transition_count @ 216, thermal_management_total_time @ 224, reserved232 @ 232);

impl Default for SmartHealthInformation {
    /// All bytes 0.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl SmartHealthInformation {
    /// That many bytes in data units, thousands of 512 bytes, rounded up.
    pub const fn data_units(bytes: u128) -> u128 {
        bytes.div_ceil(512_000)
    }

    /// Composite Temperature, in kelvins.
    pub const fn composite_temperature_kelvin(&self) -> u16 {
        u16::from_le_bytes(self.composite_temperature)
    }

    /// Sets the Composite Temperature, in kelvins.
    pub const fn set_composite_temperature_kelvin(&mut self, kelvin: u16) {
        self.composite_temperature = kelvin.to_le_bytes();
    }
}

/// Critical Warning of the SMART / Health Information log page; the Asynchronous Event Configuration feature
/// selects among the same bits (5.16.1.3, 5.27.1.8).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// Available spare is below its threshold.
    pub available_spare: bool,
    /// A temperature is over or under a threshold.
    pub temperature: bool,
    /// The NVM subsystem's reliability is degraded.
    pub reliability_degraded: bool,
    /// All media are read-only.
    pub read_only: bool,
    /// The volatile memory backup device has failed.
    pub volatile_memory_backup_failed: bool,
    /// The Persistent Memory Region is read-only or unreliable.
    pub persistent_memory_region_unreliable: bool,
    #[bits(2)]
    __: u8,
}

impl CriticalWarning {
    /// What is wrong, in words: one for each bit that is set.
    pub fn causes(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.available_spare(), "available spare is below its threshold"),
            (self.temperature(), "a temperature is beyond its threshold"),
            (self.reliability_degraded(), "reliability is degraded"),
            (self.read_only(), "the media are read-only"),
            (self.volatile_memory_backup_failed(), "the volatile memory backup has failed"),
            (self.persistent_memory_region_unreliable(), "the persistent memory region is unreliable"),
        ];
        all.into_iter().filter_map(|(set, cause)| set.then_some(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut page = SmartHealthInformation {
            critical_warning: CriticalWarning::new().with_read_only(true),
            available_spare: 100,
            available_spare_threshold: 10,
            data_units_read: U128::from(0x0102_u64),
            unsafe_shutdowns: U128::from(1_u64 << 63),
            ..Default::default()
        };
        page.set_composite_temperature_kelvin(300);
        page.temperature_sensors[0] = 300;
        let mut expected = [0_u8; 512];
        expected[..5].copy_from_slice(&[0x08, 0x2C, 0x01, 100, 10]);
        expected[32..34].copy_from_slice(&[2, 1]);
        expected[151] = 0x80;
        expected[200..202].copy_from_slice(&[0x2C, 0x01]);
        assert_eq!(page.as_bytes(), expected);
        assert_eq!(page.composite_temperature_kelvin(), 300);
        assert_eq!(page.unsafe_shutdowns.get(), 1 << 63);
    }

    #[test]
    fn one_byte_is_one_data_unit() {
        assert_eq!(SmartHealthInformation::data_units(0), 0);
        assert_eq!(SmartHealthInformation::data_units(1), 1);
        assert_eq!(SmartHealthInformation::data_units(512_000), 1);
        assert_eq!(SmartHealthInformation::data_units(512_001), 2);
    }
}
