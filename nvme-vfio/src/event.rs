//! Asynchronous events (Base Specification, Asynchronous Event Request command).

use std::fmt;

/// An event that the controller reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsynchronousEvent {
    /// Asynchronous Event Type: 0 error, 1 SMART / health, 2 notice, 6 I/O command set, 7 vendor specific.
    pub event_type: u8,
    /// Asynchronous Event Information, whose meaning depends on the type.
    pub information: u8,
    /// The log page that has more on it; reading that re-arms the event.
    pub log_page: u8,
}

impl AsynchronousEvent {
    /// From dword 0 of the command's completion.
    pub const fn from_dw0(dw0: u32) -> Self {
        Self { event_type: (dw0 & 7) as u8, information: (dw0 >> 8) as u8, log_page: (dw0 >> 16) as u8 }
    }

    /// Whether it says that a namespace came, went, or changed (its size, its format).
    pub const fn is_namespace_attribute_changed(&self) -> bool {
        self.event_type == 2 && self.information == 0
    }
}

impl fmt::Display for AsynchronousEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event_type, information, log_page } = self;
        let what = match (event_type, information) {
            (0, 0) => "write to an invalid doorbell register",
            (0, 1) => "invalid doorbell write value",
            (0, 2) => "diagnostic failure",
            (0, 3) => "persistent internal error",
            (0, 4) => "transient internal error",
            (0, 5) => "firmware image load error",
            (1, 0) => "NVM subsystem reliability is degraded",
            (1, 1) => "temperature threshold crossed",
            (1, 2) => "spare is below its threshold",
            (2, 0) => "namespace attribute changed",
            (2, 1) => "firmware activation starting",
            (2, 2) => "telemetry log changed",
            (2, 3) => "asymmetric namespace access change",
            _ => {
                return write!(
                    f,
                    "event of type {event_type}, information {information:02X}h, log {log_page:02X}h"
                );
            }
        };
        f.write_str(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_namespace_is_recognised() {
        let event = AsynchronousEvent::from_dw0(0x0004_0002);
        assert!(event.is_namespace_attribute_changed());
        assert_eq!((event.log_page, event.to_string().as_str()), (4, "namespace attribute changed"));
    }

    #[test]
    fn an_invalid_doorbell_register_is_named() {
        let event = AsynchronousEvent::from_dw0(0x0001_0000);
        assert_eq!(event.to_string(), "write to an invalid doorbell register");
    }
}
