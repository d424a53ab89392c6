//! The Error Information log (NVMe Base 2.0c, 5.16.1.2).

use nvme_spec::Status;
use nvme_spec::log_page::{ErrorInformation, ParameterErrorLocation};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

/// Entries in the log (ELPE + 1).
pub const ERROR_LOG_ENTRIES: usize = 64;

/// Says "none" where an entry names a queue or a command.
const NONE: u16 = 0xffff;

/// A command that ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// Its submission queue.
    pub sqid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
    /// The parameter to blame, or [`ParameterErrorLocation::NONE`].
    pub location: ParameterErrorLocation,
    /// First logical block that the error is about; 0 if none is.
    pub lba: u64,
    /// The command's namespace; 0 if it has none.
    pub nsid: u32,
}

/// The most recent errors, and how many there have ever been.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// Newest first.
    entries: VecDeque<ErrorInformation>,
    /// Survives resets, so that an entry is never taken for another.
    count: u64,
}

impl ErrorLog {
    /// Enters an error and returns the status that its command is completed with: there is more to know.
    pub(super) fn record(&mut self, error: CommandError) -> Status {
        let status = error.status.with_more();
        let mut entry = ErrorInformation {
            sqid: error.sqid,
            cid: error.cid,
            parameter_error_location: error.location,
            lba: error.lba,
            nsid: error.nsid,
            ..Default::default()
        };
        // The phase tag is the queue's affair, and left out.
        entry.set_status(status, false);
        self.push(entry);
        status
    }

    /// Enters an error event, which is about no command.
    pub(super) fn record_event(&mut self, sqid: Option<u16>) {
        self.push(ErrorInformation {
            sqid: sqid.unwrap_or(NONE),
            cid: NONE,
            parameter_error_location: ParameterErrorLocation::NONE,
            ..Default::default()
        });
    }

    fn push(&mut self, mut entry: ErrorInformation) {
        self.count = self.count.saturating_add(1);
        entry.error_count = self.count;
        self.entries.truncate(ERROR_LOG_ENTRIES - 1);
        self.entries.push_front(entry);
    }

    /// Removes the entries, as power cycles and Controller Level Resets do.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Errors ever entered.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The log page: as many entries as it ever has, those not in use all zero.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_LOG_ENTRIES * size_of::<ErrorInformation>()];
        for (slot, entry) in page.chunks_exact_mut(size_of::<ErrorInformation>()).zip(&self.entries) {
            slot.copy_from_slice(entry.as_bytes());
        }
        page
    }
}
