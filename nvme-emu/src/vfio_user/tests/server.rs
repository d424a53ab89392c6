//! The server with real sockets: clients that come, go, stall and crowd.

use super::commands::*;
use super::*;
use crate::reactor::FrontDoor;
use crate::vfio_user::Server;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use tempfile::TempDir;

/// A server that these tests run by hand, on their own thread.
struct Bench {
    server: Server<Recorder>,
    device: Recorder,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Recorder::new();
        let server = Server::bind(&dir.path().join("s"), device.clone()).unwrap();
        Self { server, device, dir }
    }

    /// Lets the server do all that there is to do; checks that it says so truthfully.
    fn settle(&mut self) {
        let mut steps = 0;
        while self.ready() {
            self.server.poll();
            steps += 1;
            assert!(steps < 10_000, "there is always something to do");
        }
        assert!(!self.server.poll(), "nothing to do, and yet something was done");
    }

    /// Whether the server's descriptor is readable.
    fn ready(&self) -> bool {
        let fd = self.server.wait_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    fn connect(&mut self) -> Peer {
        let socket = UnixStream::connect(self.dir.path().join("s")).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.settle();
        Peer { socket }
    }

    /// A client that has shaken hands.
    fn client(&mut self) -> Peer {
        let mut peer = self.connect();
        self.exchange(&mut peer, &message(1, VERSION, 0, &version(0, 0, b""))).expect("a version");
        peer
    }

    /// Sends, lets the server work, reads one reply; `None` if there is none yet.
    fn exchange(&mut self, peer: &mut Peer, bytes: &[u8]) -> Option<Header> {
        peer.socket.write_all(bytes).unwrap();
        self.settle();
        peer.reply()
    }
}

struct Peer {
    socket: UnixStream,
}

impl Peer {
    fn reply(&mut self) -> Option<Header> {
        let mut header = Header::default();
        match self.socket.read_exact(header.as_mut_bytes()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
        let mut payload = vec![0; header.size as usize - 16];
        self.socket.read_exact(&mut payload).unwrap();
        Some(header)
    }

    /// Whether the server has hung up.
    fn is_closed(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => panic!("unexpected reply"),
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn reset(id: u16) -> Vec<u8> {
    message(id, RESET, 0, b"")
}

#[test]
fn an_idle_server_has_nothing_to_do() {
    let mut bench = Bench::new();
    assert!(!bench.ready());
    let _client = bench.client();
    assert!(!bench.ready());
}

#[test]
fn clients_come_one_after_another() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        let mut client = bench.client();
        assert_eq!(bench.exchange(&mut client, &reset(7)).unwrap().id, 7);
        drop(client);
        bench.settle();
        assert_eq!(bench.device.calls(), ["reset", "disconnect"]);
    }
}

#[test]
fn a_message_may_arrive_byte_by_byte() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let bytes = message(3, REGION_WRITE, 0, &access(0, 0x1000, 4, b"bell"));
    for &byte in &bytes[..bytes.len() - 1] {
        assert!(bench.exchange(&mut client, &[byte]).is_none());
    }
    assert_eq!(bench.exchange(&mut client, &bytes[bytes.len() - 1..]).unwrap().id, 3);
    assert_eq!(bench.device.state().writes, [(0x1000, b"bell".to_vec())]);
}

#[test]
fn a_second_client_is_turned_away_and_the_first_does_not_notice() {
    let mut bench = Bench::new();
    let mut first = bench.client();
    let mut second = bench.connect();
    assert!(second.is_closed());
    assert_eq!(bench.exchange(&mut first, &reset(2)).unwrap().id, 2);
    assert_eq!(bench.device.calls(), ["reset"]);
}

#[test]
fn a_client_that_comes_as_the_last_one_goes_is_let_in() {
    let mut bench = Bench::new();
    let first = bench.client();
    let second = UnixStream::connect(bench.dir.path().join("s")).unwrap();
    second.set_nonblocking(true).unwrap();
    drop(first);
    bench.settle();
    let mut second = Peer { socket: second };
    assert!(bench.exchange(&mut second, &message(1, VERSION, 0, &version(0, 0, b""))).is_some());
    assert_eq!(bench.device.calls(), ["disconnect"]);
}

#[test]
fn the_next_client_waits_until_the_last_ones_memory_is_free() {
    let mut bench = Bench::new();
    let first = bench.client();
    bench.device.state().answer = None;
    drop(first);
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"]);
    let mut second = bench.connect();
    let greeting = message(1, VERSION, 0, &version(0, 0, b""));
    assert!(bench.exchange(&mut second, &greeting).is_none(), "not before the answer");
    bench.device.release(Ok(()));
    assert!(bench.ready());
    bench.settle();
    assert_eq!(second.reply().unwrap().id, 1);
}

