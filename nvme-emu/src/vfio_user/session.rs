//! The protocol, without the socket: messages in, replies and [`Call`]s out.

use super::device::Device;
use super::dma;
use super::interrupts;
use super::message::{Command, DeviceInfo, DmaUnmap, Header, parse};
use super::receive::{Malformed, Message, Receiver};
use super::regions;
use super::send::Outbox;
use super::version::{self, Agreement};
use crate::pci::Call;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET};

/// Why [`Session::advance`] has stopped.
#[derive(Debug)]
pub enum Progress {
    /// Nothing complete is left to carry out: read on.
    Empty,
    /// The last call has not been answered.
    Waiting,
    /// The replies must go out before anything else is carried out.
    Full,
    /// Make this call, and say what came of it with [`Session::answered`]; nothing else before.
    Call(Call),
    /// The client does not keep to the protocol: send what there is to send, and hang up.
    Close(Violation),
}

/// What a client can do to be hung up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The stream cannot be followed.
    #[error("a message of {size} bytes (command {command}, id {id}), which none can have")]
    Size {
        /// Of the message.
        size: u32,
        /// Its command number.
        command: u16,
        /// Its identifier.
        id: u16,
    },
    /// Neither a command nor a reply; or a reply, though we ask for nothing.
    #[error("a message that is no command (flags {flags:#x}, command {command})")]
    NoCommand {
        /// Its flags.
        flags: u32,
        /// Its command number.
        command: u16,
    },
    /// Anything else before `VFIO_USER_VERSION`.
    #[error("command {0} before the version is agreed on")]
    NoVersion(u16),
    /// A version that we do not speak, or one that makes no sense.
    #[error("a version that is not 0.x, or whose capabilities cannot be parsed")]
    Version,
}

/// One client's conversation with the device.
#[derive(Default)]
pub struct Session {
    /// What arrives.
    pub receiver: Receiver,
    /// What goes out.
    pub outbox: Outbox,
    /// `None` before the handshake.
    agreement: Option<Agreement>,
    pending: Option<Pending>,
}

/// A command whose calls have not all been answered.
struct Pending {
    command: Header,
    /// Whether one of its calls has been handed out and not been answered.
    called: bool,
    /// What is still to be called, the last first.
    rest: Vec<Call>,
    reply: Reply,
}

/// What a command is replied to with once its calls have succeeded.
enum Reply {
    Done,
    Unmapped(DmaUnmap),
}

/// What a command comes to.
enum Outcome {
    Replied,
    Calls(Vec<Call>, Reply),
}

impl Session {
    /// Carries out what has arrived, in order, until there is a reason to stop.
    pub fn advance(&mut self, device: &impl Device) -> Progress {
        if let Some(progress) = self.next_call() {
            return progress;
        }
        loop {
            if self.outbox.is_full() {
                return Progress::Full;
            }
            let message = match self.receiver.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return Progress::Empty,
                Err(malformed) => return Progress::Close(refuse(malformed, &mut self.outbox)),
            };
            let command = message.header;
            if !command.is_command() {
                return Progress::Close(Violation::NoCommand {
                    flags: command.flags,
                    command: command.command,
                });
            }
            let Some(agreement) = self.agreement else {
                match handshake(message, &mut self.outbox) {
                    Ok(agreement) => self.agreement = Some(agreement),
                    Err(violation) => return Progress::Close(violation),
                }
                continue;
            };
            match carry_out(device, agreement, message, &mut self.outbox) {
                Ok(Outcome::Replied) => {}
                Ok(Outcome::Calls(mut rest, reply)) => {
                    rest.reverse();
                    self.pending = Some(Pending { command, called: false, rest, reply });
                    if let Some(progress) = self.next_call() {
                        return progress;
                    }
                }
                Err(errno) => {
                    tracing::debug!(command = command.command, %errno, "vfio-user command refused");
                    self.outbox.error(&command, errno);
                }
            }
        }
    }

    /// Takes the answer to the last [`Progress::Call`]: an errno on failure.
    pub fn answered(&mut self, answer: Result<(), i32>) {
        match answer {
            Ok(()) => {
                if let Some(pending) = &mut self.pending {
                    pending.called = false;
                }
            }
            Err(errno) => {
                if let Some(pending) = self.pending.take() {
                    self.outbox.error(&pending.command, errno_from(errno));
                }
            }
        }
    }

    /// The next call of the command in hand, or its reply if there is none left.
    fn next_call(&mut self) -> Option<Progress> {
        let pending = self.pending.as_mut()?;
        if pending.called {
            return Some(Progress::Waiting);
        }
        if let Some(call) = pending.rest.pop() {
            pending.called = true;
            return Some(Progress::Call(call));
        }
        match pending.reply {
            Reply::Done => self.outbox.done(&pending.command),
            Reply::Unmapped(unmap) => self.outbox.reply(&pending.command, &unmap),
        }
        self.pending = None;
        None
    }
}

