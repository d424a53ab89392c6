//! Replies on their way out: kept in order until the socket takes them.

use super::message::Header;
use rustix::io::{self, Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// From this many unsent bytes on, no further command is carried out until the client has read its replies. A
/// client that never does stops only itself.
const FULL: usize = 64 * 1024;

/// How much goes out in one `sendmsg`, unless a single message is longer. The kernel takes this much whole or not
/// at all (it fits one buffer of a UNIX socket), so a client never sees half a header, which QEMU would not survive.
const SEND_SIZE: usize = 32 * 1024;

/// Replies that have not been sent.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// How many of those are sent.
    sent: usize,
    /// How far the last `sendmsg` was meant to go: the end of a message.
    planned: usize,
    /// Descriptors to send, by where in `bytes` the message starts that they go with.
    descriptors: VecDeque<(usize, OwnedFd)>,
}

impl Outbox {
    /// Replies with success, and no payload.
    pub fn done(&mut self, command: &Header) {
        self.reply_with(command, 0, |_| ());
    }

    /// Replies with success and a structure.
    #[inline]
    pub fn reply<T: IntoBytes + Immutable>(&mut self, command: &Header, payload: &T) {
        if command.no_reply() {
            return;
        }
        let payload = payload.as_bytes();
        self.reply_with(command, payload.len(), |reply| reply.copy_from_slice(payload));
    }

    /// Replies with success, a structure, and a descriptor that goes with it.
    pub fn reply_and_send<T: IntoBytes + Immutable>(&mut self, command: &Header, payload: &T, fd: OwnedFd) {
        if !command.no_reply() {
            self.descriptors.push_back((self.bytes.len(), fd));
        }
        self.reply(command, payload);
    }

    /// Replies with success and `len` bytes of payload, which `fill` fills in. It is called even if the client wants
    /// no reply.
    pub fn reply_with(&mut self, command: &Header, len: usize, fill: impl FnOnce(&mut [u8])) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(command.reply(len).as_bytes());
        let payload = self.bytes.len();
        self.bytes.resize(payload + len, 0);
        fill(&mut self.bytes[payload..]);
        if command.no_reply() {
            self.bytes.truncate(start);
        }
    }

    /// Replies with an error.
    pub fn error(&mut self, command: &Header, errno: Errno) {
        if !command.no_reply() {
            self.bytes.extend_from_slice(command.error_reply(errno).as_bytes());
        }
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether so much is unsent that no further command should be carried out.
    pub fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= FULL
    }

    /// Sends what the socket takes, without waiting.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            if self.sent >= self.planned {
                self.planned = self.next_send();
            }
            let with = self.descriptors.front().filter(|(at, _)| *at == self.sent).map(|(_, fd)| fd);
            match send(&socket, &self.bytes[self.sent..self.planned], with) {
                Ok(sent) => self.advance(sent),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where the next `sendmsg` ends: after whole messages. One with a descriptor goes alone, so that there is no
    /// doubt whose it is.
    fn next_send(&self) -> usize {
        let alone = |at: usize| self.descriptors.iter().any(|(with, _)| *with == at);
        let mut end = self.sent;
        while let Ok((header, _)) = Header::read_from_prefix(&self.bytes[end..]) {
            let next = end + header.size as usize;
            if end > self.sent && (alone(self.sent) || alone(end) || next - self.sent > SEND_SIZE) {
                break;
            }
            end = next;
        }
        end
    }

    fn advance(&mut self, sent: usize) {
        if self.descriptors.front().is_some_and(|(at, _)| *at == self.sent) {
            self.descriptors.pop_front();
        }
        self.sent += sent;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
            self.planned = 0;
        }
    }

    /// Everything unsent, as a client with a patient socket would get it.
    #[cfg(test)]
    pub fn drain(&mut self) -> (Vec<u8>, Vec<OwnedFd>) {
        let outbox = std::mem::take(self);
        (outbox.bytes[outbox.sent..].to_vec(), outbox.descriptors.into_iter().map(|(_, fd)| fd).collect())
    }
}

fn send(socket: impl AsFd, bytes: &[u8], with: Option<&OwnedFd>) -> io::Result<usize> {
    let fds = with.map(|fd| [fd.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        (ours, theirs.into())
    }

    fn command(id: u16) -> Header {
        Header { id, command: 9, size: 32, ..Header::default() }
    }

    #[test]
    fn no_reply_means_none_not_even_on_error() {
        let mut outbox = Outbox::default();
        let quiet = Header { flags: 0x10, ..command(1) };
        outbox.done(&quiet);
        outbox.reply(&quiet, &[0_u8; 8]);
        outbox.reply_and_send(&quiet, &[0_u8; 8], eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        outbox.error(&quiet, Errno::INVAL);
        assert!(outbox.is_empty() && outbox.descriptors.is_empty());
    }

    #[test]
    fn an_error_carries_the_errno_and_nothing_else() {
        let mut outbox = Outbox::default();
        outbox.error(&command(0x1234), Errno::NOTSUP);
        assert_eq!(outbox.drain().0, [0x34, 0x12, 9, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 95, 0, 0, 0]);
    }

    #[test]
    fn a_descriptor_arrives_with_the_first_byte_of_its_reply() {
        let (ours, theirs) = pair();
        let mut outbox = Outbox::default();
        outbox.done(&command(1));
        outbox.reply_and_send(&command(2), &[2_u8; 8], eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        outbox.done(&command(3));
        outbox.flush(&ours).unwrap();
        assert!(outbox.is_empty());
        let mut receiver = super::super::receive::Receiver::default();
        let mut seen = Vec::new();
        while receiver.receive(&theirs).is_ok() {
            while let Some(message) = receiver.next_message().unwrap() {
                seen.push((message.header.id, message.descriptors.fds.len()));
            }
        }
        assert_eq!(seen, [(1, 0), (2, 1), (3, 0)]);
    }

    #[test]
    fn what_the_socket_does_not_take_is_kept_and_no_header_is_ever_cut() {
        let (ours, mut theirs) = pair();
        let mut outbox = Outbox::default();
        let mut queued = 0_u16;
        let size = |id: u16| usize::from(id) * 37 % 5000;
        while outbox.is_empty() || !outbox.is_full() {
            outbox.reply_with(&command(queued), size(queued), |payload| payload.fill(queued as u8));
            queued += 1;
            outbox.flush(&ours).unwrap();
        }
        theirs.set_nonblocking(true).unwrap();
        for id in 0..queued {
            let mut header = [0; 16];
            if theirs.read(&mut header).unwrap_or(0) == 0 {
                outbox.flush(&ours).unwrap();
                assert_eq!(theirs.read(&mut header).unwrap(), 16, "a whole header or none");
            }
            let (header, _) = Header::read_from_prefix(&header).unwrap();
            assert_eq!((header.id, header.size as usize), (id, 16 + size(id)));
            let mut payload = vec![0; size(id)];
            theirs.read_exact(&mut payload).unwrap();
            assert!(payload.iter().all(|&byte| byte == id as u8));
        }
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_client_that_has_gone_is_an_error() {
        let (ours, theirs) = pair();
        drop(theirs);
        let mut outbox = Outbox::default();
        outbox.done(&command(1));
        assert_eq!(outbox.flush(&ours), Err(Errno::PIPE));
    }
}
