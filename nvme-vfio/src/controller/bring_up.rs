//! The steps between a controller in any state and one that is ready (Base Specification, "Controller
//! Initialization").

use std::time::Duration;

use nvme_spec::admin_command::{Identify, SetFeatures};
use nvme_spec::identify::{IdentifyController, cns};
use nvme_spec::registers::{Cap, ControllerConfiguration};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, SubmissionQueueEntry};
use zerocopy::{FromZeros, IntoBytes};

use crate::admin::{AdminData, AdminQueue};
use crate::error::Error;
use crate::options::Options;
use crate::registers::Registers;

/// The memory page size: 4 KiB, or the smallest that the controller has.
pub(super) fn memory_page_size(registers: &Registers, cap: Cap) -> Result<u64, Error> {
    let unsupported = |what: String| Err(Error::Unsupported { name: registers.name(), what });
    if cap.css() & (Cap::CSS_NVM | Cap::CSS_IO_COMMAND_SETS) == 0 {
        return unsupported(format!("the controller has no NVM command set (CAP.CSS = {:#04x})", cap.css()));
    }
    if cap.maximum_queue_entries() < 2 {
        return unsupported("the controller has queues of one entry (CAP.MQES = 0)".into());
    }
    if cap.mpsmin() > cap.mpsmax() {
        return unsupported(format!("CAP.MPSMIN = {} is above CAP.MPSMAX = {}", cap.mpsmin(), cap.mpsmax()));
    }
    Ok(cap.memory_page_size_minimum())
}

/// Disables a controller; if it does not let itself be disabled, or insists on its fatal error, resets the function.
pub(super) fn disable_or_reset(registers: &Registers, timeout: Duration) -> Result<(), Error> {
    let disabled = registers.disable(timeout).and_then(|()| registers.check());
    match disabled {
        Ok(()) => Ok(()),
        Err(error @ (Error::Timeout { .. } | Error::Fatal { .. })) => {
            tracing::warn!("{error}; resetting the function");
            registers.transport().reset().map_err(|_| error)?;
            registers.wait_ready(false, timeout)?;
            registers.check()
        }
        Err(error) => Err(error),
    }
}

pub(super) fn enable(
    registers: &Registers,
    cap: Cap,
    memory_page_size: u64,
    timeout: Duration,
) -> Result<(), Error> {
    let css = if cap.css() & Cap::CSS_NVM != 0 {
        ControllerConfiguration::CSS_NVM
    } else {
        ControllerConfiguration::CSS_ALL
    };
    let cc = ControllerConfiguration::new()
        .with_css(css)
        .with_mps((memory_page_size.trailing_zeros() - 12) as u8)
        .with_iosqes(size_of::<SubmissionQueueEntry>().trailing_zeros() as u8)
        .with_iocqes(size_of::<CompletionQueueEntry>().trailing_zeros() as u8)
        .with_en(true);
    registers.set_cc(cc)?;
    registers.wait_ready(true, timeout)
}

/// Asks the controller about itself, and checks that it has entries of the usual sizes.
pub(super) fn identify_controller(
    registers: &Registers,
    admin: &mut AdminQueue,
    limit: Duration,
) -> Result<Box<IdentifyController>, Error> {
    let mut identify = Box::new(IdentifyController::new_zeroed());
    let data = AdminData::FromController(identify.as_mut_bytes());
    admin.run(identify_command(cns::CONTROLLER, 0), data, limit)?;
    // Powers of two: 64 and 16 bytes.
    for (name, sizes, size) in [("submission", identify.sqes, 6), ("completion", identify.cqes, 4)] {
        if sizes.minimum() > size {
            let what = format!("{name} queue entries of 2^{} bytes are not supported", sizes.minimum());
            return Err(Error::Unsupported { name: registers.name(), what });
        }
    }
    Ok(identify)
}

/// MDTS and what was asked for, whichever is less; in whole memory pages.
pub(super) fn max_transfer(
    identify: &IdentifyController,
    cap: Cap,
    options: &Options,
    memory_page_size: u64,
) -> u32 {
    let limit = identify.maximum_data_transfer_size(cap.memory_page_size_minimum()).unwrap_or(u64::MAX);
    let wanted = u64::from(options.max_transfer).min(limit).max(memory_page_size);
    (wanted / memory_page_size * memory_page_size) as u32
}

pub(crate) fn identify_command(cns: u8, nsid: u32) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0)
        .with_nsid(nsid)
        .with_dwords(Identify::new().with_cns(cns))
}

pub(super) fn set_features(fid: u8, value: u32) -> SubmissionQueueEntry {
    let command = SubmissionQueueEntry::new(AdminOpcode::SET_FEATURES, 0);
    SubmissionQueueEntry { cdw11: value, ..command.with_dwords(SetFeatures::new().with_fid(fid)) }
}