/// An errno out of an answer; `EIO` for what is none.
fn errno_from(errno: i32) -> Errno {
    if (1..4096).contains(&errno) { Errno::from_raw_os_error(errno) } else { Errno::IO }
}

fn refuse(malformed: Malformed, outbox: &mut Outbox) -> Violation {
    let header = malformed.header;
    if header.is_command() {
        outbox.error(&header, Errno::INVAL);
    }
    Violation::Size { size: header.size, command: header.command, id: header.id }
}

fn handshake(message: Message<'_>, outbox: &mut Outbox) -> Result<Agreement, Violation> {
    let command = message.header;
    if Command::from_wire(command.command) != Some(Command::Version) {
        outbox.error(&command, Errno::INVAL);
        return Err(Violation::NoVersion(command.command));
    }
    version::negotiate(&command, message.payload, outbox).map_err(|errno| {
        outbox.error(&command, errno);
        Violation::Version
    })
}

/// Carries out one command; `Err` is what it is replied to with.
fn carry_out(
    device: &impl Device,
    agreement: Agreement,
    message: Message<'_>,
    outbox: &mut Outbox,
) -> Result<Outcome, Errno> {
    let Message { header, payload, descriptors } = message;
    if descriptors.lost {
        tracing::error!(
            "descriptors from a vfio-user client were lost: this process may have no more open (ulimit -n)"
        );
        return Err(Errno::MFILE);
    }
    match Command::from_wire(header.command).ok_or(Errno::NOTSUP)? {
        Command::RegionWrite => {
            let access = regions::write(device, payload)?;
            outbox.reply(&header, &access);
        }
        Command::RegionRead => regions::read(device, &header, payload, outbox)?,
        Command::RegionWriteMulti if agreement.write_multiple => {
            let count = regions::write_multi(device, payload)?;
            outbox.reply(&header, &count);
        }
        Command::RegionWriteMulti => return Err(Errno::NOTSUP),
        Command::Version => return Err(Errno::INVAL),
        Command::DeviceGetInfo => outbox.reply(&header, &device_info(payload)?),
        Command::DeviceGetRegionInfo => regions::info(device, &header, payload, outbox)?,
        Command::DeviceGetIrqInfo => outbox.reply(&header, &interrupts::info(device, payload)?),
        Command::DeviceSetIrqs => {
            return Ok(Outcome::Calls(interrupts::set(device, payload, descriptors)?, Reply::Done));
        }
        Command::DmaMap => return Ok(Outcome::Calls(vec![dma::map(payload, descriptors)?], Reply::Done)),
        Command::DmaUnmap => {
            let (call, unmap) = dma::unmap(payload)?;
            return Ok(Outcome::Calls(vec![call], Reply::Unmapped(unmap)));
        }
        Command::DeviceReset => return Ok(Outcome::Calls(vec![Call::Reset], Reply::Done)),
    }
    Ok(Outcome::Replied)
}

/// `VFIO_USER_DEVICE_GET_INFO`.
fn device_info(payload: &[u8]) -> Result<DeviceInfo, Errno> {
    let (asked, _) = parse::<DeviceInfo>(payload)?;
    let argsz = size_of::<DeviceInfo>() as u32;
    if asked.argsz < argsz {
        return Err(Errno::INVAL);
    }
    let flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
    Ok(DeviceInfo { argsz, flags, num_regions: regions::COUNT, num_irqs: interrupts::INDEXES })
}
