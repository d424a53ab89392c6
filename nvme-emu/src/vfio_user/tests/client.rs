//! A second opinion: the client of the `vfio_user` crate, which Cloud Hypervisor uses, against our server.

use super::*;
use crate::reactor::FrontDoor;
use crate::vfio_user::Server;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use tempfile::TempDir;
use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX};
use vfio_user::Client;

/// A server on a thread of its own, as a reactor would run it.
struct Running {
    device: Recorder,
    dir: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(device: Recorder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::bind(&dir.path().join("s"), device.clone()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                while server.poll() {}
                let fd = server.wait_fd();
                let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            }
        });
        Self { device, dir, stop, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::new(&self.dir.path().join("s")).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn the_vfio_user_crates_client_finds_what_it_needs() {
    let server = Running::new(Recorder::new());
    let mut client = server.client();

    assert_eq!(client.region(VFIO_PCI_BAR0_REGION_INDEX).unwrap().size, BAR0_LEN);
    assert!(client.region(VFIO_PCI_BAR0_REGION_INDEX).unwrap().file_offset.is_none());
    assert_eq!(client.region(VFIO_PCI_CONFIG_REGION_INDEX).unwrap().size, 4096);

    let mut class = [0; 4];
    client.region_read(VFIO_PCI_CONFIG_REGION_INDEX, 8, &mut class).unwrap();
    assert_eq!(class[1..], [0x02, 0x08, 0x01]);
    client.region_write(VFIO_PCI_CONFIG_REGION_INDEX, 4, &[6, 0]).unwrap();
    assert!(server.device.state().config.bus_master_enabled());
    client.region_write(VFIO_PCI_BAR0_REGION_INDEX, 0x1000, &[1, 0, 0, 0]).unwrap();
    assert_eq!(server.device.state().writes, [(0x1000, vec![1, 0, 0, 0])]);

    let memory = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 0x10_0000).unwrap();
    client.dma_map(0, 0, 0x10_0000, memory.as_raw_fd()).unwrap();

    assert_eq!(client.get_irq_info(2).unwrap().count, VECTORS);
    let vectors = eventfds(VECTORS as usize);
    let raw: Vec<_> = vectors.iter().map(|fd| fd.as_raw_fd()).collect();
    client.set_irqs(2, 0x24, 0, VECTORS, &raw).unwrap();
    client.set_irqs(2, 0x21, 0, 0, &[]).unwrap();

    client.dma_unmap(0, 0x10_0000).unwrap();
    client.reset().unwrap();
    let calls = [
        "map 0x0+0x100000 rw file+0x0",
        "set Msix 0: 111111111",
        "disable Msix",
        "unmap 0x0+0x100000",
        "reset",
    ];
    assert_eq!(server.device.calls(), calls);
    client.shutdown().unwrap();
}

#[test]
fn the_vfio_user_crates_client_can_map_the_doorbells() {
    let server = Running::new(Recorder::with_doorbell_page());
    let client = server.client();
    let bar0 = client.region(VFIO_PCI_BAR0_REGION_INDEX).unwrap();
    let areas: Vec<_> = bar0.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, [(0x1000, 0x1000)]);
    // As Cloud Hypervisor and QEMU compute it: region offset plus area offset.
    let file = bar0.file_offset.as_ref().unwrap();
    let at = file.start() + areas[0].0;
    rustix::io::pwrite(file.file(), b"ring", at).unwrap();
    let mut seen = [0; 4];
    rustix::io::pread(server.device.doorbell_page().unwrap().fd, &mut seen, 0x1000).unwrap();
    assert_eq!(&seen, b"ring");
}
