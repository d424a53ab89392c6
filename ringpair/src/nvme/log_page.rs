//! Get Log Page (NVMe Base 2.0, 5.16).

use anyhow::Result;
use nvme_spec::admin_command::GetLogPage;
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Controller};

/// Fills `page` with the first bytes of a controller's log page. Its length is a multiple of 4.
///
/// # Errors
///
/// The controller does not answer, or refuses.
pub fn read(controller: &Controller, lid: u8, page: &mut [u8]) -> Result<()> {
    // Without extended data, controllers know no log page offset, and pages that need one are shorter than MDTS.
    let pieces = if controller.identify().lpa.extended_data() { controller.max_transfer() } else { u32::MAX };
    let mut offset = 0;
    for piece in page.chunks_mut(pieces as usize & !3) {
        let dwords =
            GetLogPage::new().with_lid(lid).with_number_of_bytes(piece.len() as u64).with_lpo(offset);
        offset += piece.len() as u64;
        let command = SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 0).with_nsid(u32::MAX);
        controller.admin(command.with_dwords(dwords), AdminData::FromController(piece))?;
    }
    Ok(())
}
