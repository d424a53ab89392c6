//! The SMART / Health Information log (NVMe Base 2.0c, 5.16.1.3).

use super::Admin;
use bitflags::bitflags;

/// The composite temperature in kelvins. A constant, since there is nothing to measure: 40 °C, what an unhurried
/// drive has, so that monitoring neither warns nor takes it for broken. Hosts can still move the thresholds past it
/// and get the event.
pub(super) const TEMPERATURE: u16 = 313;

/// Warning Composite Temperature Threshold in kelvins (WCTEMP), the over temperature threshold's default: 70 °C.
pub(super) const WARNING_TEMPERATURE: u16 = 343;

/// Critical Composite Temperature Threshold in kelvins (CCTEMP): 80 °C.
pub(super) const CRITICAL_TEMPERATURE: u16 = 353;

bitflags! {
    /// Critical Warning, as in the log page's byte 0 and in Asynchronous Event Configuration's bits 7:0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Warnings: u8 {
        /// A temperature is past its threshold.
        const TEMPERATURE = 1 << 1;
        /// Reliability is degraded (bit 2), the medium went read-only (3), the volatile cache's backup failed (4).
        const UNRELIABLE = 1 << 2 | 1 << 3 | 1 << 4;
    }
}

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
    pub(super) fn warnings(&self) -> Warnings {
        let mut warnings = Warnings::empty();
        warnings.set(Warnings::TEMPERATURE, self.features.temperature_out_of_bounds(TEMPERATURE));
        warnings
    }
}
