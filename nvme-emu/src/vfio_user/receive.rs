//! The incoming stream, cut into messages, each with the descriptors that came with it.
//!
//! One `recvmsg` reads many messages at once, and with descriptors it says only that they came somewhere in what
//! it read. Where is known all the same: the kernel hands descriptors over with the first byte of the `sendmsg` that
//! carried them, and ends the read where that `sendmsg` ended. So they belong to *the last message that starts
//! inside the read*. (A client that puts several messages into one `sendmsg` with descriptors would be
//! misunderstood; none does, since the protocol could not say whose they are.)
//!
//! The buffer is read into only when no complete message is left in it, so it has room for the longest one.

use super::message::{Header, MAX_MESSAGE_SIZE, SCM_MAX_FD};
use rustix::io::{self, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::FromBytes;

/// Room for many messages: a doorbell write is 36 bytes long.
const BUFFER_SIZE: usize = 2 * MAX_MESSAGE_SIZE;

/// The descriptors that came with a message. Closed when dropped.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// In the order that they were sent in.
    pub fds: Vec<OwnedFd>,
    /// Some were lost on the way: this process has as many open as it may have (`RLIMIT_NOFILE`).
    pub lost: bool,
}

impl Descriptors {
    fn is_empty(&self) -> bool {
        self.fds.is_empty() && !self.lost
    }
}

/// A message, cut out of the stream.
#[derive(Debug)]
pub struct Message<'a> {
    /// Its header; the size in it is true.
    pub header: Header,
    /// What follows the header.
    pub payload: &'a [u8],
    /// What came with it.
    pub descriptors: Descriptors,
}

/// A header after which the stream cannot be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The header, as far as it goes.
    pub header: Header,
}

/// The receiving end of a connection.
pub struct Receiver {
    buffer: Box<[u8]>,
    /// What is in the buffer and has not been handed out: `start..end`.
    start: usize,
    end: usize,
    /// Where `start` is in the stream.
    position: u64,
    /// Descriptors of messages not handed out yet, by where in the stream the message starts. At most two: of the
    /// message that the buffer began with at the last read, and of the last one in it.
    descriptors: VecDeque<(u64, Descriptors)>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            buffer: vec![0; BUFFER_SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
            position: 0,
            descriptors: VecDeque::new(),
        }
    }
}

impl Receiver {
    /// Reads once from a socket, without waiting. 0: the client has hung up. To be called only when
    /// [`Receiver::next_message`] has nothing left.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut iov = [IoSliceMut::new(self.space())];
        let received = recvmsg(socket, &mut iov, &mut control, flags)?;
        let mut descriptors =
            Descriptors { fds: Vec::new(), lost: received.flags.contains(ReturnFlags::CTRUNC) };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.fds.extend(fds);
            }
        }
        self.received(received.bytes, descriptors);
        Ok(received.bytes)
    }

    /// Takes bytes and descriptors as one read would have brought them; as many of the bytes as there is room for.
    /// Says how many that were.
    pub fn feed(&mut self, bytes: &[u8], descriptors: Descriptors) -> usize {
        let space = self.space();
        let len = bytes.len().min(space.len());
        space[..len].copy_from_slice(&bytes[..len]);
        self.received(len, descriptors);
        len
    }

    /// The next complete message, if there is one.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, Malformed> {
        let pending = &self.buffer[self.start..self.end];
        let Ok((header, _)) = Header::read_from_prefix(pending) else { return Ok(None) };
        let Some(size) = message_size(&header) else { return Err(Malformed { header }) };
        if pending.len() < size {
            return Ok(None);
        }
        let descriptors = self.take_descriptors();
        let payload = self.start + size_of::<Header>()..self.start + size;
        self.start += size;
        self.position += size as u64;
        Ok(Some(Message { header, payload: &self.buffer[payload], descriptors }))
    }

    /// Room to read into, with the beginning of an incomplete message moved out of the way.
    fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buffer[self.end..]
    }

    fn received(&mut self, len: usize, descriptors: Descriptors) {
        let before = self.end;
        self.end += len;
        if !descriptors.is_empty()
            && let Some(at) = self.last_message_from(before)
        {
            self.descriptors.push_back((self.position + (at - self.start) as u64, descriptors));
        }
    }

    /// Where in the buffer the last message starts, if that is at `from` or later.
    fn last_message_from(&self, from: usize) -> Option<usize> {
        let mut last = None;
        let mut at = self.start;
        while at < self.end {
            if at >= from {
                last = Some(at);
            }
            let Ok((header, _)) = Header::read_from_prefix(&self.buffer[at..self.end]) else { break };
            let Some(size) = message_size(&header) else { break };
            at += size;
        }
        last
    }

    fn take_descriptors(&mut self) -> Descriptors {
        match self.descriptors.front() {
            Some((at, _)) if *at == self.position => {
                self.descriptors.pop_front().map(|(_, descriptors)| descriptors).unwrap_or_default()
            }
            _ => Descriptors::default(),
        }
    }
}