#[test]
fn a_disconnect_that_fails_does_not_shut_the_door() {
    let mut bench = Bench::new();
    let first = bench.client();
    bench.device.state().answer = Some(Err(libc::EIO));
    drop(first);
    bench.settle();
    bench.device.state().answer = Some(Ok(()));
    bench.client();
}

#[test]
fn the_socket_is_not_read_while_a_call_is_on_its_way() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.device.state().answer = None;
    assert!(bench.exchange(&mut client, &message(1, DMA_MAP, 0, &dma_map(3, 0, 0, 4096))).is_none());
    let write = message(2, REGION_WRITE, 0, &access(0, 0x1000, 4, b"bell"));
    assert!(bench.exchange(&mut client, &write).is_none(), "settle() checks that this wakes nobody");
    assert!(bench.device.state().writes.is_empty());
    let device = bench.device.clone();
    std::thread::spawn(move || device.release(Ok(()))).join().unwrap();
    assert!(bench.ready());
    bench.settle();
    assert_eq!((client.reply().unwrap().id, client.reply().unwrap().id), (1, 2));
    assert_eq!(bench.device.state().writes.len(), 1);
}

#[test]
fn a_hang_up_during_a_call_is_noticed_once_it_is_answered() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.device.state().answer = None;
    bench.exchange(&mut client, &reset(1));
    drop(client);
    bench.settle();
    assert_eq!(bench.device.calls(), ["reset"]);
    bench.device.release(Ok(()));
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"]);
    let mut next = bench.connect();
    bench.device.release(Ok(()));
    bench.settle();
    assert!(bench.exchange(&mut next, &message(1, VERSION, 0, &version(0, 0, b""))).is_some());
}

#[test]
fn a_call_that_is_never_answered_is_an_error() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.device.state().answer = None;
    bench.exchange(&mut client, &reset(1));
    bench.device.state().held.clear();
    bench.settle();
    assert_eq!(client.reply().unwrap().error, libc::EIO as u32);
}

#[test]
fn a_client_that_reads_no_replies_stops_only_itself() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let read = message(1, REGION_READ, 0, &access(7, 0, 4096, b""));
    let mut sent = 0_u32;
    loop {
        match client.socket.write(&read) {
            Ok(len) => {
                assert_eq!(len, read.len());
                sent += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bench.settle();
                // Once the server has stopped reading, the client's own buffer fills up.
                if client.socket.write(&read).map(|_| sent += 1).is_err() {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 100_000, "the server takes everything");
    }
    let mut replies = 0;
    while replies < sent {
        assert!(client.reply().is_some(), "{replies} of {sent}");
        replies += 1;
        bench.settle();
    }
    assert!(client.reply().is_none());
    // And once more, but it dies in the middle.
    while client.socket.write(&read).is_ok() {
        bench.settle();
    }
    drop(client);
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"]);
    bench.client();
}

#[test]
fn rubbish_is_answered_with_an_error_and_a_closed_connection() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let refused = bench.exchange(&mut client, &[0xff; 4096].map(|_: u8| 0)).unwrap();
    assert_eq!(refused.error, libc::EINVAL as u32);
    assert!(client.is_closed());
    assert_eq!(bench.device.calls(), ["disconnect"]);
    let mut stranger = bench.connect();
    stranger.socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    bench.settle();
    assert!(stranger.is_closed());
    bench.client();
}

#[test]
fn a_hang_up_is_a_disconnect_in_any_state() {
    let mut bench = Bench::new();
    drop(bench.connect());
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"], "before the version");
    let client = bench.client();
    (&client.socket).write_all(&reset(1)[..9]).unwrap();
    bench.settle();
    drop(client);
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"], "in the middle of a message");
    let client = bench.client();
    client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    bench.settle();
    assert_eq!(bench.device.calls(), ["disconnect"], "half closed");
}

#[test]
fn writes_before_a_hang_up_are_carried_out() {
    let mut bench = Bench::new();
    let client = bench.client();
    let bell = message(0, REGION_WRITE, NO_REPLY, &access(0, 0x1000, 4, b"bell"));
    (&client.socket).write_all(&bell.repeat(1000)).unwrap();
    drop(client);
    bench.settle();
    assert_eq!(bench.device.state().writes.len(), 1000);
    assert_eq!(bench.device.calls(), ["disconnect"]);
}

#[test]
fn a_server_that_is_dropped_leaves_neither_its_file_nor_its_client() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let Bench { server, device, dir } = bench;
    drop(server);
    assert!(!dir.path().join("s").exists());
    assert_eq!(device.calls(), ["disconnect"]);
    assert!(client.is_closed());
}

#[test]
fn a_path_in_use_is_an_error_that_says_so() {
    let mut bench = Bench::new();
    let path = bench.dir.path().join("s");
    let error = Server::bind(&path, Recorder::new()).err().unwrap().to_string();
    assert_eq!(error, format!("socket {} is in use by another server", path.display()));
    bench.settle();
    bench.client();
}
