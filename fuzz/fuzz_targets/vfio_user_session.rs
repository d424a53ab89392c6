//! A vfio-user client's stream: any bytes, cut into any reads, with or without descriptors, and any answers from
//! the controller.
//!
//! The input is a list of pieces: a control byte, a length, that many bytes. A piece is raw bytes of the stream, or
//! (the first of its bytes being the command) a message whose header is in order, since the fuzzer would not often
//! come upon one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme_emu::pci::function::DoorbellPage;
use nvme_emu::pci::{Answer, Call, InterruptKind};
use nvme_emu::vfio_user::Device;
use nvme_emu::vfio_user::receive::Descriptors;
use nvme_emu::vfio_user::session::{Progress, Session};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

/// Accesses must stay inside their region.
struct Strict;

const BAR0_LEN: u64 = 0x4000;

impl Device for Strict {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 4096);
        data.fill(0xc0);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= 4096);
    }

    fn bar0_len(&self) -> u64 {
        BAR0_LEN
    }

    fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= BAR0_LEN);
        data.fill(0xb0);
    }

    fn write_bar0(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= BAR0_LEN);
    }

    fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        None
    }

    fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        if kind == InterruptKind::Intx { 1 } else { 9 }
    }

    fn call(&self, _call: Call, _answer: Answer) {
        unreachable!("a session hands its calls out");
    }
}

/// What the calls promise of themselves.
fn check(call: &Call) {
    match call {
        Call::SetInterrupts { kind, start, eventfds } => {
            assert!(!eventfds.is_empty());
            assert!(u64::from(*start) + eventfds.len() as u64 <= u64::from(Strict.interrupt_vectors(*kind)));
        }
        Call::TriggerInterrupt { kind, start, count } => {
            assert!(*count > 0);
            assert!(u64::from(*start) + u64::from(*count) <= u64::from(Strict.interrupt_vectors(*kind)));
        }
        Call::Disconnect => panic!("that is the server's to say"),
        _ => {}
    }
}

static SOCKETS: LazyLock<(OwnedFd, OwnedFd)> = LazyLock::new(|| {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a pair of sockets")
});

/// Lets the replies go out, through a real socket, to a client that reads them.
fn read_replies(session: &mut Session) {
    let (ours, theirs) = &*SOCKETS;
    let mut buffer = vec![0; 1 << 16];
    loop {
        session.outbox.flush(ours).expect("the other end is open");
        while recv(theirs, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        if session.outbox.is_empty() {
            break;
        }
    }
}

/// The bits of a control byte.
mod control {
    pub const DESCRIPTORS: u8 = 0b11;
    pub const LOST: u8 = 1 << 2;
    pub const FAIL: u8 = 1 << 3;
    pub const RAW: u8 = 1 << 4;
    pub const NO_REPLY: u8 = 1 << 5;
}

fn message(control: u8, command: u8, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let flags = if control & control::NO_REPLY != 0 { 0x10_u32 } else { 0 };
    let header = [&[7, 0, command, 0][..], &size.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]];
    [header.concat(), payload.to_vec()].concat()
}

/// Has everything that was fed carried out; whether the conversation goes on.
fn carry_out(session: &mut Session, fails: bool) -> bool {
    loop {
        match session.advance(&Strict) {
            Progress::Empty => return true,
            Progress::Full => read_replies(session),
            Progress::Waiting => panic!("every call is answered"),
            Progress::Call(call) => {
                check(&call);
                assert!(matches!(session.advance(&Strict), Progress::Waiting));
                session.answered(if fails { Err(17) } else { Ok(()) });
            }
            Progress::Close(_) => return false,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut session = Session::default();
    let mut rest = input;
    while let [control, len, tail @ ..] = rest {
        let (piece, next) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = next;
        let stream = match piece {
            [command, payload @ ..] if control & control::RAW == 0 => message(*control, *command, payload),
            raw => raw.to_vec(),
        };
        let mut fed = 0;
        while fed < stream.len() {
            let count = usize::from(control & control::DESCRIPTORS);
            let fds = (0..count).filter_map(|_| eventfd(0, EventfdFlags::CLOEXEC).ok()).collect();
            let lost = control & control::LOST != 0;
            let taken = session.receiver.feed(&stream[fed..], Descriptors { fds, lost });
            assert!(taken > 0, "no room though nothing complete was left");
            fed += taken;
            if !carry_out(&mut session, control & control::FAIL != 0) {
                return read_replies(&mut session);
            }
        }
    }
    read_replies(&mut session);
});
