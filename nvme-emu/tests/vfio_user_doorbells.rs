//! A doorbell on its way through the front door costs no allocation. Alone in its process, which it counts in.

mod null_device;

use null_device::NullDevice;
use nvme_emu::reactor::FrontDoor;
use nvme_emu::vfio_user::Server;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counting;

// SAFETY: every method does what the system's allocator does, whose contract is the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer comes from `alloc` above, and so from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let header = [&[0, 0][..], &command.to_ne_bytes(), &size.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]];
    [header.concat(), payload.to_vec()].concat()
}

fn doorbell(flags: u32) -> Vec<u8> {
    let access = [&0x1000_u64.to_ne_bytes()[..], &[0; 4], &4_u32.to_ne_bytes(), b"tail"];
    message(10, flags, &access.concat())
}

#[test]
fn doorbells_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = NullDevice::default();
    let mut server = Server::bind(&path, device.clone()).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(&message(1, 0, &[0; 4])).unwrap();
    while server.poll() {}
    let mut reply = [0; 4096];
    assert!(client.read(&mut reply).unwrap() > 16, "a version");

    const BATCH: u64 = 100;
    let posted = doorbell(0x10).repeat(BATCH as usize);
    let answered = doorbell(0);
    let mut round = || {
        client.write_all(&posted).unwrap();
        client.write_all(&answered).unwrap();
        while server.poll() {}
        assert_eq!(client.read(&mut reply).unwrap(), 32, "one reply, to the last");
    };
    round();
    let (allocations, before) = (ALLOCATIONS.load(Ordering::Relaxed), device.seen());
    for _ in 0..10 {
        round();
    }
    assert_eq!(device.seen(), (before.0 + 10 * (BATCH + 1), 0));
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - allocations, 0);
}
