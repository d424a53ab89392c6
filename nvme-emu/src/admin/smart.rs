//! The SMART / Health Information log (NVMe Base 2.0c, 5.16.1.3).

use super::{Admin, IoCounters, Machine};
use nvme_spec::log_page::{CriticalWarning, SmartHealthInformation};

/// The composite temperature in kelvins. A constant, since there is nothing to measure: 40 °C, what an unhurried
/// drive has, so that monitoring neither warns nor takes it for broken. Hosts can still move the thresholds past it
/// and get the event.
pub(super) const TEMPERATURE: u16 = 313;

/// Warning Composite Temperature Threshold in kelvins (WCTEMP), the over temperature threshold's default: 70 °C.
pub(super) const WARNING_TEMPERATURE: u16 = 343;

/// Critical Composite Temperature Threshold in kelvins (CCTEMP): 80 °C.
pub(super) const CRITICAL_TEMPERATURE: u16 = 353;

/// What only a power cycle changes. Counted from the start of this process: nothing older is known.
#[derive(Debug)]
pub(super) struct Health {
    power_cycles: u64,
    unsafe_shutdowns: u64,
}

impl Default for Health {
    fn default() -> Self {
        // The one that brought the controller up.
        Self { power_cycles: 1, unsafe_shutdowns: 0 }
    }
}

impl Health {
    pub(super) fn power_cycle(&mut self, orderly: bool) {
        self.power_cycles += 1;
        self.unsafe_shutdowns += u64::from(!orderly);
    }
}

impl Admin {
    /// Critical warnings in effect now.
    pub(super) fn warnings(&self) -> CriticalWarning {
        CriticalWarning::new().with_temperature(self.features.temperature_out_of_bounds(TEMPERATURE))
    }

    pub(super) fn smart_log(&self, machine: &dyn Machine) -> SmartHealthInformation {
        let IoCounters { bytes_read, bytes_written, read_commands, write_commands, busy } =
            machine.io_counters();
        let data_units = |bytes: u64| SmartHealthInformation::data_units(bytes.into()).into();
        SmartHealthInformation {
            critical_warning: self.warnings(),
            composite_temperature: TEMPERATURE.to_le_bytes(),
            available_spare: 100,
            available_spare_threshold: 10,
            // Endurance is the disk's own affair: nothing is known to be used up.
            percentage_used: 0,
            data_units_read: data_units(bytes_read),
            data_units_written: data_units(bytes_written),
            host_read_commands: read_commands.into(),
            host_write_commands: write_commands.into(),
            // Minutes.
            controller_busy_time: (busy.as_secs() / 60).into(),
            power_cycles: self.health.power_cycles.into(),
            power_on_hours: (self.subsystem().power_on_time().as_secs() / 3600).into(),
            unsafe_shutdowns: self.health.unsafe_shutdowns.into(),
            media_and_data_integrity_errors: self.subsystem().media_errors().into(),
            number_of_error_information_log_entries: self.errors.count().into(),
            ..Default::default()
        }
    }
}
