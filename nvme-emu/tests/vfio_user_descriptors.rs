//! Whatever a client sends along, the server keeps none of it. Alone in its process, whose descriptors it counts.

mod null_device;

use null_device::NullDevice;
use nvme_emu::reactor::FrontDoor;
use nvme_emu::vfio_user::Server;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The most that the kernel lets one message carry.
const MOST: usize = 253;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn message(command: u16, flags: u32, size_lie: i32, payload: &[u8]) -> Vec<u8> {
    let size = (16 + payload.len() as u32).wrapping_add_signed(size_lie);
    let header = [&[0, 0][..], &command.to_ne_bytes(), &size.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]];
    [header.concat(), payload.to_vec()].concat()
}

/// Sends with `count` copies of a descriptor; false if the server has hung up or takes no more.
fn send(client: &UnixStream, bytes: &[u8], fd: &OwnedFd, count: usize) -> bool {
    let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    match sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) => sent == bytes.len(),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::AGAIN) => false,
        Err(error) => panic!("{error}"),
    }
}

#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
    /// Where the first `sendmsg` of it ends.
    cut: usize,
    fds: usize,
    fds_of_the_rest: usize,
    settle: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let word = prop_oneof![0_u32..30, any::<u32>()];
    let payload = proptest::collection::vec(word, 0..10)
        .prop_map(|words| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    let fds = prop_oneof![8 => 0_usize..4, 1 => Just(MOST)];
    let lie = prop_oneof![30 => Just(0), 1 => any::<i32>(), 2 => -4..100];
    let flags = prop_oneof![4 => Just(0_u32), 2 => Just(0x10_u32), 1 => any::<u32>()];
    ((1_u16..18, flags, lie, payload), (any::<prop::sample::Index>(), fds.clone(), fds, any::<bool>()))
        .prop_map(|((command, flags, lie, payload), (cut, fds, fds_of_the_rest, settle))| {
            let bytes = message(command, flags, lie, &payload);
            let cut = cut.index(bytes.len()) + 1;
            Sent { bytes, cut, fds, fds_of_the_rest, settle }
        })
}

#[test]
fn no_descriptor_outlives_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = NullDevice::default();
    let server = RefCell::new(Server::bind(&path, device.clone()).unwrap());
    let settle = || while server.borrow_mut().poll() {};
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let before = open_descriptors();
    proptest!(ProptestConfig::with_cases(300), |(messages in proptest::collection::vec(sent(), 1..12))| {
        let calls = device.seen().1;
        let client = UnixStream::connect(&path).unwrap();
        let greeting = send(&client, &message(1, 0, 0, &[0; 4]), &fd, 1);
        prop_assert!(greeting);
        for sent in &messages {
            let (first, rest) = sent.bytes.split_at(sent.cut);
            if !send(&client, first, &fd, sent.fds) {
                break;
            }
            if sent.settle {
                settle();
            }
            if !rest.is_empty() && !send(&client, rest, &fd, sent.fds_of_the_rest) {
                break;
            }
        }
        drop(client);
        settle();
        prop_assert!(device.seen().1 > calls, "a disconnect, at least");
        prop_assert_eq!(open_descriptors(), before);
    });
    drop(server);
    assert!(open_descriptors() < before, "the server's own go with it");
}
