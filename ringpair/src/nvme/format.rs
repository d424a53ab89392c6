//! `ringpair nvme format`: Format NVM (NVMe Base 2.0, 5.14).

use crate::controller::Opened;
use crate::failure::Usage;
use crate::identify::size;
use crate::interruption::Interruption;
use crate::target::Target;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use nvme_spec::admin_command::FormatNvm;
use nvme_spec::identify::IdentifyNamespace;
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Controller, Options};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

/// Options of `ringpair nvme format`.
#[derive(clap::Args)]
pub struct Arguments {
    /// BDF or nvme://BDF[/NSID], vfio-user:SOCKET[/NSID], or a DISK, for which a controller is started in this process
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Size of the blocks, in bytes [default: as it is]
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// How the data is erased
    #[arg(long, value_name = "HOW", default_value = "none")]
    erase: Erase,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u32,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// SES, Secure Erase Settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Erase {
    /// As the drive likes: it may still be there, but is not to be read
    None,
    /// Overwritten or otherwise made unreadable
    UserData,
    /// By forgetting the key
    Cryptographic,
}

/// Asks, and formats.
///
/// # Errors
///
/// The target cannot be reached, the answer is not yes, or the controller refuses.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.yes && !std::io::stdin().is_terminal() {
        let message = format!("format erases {}: add --yes if it may", arguments.target);
        return Err(Usage(message).into());
    }
    let interruption = Interruption::watch()?;
    let opened = Opened::target(&arguments.target, Options::default())?;
    let done = format(&opened.controller, arguments, &interruption);
    let closed = opened.close();
    super::print(&done.and_then(|done| closed.map(|()| done))?)
}

fn format(controller: &Controller, arguments: &Arguments, interruption: &Interruption) -> Result<String> {
    let nsid = only_namespace(controller, &arguments.target)?;
    let namespace = controller.identify_namespace(nsid)?;
    ensure!(namespace.nsze != 0, "{}: there is no namespace {nsid}", arguments.target);
    let format = lba_format(&namespace, arguments.block_size)
        .map_err(|error| anyhow!("{}: namespace {nsid} {error}", arguments.target))?;
    let erase = arguments.erase as u8;
    if !arguments.yes {
        ask(controller, nsid, &namespace, arguments.erase, interruption)?;
    }
    interruption.check()?;
    let dwords = FormatNvm::new().with_lbafl(format & 0xf).with_lbafu(format >> 4).with_ses(erase);
    let command = SubmissionQueueEntry::new(AdminOpcode::FORMAT_NVM, 0).with_nsid(nsid).with_dwords(dwords);
    let limit = Duration::from_secs(arguments.limit.into());
    controller.admin_within(command, AdminData::None, limit)?;
    let after = controller.identify_namespace(nsid)?;
    Ok(format!("{}: namespace {nsid} is formatted: {}", arguments.target, shape(&after)))
}

/// The namespace that the target names, or the only one: which of several is to be erased is not guessed.
fn only_namespace(controller: &Controller, target: &Target) -> Result<u32> {
    if let Some(nsid) = target.nsid() {
        return Ok(nsid);
    }
    match controller.namespace_ids()?.as_slice() {
        [] => bail!("{target}: no namespaces"),
        [nsid] => Ok(*nsid),
        several => {
            let several: Vec<_> = several.iter().map(u32::to_string).collect();
            let message =
                format!("{target} has namespaces {}: say which, as in TARGET/1", several.join(", "));
            Err(Usage(message).into())
        }
    }
}

/// The number of the format with blocks of this size and no metadata; without a size, of the one that it has.
fn lba_format(namespace: &IdentifyNamespace, block_size: Option<u32>) -> Result<u8, String> {
    let lbads = match block_size {
        Some(bytes) => u64::from(bytes),
        None => namespace.formatted_lba().lba_data_size().ok_or("has blocks of no size")?,
    };
    let formats = namespace.lbaf.iter().take(namespace.number_of_lba_formats() as usize).enumerate();
    let plain: Vec<_> = formats
        .filter(|(_, format)| format.ms() == 0)
        .filter_map(|(number, format)| Some((u8::try_from(number).ok()?, format.lba_data_size()?)))
        .collect();
    plain.iter().find(|(_, bytes)| *bytes == lbads).map(|(number, _)| *number).ok_or_else(|| {
        let sizes: Vec<_> = plain.iter().map(|(_, bytes)| bytes.to_string()).collect();
        format!("cannot have blocks of {lbads} bytes without metadata: it has {}", sizes.join(", "))
    })
}

/// Its size in words.
fn shape(namespace: &IdentifyNamespace) -> String {
    let block_size = namespace.formatted_lba().lba_data_size().unwrap_or(0);
    let capacity = namespace.nsze.saturating_mul(block_size);
    format!("{}, blocks of {block_size} bytes", size(capacity))
}

/// Has the person confirm what will be gone.
fn ask(
    controller: &Controller,
    nsid: u32,
    namespace: &IdentifyNamespace,
    erase: Erase,
    interruption: &Interruption,
) -> Result<()> {
    let identify = controller.identify();
    let all = identify.fna.format_all() || erase != Erase::None && identify.fna.secure_erase_all();
    let what =
        if all { "ALL NAMESPACES of".into() } else { format!("namespace {nsid} ({}) of", shape(namespace)) };
    eprint!(
        "This erases {what} {}, model {}, serial number {}. Type `yes` to go on: ",
        controller.name(),
        identify.mn,
        identify.sn
    );
    std::io::stderr().flush().context("asking")?;
    // Reading goes on after a signal; waiting does not.
    let stdin = std::io::stdin();
    while let Err(error) = rustix::event::poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
        interruption.check()?;
        ensure!(error == Errno::INTR, "waiting for the answer: {error}");
    }
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("reading the answer")?;
    ensure!(answer.trim() == "yes", "nothing was formatted: the answer was not `yes`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_spec::identify::{Flbas, LbaFormat};

    /// 512 bytes with and without metadata, and 4096 bytes, which it has now.
    fn namespace() -> IdentifyNamespace {
        let mut namespace = IdentifyNamespace { nsze: 1, nlbaf: 2, ..Default::default() };
        namespace.lbaf[0] = LbaFormat::of(9).with_ms(8);
        namespace.lbaf[1] = LbaFormat::of(9);
        namespace.lbaf[2] = LbaFormat::of(12);
        namespace.lbaf[3] = LbaFormat::of(16);
        namespace.flbas = Flbas::new().with_format_lower(2);
        namespace
    }

    #[test]
    fn a_format_is_chosen_by_its_block_size_and_has_no_metadata() {
        assert_eq!(lba_format(&namespace(), Some(512)), Ok(1));
        assert_eq!(lba_format(&namespace(), Some(4096)), Ok(2));
    }

    #[test]
    fn without_a_block_size_it_stays_as_it_is() {
        assert_eq!(lba_format(&namespace(), None), Ok(2));
    }

    #[test]
    fn a_block_size_that_is_not_there_is_refused_with_those_that_are() {
        let error = lba_format(&namespace(), Some(65536)).unwrap_err();
        assert!(error.contains("65536") && error.contains("512, 4096"), "{error}");
    }

    #[test]
    fn erasing_is_set_by_its_number_in_the_specification() {
        assert_eq!([Erase::None, Erase::UserData, Erase::Cryptographic].map(|erase| erase as u8), [0, 1, 2]);
    }
}
