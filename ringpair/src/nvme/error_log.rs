//! `ringpair nvme error-log`: the Error Information log page.
//!
//! A controller should clear it at a reset (NVMe Base 2.0, 5.16.1.2), and taking a controller resets it: those that do
//! show what went wrong since then. How many errors there have ever been is in the SMART log page.

use super::log_page;
use crate::query::Query;
use anyhow::Result;
use nvme_spec::log_page::{ErrorInformation, ParameterErrorLocation, lid};
use nvme_vfio::Controller;
use serde::Serialize;
use std::fmt;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Prints it.
///
/// # Errors
///
/// The target cannot be reached, or does not have the log page.
pub fn run(query: &Query) -> Result<()> {
    let entries = query.ask(entries)?;
    let target = &query.target;
    let text = if entries.is_empty() {
        format!("{target}: no errors since it was reset, as it is when it is opened")
    } else {
        let lines: Vec<_> = entries.iter().map(|entry| format!("  {entry}")).collect();
        format!("{target}, the newest error first\n{}", lines.join("\n"))
    };
    query.print(&entries, text)
}

/// The entries that are in use, the newest first.
fn entries(controller: &Controller) -> Result<Vec<Entry>> {
    let count = controller.identify().elpe;
    let mut page = vec![ErrorInformation::new_zeroed(); usize::from(count) + 1];
    log_page::read(controller, lid::ERROR_INFORMATION, page.as_mut_bytes())?;
    Ok(page.iter().filter(|entry| entry.error_count != 0).map(Entry::new).collect())
}

#[derive(Debug, Serialize)]
struct Entry {
    error_count: u64,
    status: String,
    /// Submission queue, of errors that are of one.
    sqid: Option<u16>,
    /// Command identifier, of errors that are of a command.
    cid: Option<u16>,
    nsid: u32,
    lba: u64,
    /// Byte and bit of the command that is wrong.
    parameter_byte: Option<u8>,
    parameter_bit: Option<u8>,
}

impl Entry {
    fn new(entry: &ErrorInformation) -> Self {
        let numbered = |number: u16| (number != u16::MAX).then_some(number);
        let location = Some(entry.parameter_error_location).filter(|at| *at != ParameterErrorLocation::NONE);
        Self {
            error_count: entry.error_count,
            status: entry.status().to_string(),
            sqid: numbered(entry.sqid),
            cid: numbered(entry.cid),
            nsid: entry.nsid,
            lba: entry.lba,
            parameter_byte: location.map(|at| at.byte()),
            parameter_bit: location.map(|at| at.bit()),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error_count, self.status)?;
        self.sqid.iter().try_for_each(|sqid| write!(f, ", queue {sqid}"))?;
        self.cid.iter().try_for_each(|cid| write!(f, ", command {cid}"))?;
        if self.nsid != 0 {
            write!(f, ", namespace {}, block {}", self.nsid, self.lba)?;
        }
        if let (Some(byte), Some(bit)) = (self.parameter_byte, self.parameter_bit) {
            write!(f, ", wrong in byte {byte} bit {bit} of the command")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_spec::{AdminOpcode, Status, SubmissionQueueEntry};
    use nvme_vfio::AdminData;

    #[test]
    fn a_command_that_failed_is_in_the_log() {
        let asked = Query::to("null:1G").ask(|controller| {
            let before = entries(controller)?.len();
            let format = SubmissionQueueEntry::new(AdminOpcode::FORMAT_NVM, 0).with_nsid(1);
            controller.admin(format, AdminData::None).unwrap_err();
            Ok((before, entries(controller)?))
        });
        let (before, after) = asked.unwrap();
        assert_eq!(after.len(), before + 1);
        assert_eq!((after[0].sqid, after[0].parameter_byte), (Some(0), Some(0)));
        assert!(after[0].status.contains("Invalid Command Opcode"), "{}", after[0].status);
    }

    #[test]
    fn errors_of_no_command_name_none() {
        let mut entry = ErrorInformation {
            error_count: 3,
            sqid: u16::MAX,
            cid: u16::MAX,
            parameter_error_location: ParameterErrorLocation::NONE,
            ..Default::default()
        };
        entry.set_status(Status::INVALID_FIELD, false);
        let text = Entry::new(&entry).to_string();
        assert!(text.starts_with("3: Invalid Field"), "{text}");
        assert!(!text.contains("queue") && !text.contains("command ") && !text.contains("byte"), "{text}");
    }
}
