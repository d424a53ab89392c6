//! Get Log Page (NVMe Base 2.0c, 5.16).

use super::fault::{Fault, field};
use super::support::LOG_PAGES;
use super::{Admin, HostBuffer, Machine, Outcome};
use nvme_spec::admin_command::{GetLogPage, GetLogPageCdw14};
use nvme_spec::identify::{NamespaceList, csi};
use nvme_spec::log_page::{ActiveFirmwareInfo, FirmwareSlotInformation, SupportedLogPages, lid};
use nvme_spec::{NSID_BROADCAST, Status, SubmissionQueueEntry};
use zerocopy::IntoBytes;

impl Admin {
    pub(super) fn get_log_page(
        &mut self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
        machine: &dyn Machine,
    ) -> Result<Outcome, Fault> {
        let dwords = sqe.dwords::<GetLogPage>();
        let lid = dwords.lid();
        let page = self.log_page(lid, sqe, machine)?;
        // There is nothing that a single namespace has a page of.
        if !matches!(sqe.nsid, 0 | NSID_BROADCAST) {
            return Err(Fault::invalid_field(field::NSID));
        }
        let len = self.log_page_transfer(dwords)?;
        let rest = log_page_rest(sqe, dwords.lpo(), &page)?;
        let mut data = rest[..rest.len().min(len)].to_vec();
        // Past its end a page is undefined; the host gets zeroes.
        data.resize(len, 0);
        host.write(&data)?;
        if !dwords.rae() {
            self.log_page_read(lid);
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

    fn log_page(&self, lid: u8, sqe: &SubmissionQueueEntry, machine: &dyn Machine) -> Result<Vec<u8>, Fault> {
        Ok(match lid {
            lid::SUPPORTED_LOG_PAGES => SupportedLogPages::from_iter(LOG_PAGES).as_bytes().to_vec(),
            lid::ERROR_INFORMATION => self.errors.page(),
            lid::SMART_HEALTH_INFORMATION => self.smart_log(machine).as_bytes().to_vec(),
            lid::FIRMWARE_SLOT_INFORMATION => self.firmware_slots().as_bytes().to_vec(),
            lid::CHANGED_NAMESPACE_LIST => self.changed_namespace_list().as_bytes().to_vec(),
            lid::COMMANDS_SUPPORTED_AND_EFFECTS => {
                if GetLogPageCdw14::from_bits(sqe.cdw14).csi() != csi::NVM {
                    return Err(Fault::invalid_field(field::CDW14 + 3));
                }
                self.command_effects().as_bytes().to_vec()
            }
            lid::FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS => self.feature_effects().as_bytes().to_vec(),
            // No NVMe-MI command is supported.
            lid::NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS => vec![0; 4096],
            _ => return Err(Fault::new(Status::INVALID_LOG_PAGE, field::CDW10)),
        })
    }

    /// A page has been read, and its events are not to be retained.
    fn log_page_read(&mut self, lid: u8) {
        if lid == lid::CHANGED_NAMESPACE_LIST {
            self.changed_namespaces.clear();
        }
        self.events.log_page_read(lid);
    }

    /// Firmware Slot Information (03h): one slot, active.
    fn firmware_slots(&self) -> FirmwareSlotInformation {
        let afi = ActiveFirmwareInfo::new().with_active_slot(1);
        let mut page = FirmwareSlotInformation { afi, ..Default::default() };
        page.frs[0] = self.firmware_revision();
        page
    }

    /// Changed Namespace List (04h).
    fn changed_namespace_list(&self) -> NamespaceList {
        // MAX_NSID makes sure that there is room.
        self.changed_namespaces.iter().copied().collect()
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
