//! Get Log Page (NVMe Base 2.0c, 5.16).

use super::fault::{Fault, field};
use super::{Admin, HostBuffer, Machine, Outcome};
use nvme_spec::admin_command::{GetLogPage, GetLogPageCdw14};
use nvme_spec::{NSID_BROADCAST, Status, SubmissionQueueEntry};

/// NSIDs that one page of a list has room for.
const LIST_ENTRIES: usize = 1024;

/// The log pages that there are (NVMe Base 2.0c, Figure 202), all about the controller as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogPage {
    SupportedLogPages = 0x00,
    ChangedNamespaces = 0x04,
    CommandEffects = 0x05,
    FeatureEffects = 0x12,
    ManagementEffects = 0x13,
}

impl LogPage {
    pub(super) const ALL: [Self; 5] = [
        Self::SupportedLogPages,
        Self::ChangedNamespaces,
        Self::CommandEffects,
        Self::FeatureEffects,
        Self::ManagementEffects,
    ];

    fn from_identifier(identifier: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&log_page| log_page as u8 == identifier)
    }
}

impl Admin {
    pub(super) fn get_log_page(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Result<Outcome, Fault> {
        let dwords = sqe.dwords::<GetLogPage>();
        let log_page = LogPage::from_identifier(dwords.lid())
            .ok_or_else(|| Fault::new(Status::INVALID_LOG_PAGE, field::CDW10))?;
        // There is nothing that a single namespace has a page of.
        if !matches!(sqe.nsid, 0 | NSID_BROADCAST) {
            return Err(Fault::invalid_field(field::NSID));
        }
        let len = self.log_page_transfer(dwords)?;
        let page = self.log_page(log_page, sqe, machine)?;
        let rest = log_page_rest(sqe, dwords.lpo(), &page)?;
        let mut data = rest[..rest.len().min(len)].to_vec();
        // Past its end a page is undefined; the host gets zeroes.
        data.resize(len, 0);
        host.write(&data)?;
        if !dwords.rae() {
            self.log_page_read(log_page);
        }
        Ok(Outcome::DONE)
    }

    /// Bytes to transfer.
    fn log_page_transfer(&self, dwords: GetLogPage) -> Result<usize, Fault> {
        usize::try_from(dwords.number_of_bytes())
            .ok()
            .filter(|&len| len <= self.max_transfer())
            .ok_or_else(|| Fault::invalid_field(field::CDW10 + 2))
    }

    fn log_page(
        &self,
        log_page: LogPage,
        sqe: &SubmissionQueueEntry,
        machine: &dyn Machine,
    ) -> Result<Vec<u8>, Fault> {
        Ok(match log_page {
            LogPage::SupportedLogPages => self.supported_log_pages(),
            LogPage::ChangedNamespaces => self.changed_namespaces_page(),
            LogPage::CommandEffects => {
                // The NVM command set is the only one.
                if GetLogPageCdw14::from_bits(sqe.cdw14).csi() != 0 {
                    return Err(Fault::invalid_field(field::CDW14 + 3));
                }
                self.command_effects()
            }
            LogPage::FeatureEffects => self.feature_effects(),
            // No NVMe-MI command is supported.
            LogPage::ManagementEffects => vec![0; 4096],
        })
    }

    /// A page has been read, and its events are not to be retained.
    fn log_page_read(&mut self, log_page: LogPage) {
        if log_page == LogPage::ChangedNamespaces {
            self.changed_namespaces.clear();
        }
        self.events.log_page_read(log_page as u8);
    }

    /// Changed Namespace List (04h; NVMe Base 2.0c, 5.16.1.5), or FFFFFFFFh where it would not fit.
    fn changed_namespaces_page(&self) -> Vec<u8> {
        let mut page = if self.changed_namespaces.len() > LIST_ENTRIES {
            u32::MAX.to_le_bytes().to_vec()
        } else {
            self.changed_namespaces.iter().flat_map(|nsid| nsid.to_le_bytes()).collect()
        };
        page.resize(LIST_ENTRIES * 4, 0);
        page
    }
}

/// What of a page lies past the offset that the command names.
fn log_page_rest<'a>(sqe: &SubmissionQueueEntry, offset: u64, page: &'a [u8]) -> Result<&'a [u8], Fault> {
    // No page is indexed, and offsets are in whole dwords.
    if GetLogPageCdw14::from_bits(sqe.cdw14).ot() {
        return Err(Fault::invalid_field(field::CDW14 + 2).at_bit(7));
    }
    usize::try_from(offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(4))
        .and_then(|offset| page.get(offset..))
        .ok_or_else(|| Fault::invalid_field(field::CDW12))
}
