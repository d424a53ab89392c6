//! A vfio-user connection: commands out, replies in, descriptors both ways.
//!
//! Why not the `vfio_user` crate's `Client` (0.1.7): it takes a reply that says "refused" for success, waits for ever
//! for data that a refusal does not carry, keeps one descriptor of a reply's several, cannot post a write, has no
//! deadline, and panics on replies of unexpected sizes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::process::Pid;
use zerocopy::{FromBytes, IntoBytes};

use super::messages::{Command, ERROR, Header, NO_REPLY, TYPE_COMMAND, TYPE_MASK, TYPE_REPLY};

/// How long the server may take for anything. Taking memory back may have to wait for I/O into it.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than any reply to this client is long.
const MAX_MESSAGE: usize = 64 << 10;
/// More descriptors than any reply to this client has.
const MAX_FDS: usize = 16;

/// A reply's payload, without the header, and its descriptors.
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply {
    /// The structure that the payload begins with.
    pub(super) fn head<T: FromBytes>(&self) -> io::Result<T> {
        let (head, _) = T::read_from_prefix(&self.payload)
            .map_err(|_| protocol(format!("a reply of {} bytes is too short", self.payload.len())))?;
        Ok(head)
    }
}

fn protocol(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not vfio-user: {}", what.into()))
}

/// A connection to a server. Any thread may use it: commands with a reply take turns, posted ones slip in between.
pub(super) struct Connection {
    stream: UnixStream,
    /// The next message identifier; held while a message goes out, so that messages do not mix.
    sending: Mutex<u16>,
    /// Held from a command to its reply.
    calling: Mutex<()>,
    /// Why the stream can no longer be trusted (broken, out of step): nothing works any more.
    lost: OnceLock<String>,
}

impl Connection {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::new(UnixStream::connect(path)?)
    }

    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (sending, calling) = (Mutex::new(0), Mutex::new(()));
        Ok(Self { stream, sending, calling, lost: OnceLock::new() })
    }

    /// Why nothing will come through it any more, once something has failed.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Who listened at the other end.
    pub(super) fn peer_process(&self) -> Option<Pid> {
        rustix::net::sockopt::socket_peercred(&self.stream).ok().map(|peer| peer.pid)
    }

    /// Sends a command and waits for its reply; an error reply is an error with its errno.
    pub(super) fn call(
        &self,
        command: Command,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Reply> {
        let _turn = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.send(command, 0, payload, fds)?;
        self.unbroken(|| {
            loop {
                let (header, reply) = self.receive()?;
                match header.flags & TYPE_MASK {
                    TYPE_REPLY if header.message_id == id && header.command == command as u16 => {
                        return if header.flags & ERROR == 0 {
                            Ok(Ok(reply))
                        } else {
                            let errno = i32::try_from(header.error).unwrap_or(0);
                            // Some servers say only that there was an error.
                            let errno = if errno == 0 { Errno::IO.raw_os_error() } else { errno };
                            Ok(Err(io::Error::from_raw_os_error(errno)))
                        };
                    }
                    TYPE_REPLY => return Err(protocol(format!("a reply to {header:?} which was not sent"))),
                    _ => self.refuse(&header)?,
                }
            }
        })?
    }

    /// Sends a command to which no reply is wanted.
    pub(super) fn post(&self, command: Command, payload: &[&[u8]]) -> io::Result<()> {
        self.send(command, NO_REPLY, payload, &[]).map(drop)
    }

    /// Runs something after whose failure the stream is out of step. What failed first is what everything fails with
    /// from then on.
    fn unbroken<T>(&self, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Some(why) = self.lost.get() {
            return Err(io::Error::new(io::ErrorKind::NotConnected, why.clone()));
        }
        action().map_err(|error| {
            let error = match error.kind() {
                io::ErrorKind::WouldBlock => {
                    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"))
                }
                kind @ (io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof) => io::Error::new(kind, "the server closed the connection"),
                _ => error,
            };
            // Another thread may have met it first.
            let _ = self.lost.set(error.to_string());
            error
        })
    }

    fn send(
        &self,
        command: Command,
        flags: u32,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<u16> {
        let len: usize = size_of::<Header>() + payload.iter().map(|part| part.len()).sum::<usize>();
        let mut next = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let message_id = *next;
        *next = next.wrapping_add(1);
        let message_size = len as u32;
        let flags = flags | TYPE_COMMAND;
        let header = Header { message_id, command: command as u16, message_size, flags, error: 0 };
        self.unbroken(|| self.send_parts(header.as_bytes(), payload, fds))?;
        Ok(message_id)
    }

    /// Sends header and payload as one stretch of bytes, the descriptors with the first of them.
    fn send_parts(&self, header: &[u8], payload: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Commands of this client have a structure and at most one piece of data: no allocation for doorbells.
        let mut parts = [IoSlice::new(&[]); 3];
        parts[0] = IoSlice::new(header);
        for (part, bytes) in parts[1..].iter_mut().zip(payload) {
            *part = IoSlice::new(bytes);
        }
        debug_assert!(payload.len() < parts.len() && fds.len() <= MAX_FDS);
        let mut left: &mut [IoSlice<'_>] = &mut parts[..=payload.len()];
        let mut fds = fds;
        while !left.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Errno::TOOBIG.into());
            }
            match rustix::net::sendmsg(&self.stream, left, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    fds = &[];
                    IoSlice::advance_slices(&mut left, sent);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn receive(&self) -> io::Result<(Header, Reply)> {
        let mut fds = Vec::new();
        let mut header = [0; size_of::<Header>()];
        self.receive_exact(&mut header, &mut fds)?;
        let header = Header::read_from_bytes(&header).map_err(|_| protocol("no header"))?;
        let len = (header.message_size as usize).checked_sub(size_of::<Header>());
        let len = len.filter(|len| *len <= MAX_MESSAGE);
        let len = len.ok_or_else(|| protocol(format!("a message of {} bytes", header.message_size)))?;
        let mut payload = vec![0; len];
        self.receive_exact(&mut payload, &mut fds)?;
        Ok((header, Reply { payload, fds }))
    }

    fn receive_exact(&self, mut bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received =
                rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut control, flags);
            let received = match received {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    fds.extend(descriptors);
                }
            }
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[received..];
        }
        Ok(())
    }

    /// Answers a command of the server. All memory is given with its descriptor, so that a server has no reason to
    /// ask for DMA by message.
    fn refuse(&self, command: &Header) -> io::Result<()> {
        if command.flags & NO_REPLY != 0 {
            return Ok(());
        }
        let error = Errno::OPNOTSUPP.raw_os_error() as u32;
        let message_size = size_of::<Header>() as u32;
        let reply = Header { message_size, flags: TYPE_REPLY | ERROR, error, ..*command };
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_parts(reply.as_bytes(), &[], &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_first_is_why_everything_fails_afterwards() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(ours).unwrap();
        assert_eq!(connection.lost(), None);
        drop(theirs);
        for _ in 0..3 {
            let error = connection.call(Command::DeviceReset, &[], &[]).map(drop).unwrap_err();
            assert_eq!(error.to_string(), "the server closed the connection");
            assert_eq!(connection.lost(), Some("the server closed the connection"));
        }
        let error = connection.post(Command::RegionWrite, &[]).unwrap_err();
        assert_eq!(error.to_string(), "the server closed the connection");
    }
}
