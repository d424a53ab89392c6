//! `ringpair nvme smart`: the SMART / Health Information log page.

use super::log_page;
use crate::query::Query;
use anyhow::Result;
use nvme_spec::log_page::{SmartHealthInformation, lid};
use serde::Serialize;
use std::fmt;
use zerocopy::IntoBytes as _;

/// Prints it.
///
/// # Errors
///
/// The target cannot be reached, or does not have the log page.
pub fn run(query: &Query) -> Result<()> {
    let health = query.ask(|controller| {
        let mut page = SmartHealthInformation::default();
        log_page::read(controller, lid::SMART_HEALTH_INFORMATION, page.as_mut_bytes())?;
        Ok(Health::new(&page))
    })?;
    query.print(&health, format_args!("{}\n{health}", query.target))
}

#[derive(Debug, Serialize)]
struct Health {
    critical_warnings: Vec<&'static str>,
    /// In degrees Celsius; of a controller that does not measure it, none.
    temperature: Option<i32>,
    /// The same of each sensor that is there, by its number.
    temperature_sensors: Vec<(usize, i32)>,
    available_spare_percent: u8,
    available_spare_threshold_percent: u8,
    percentage_used: u8,
    /// In thousands of 512 bytes.
    data_units_read: u128,
    data_units_written: u128,
    host_read_commands: u128,
    host_write_commands: u128,
    controller_busy_minutes: u128,
    power_cycles: u128,
    power_on_hours: u128,
    unsafe_shutdowns: u128,
    media_errors: u128,
    error_log_entries: u128,
    warning_temperature_minutes: u32,
    critical_temperature_minutes: u32,
}

impl Health {
    fn new(page: &SmartHealthInformation) -> Self {
        let sensors = (1..).zip(page.temperature_sensors);
        Self {
            critical_warnings: page.critical_warning.causes().collect(),
            temperature: celsius(page.composite_temperature_kelvin()),
            temperature_sensors: sensors
                .filter_map(|(sensor, kelvin)| Some((sensor, celsius(kelvin)?)))
                .collect(),
            available_spare_percent: page.available_spare,
            available_spare_threshold_percent: page.available_spare_threshold,
            percentage_used: page.percentage_used,
            data_units_read: page.data_units_read.get(),
            data_units_written: page.data_units_written.get(),
            host_read_commands: page.host_read_commands.get(),
            host_write_commands: page.host_write_commands.get(),
            controller_busy_minutes: page.controller_busy_time.get(),
            power_cycles: page.power_cycles.get(),
            power_on_hours: page.power_on_hours.get(),
            unsafe_shutdowns: page.unsafe_shutdowns.get(),
            media_errors: page.media_and_data_integrity_errors.get(),
            error_log_entries: page.number_of_error_information_log_entries.get(),
            warning_temperature_minutes: page.warning_composite_temperature_time,
            critical_temperature_minutes: page.critical_composite_temperature_time,
        }
    }
}

/// 0 kelvins mean: not measured.
fn celsius(kelvin: u16) -> Option<i32> {
    (kelvin != 0).then(|| i32::from(kelvin) - 273)
}

/// Data units, and about how much that is.
fn data_units(units: u128) -> String {
    let mut value = units as f64 * 512_000.0;
    let mut unit = "bytes";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    format!("{units} ({value:.1} {unit})")
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warnings =
            if self.critical_warnings.is_empty() { "none".into() } else { self.critical_warnings.join("; ") };
        let temperature = |celsius| format!("{celsius} °C");
        let rows = [
            ("critical warnings", warnings),
            ("temperature", self.temperature.map_or_else(|| "not measured".into(), temperature)),
            ("available spare", format!("{} %", self.available_spare_percent)),
            ("available spare threshold", format!("{} %", self.available_spare_threshold_percent)),
            ("endurance used", format!("{} %", self.percentage_used)),
            ("data units read", data_units(self.data_units_read)),
            ("data units written", data_units(self.data_units_written)),
            ("host read commands", self.host_read_commands.to_string()),
            ("host write commands", self.host_write_commands.to_string()),
            ("controller busy", format!("{} minutes", self.controller_busy_minutes)),
            ("power cycles", self.power_cycles.to_string()),
            ("power on hours", self.power_on_hours.to_string()),
            ("unsafe shutdowns", self.unsafe_shutdowns.to_string()),
            ("media errors", self.media_errors.to_string()),
            ("error log entries", self.error_log_entries.to_string()),
            ("too warm", format!("{} minutes", self.warning_temperature_minutes)),
            ("critically warm", format!("{} minutes", self.critical_temperature_minutes)),
        ];
        let sensors = self.temperature_sensors.iter();
        let sensors =
            sensors.map(|(sensor, celsius)| (format!("temperature sensor {sensor}"), temperature(*celsius)));
        let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(sensors);
        let lines: Vec<_> = rows.map(|(name, value)| format!("  {name:25} {value}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_spec::log_page::CriticalWarning;

    #[test]
    fn the_page_is_shown_in_units_that_people_use() {
        let mut page = SmartHealthInformation {
            critical_warning: CriticalWarning::new().with_read_only(true).with_temperature(true),
            percentage_used: 103,
            data_units_written: 2_000_000_u64.into(),
            ..Default::default()
        };
        page.set_composite_temperature_kelvin(310);
        page.temperature_sensors[2] = 270;
        let text = Health::new(&page).to_string();
        for part in [
            "read-only",
            "a temperature",
            "37 °C",
            "103 %",
            "2000000 (1.0 TB)",
            "temperature sensor 3",
            "-3 °C",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("sensor 1"), "{text}");
    }

    #[test]
    fn what_is_not_measured_is_not_absolute_zero() {
        let text = Health::new(&SmartHealthInformation::default()).to_string();
        assert!(text.contains("not measured") && !text.contains("-273"), "{text}");
    }
}