/// How long a message is in all, unless its header lies.
fn message_size(header: &Header) -> Option<usize> {
    let size = header.size as usize;
    (size_of::<Header>()..=MAX_MESSAGE_SIZE).contains(&size).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};
    use zerocopy::IntoBytes;

    fn message(id: u16, payload: &[u8]) -> Vec<u8> {
        let header = Header { id, size: (16 + payload.len()) as u32, ..Header::default() };
        [header.as_bytes(), payload].concat()
    }

    fn descriptors(count: usize) -> Descriptors {
        let fds = (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
        Descriptors { fds, lost: false }
    }

    fn drain(receiver: &mut Receiver) -> Vec<(u16, Vec<u8>, usize)> {
        let mut all = Vec::new();
        while let Some(message) = receiver.next_message().unwrap() {
            all.push((message.header.id, message.payload.to_vec(), message.descriptors.fds.len()));
        }
        all
    }

    #[test]
    fn descriptors_belong_to_the_last_message_that_starts_in_the_read() {
        let mut receiver = Receiver::default();
        let read = [message(1, b"plain"), message(2, b""), message(3, b"with")].concat();
        receiver.feed(&read, descriptors(2));
        assert_eq!(
            drain(&mut receiver),
            [(1, b"plain".into(), 0), (2, b"".into(), 0), (3, b"with".into(), 2)]
        );
    }

    #[test]
    fn descriptors_wait_for_the_rest_of_their_message() {
        let mut receiver = Receiver::default();
        let (first, second) = (message(1, b"first"), message(2, b"second"));
        receiver.feed(&[&first[..], &second[..3]].concat(), descriptors(1));
        assert_eq!(drain(&mut receiver), [(1, b"first".into(), 0)]);
        receiver.feed(&[&second[3..], &message(3, b"")].concat(), descriptors(3));
        assert_eq!(drain(&mut receiver), [(2, b"second".into(), 1), (3, b"".into(), 3)]);
    }

    #[test]
    fn descriptors_that_no_message_starts_with_are_closed() {
        let mut receiver = Receiver::default();
        let whole = message(1, b"payload");
        receiver.feed(&whole[..20], Descriptors::default());
        let late = descriptors(1);
        receiver.feed(&whole[20..], late);
        assert!(receiver.descriptors.is_empty());
        assert_eq!(drain(&mut receiver), [(1, b"payload".into(), 0)]);
    }

    #[test]
    fn a_size_that_no_message_has_is_malformed() {
        for size in [0, 15, MAX_MESSAGE_SIZE as u32 + 1, u32::MAX] {
            let mut receiver = Receiver::default();
            let header = Header { id: 7, size, ..Header::default() };
            receiver.feed(header.as_bytes(), descriptors(1));
            assert_eq!(receiver.next_message().unwrap_err(), Malformed { header });
        }
    }

    #[test]
    fn the_longest_message_fits_behind_any_other() {
        let mut receiver = Receiver::default();
        let longest = message(2, &vec![0x5a; MAX_MESSAGE_SIZE - 16]);
        let stream = [message(1, b"x"), longest.clone(), longest].concat();
        let (mut fed, mut seen) = (0, 0);
        while fed < stream.len() {
            fed += receiver.feed(&stream[fed..], Descriptors::default());
            seen += drain(&mut receiver).len();
        }
        assert_eq!(seen, 3);
    }

    proptest! {
        /// However the kernel cuts the stream into reads (it always ends one where a message with descriptors
        /// ends), each message arrives whole and with its own descriptors.
        #[test]
        fn any_split_of_the_stream_gives_the_same_messages(
            messages in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..200), 0_usize..3), 1..20),
            cuts in proptest::collection::vec(1_usize..300, 1..200),
        ) {
            let mut receiver = Receiver::default();
            let mut cuts = cuts.iter().cycle();
            let mut seen = Vec::new();
            let mut plain = Vec::new();
            for (id, (payload, fds)) in messages.iter().enumerate() {
                let bytes = message(id as u16, payload);
                if *fds == 0 {
                    plain.extend(bytes);
                    continue;
                }
                // Reads of what came before; the last of them may run on into the message with descriptors.
                while plain.len() > 300 {
                    let cut = *cuts.next().unwrap();
                    receiver.feed(&plain.drain(..cut).collect::<Vec<_>>(), Descriptors::default());
                    seen.extend(drain(&mut receiver));
                }
                let into = cuts.next().unwrap() % bytes.len() + 1;
                plain.extend(&bytes[..into]);
                receiver.feed(&std::mem::take(&mut plain), descriptors(*fds));
                seen.extend(drain(&mut receiver));
                let rest = &bytes[into..];
                let half = rest.len() / 2;
                receiver.feed(&rest[..half], Descriptors::default());
                receiver.feed(&rest[half..], Descriptors::default());
                seen.extend(drain(&mut receiver));
            }
            receiver.feed(&plain, Descriptors::default());
            seen.extend(drain(&mut receiver));
            let sent: Vec<_> = messages.iter().enumerate()
                .map(|(id, (payload, fds))| (id as u16, payload.clone(), *fds)).collect();
            prop_assert_eq!(seen, sent);
            prop_assert!(receiver.descriptors.is_empty());
        }
    }
}
