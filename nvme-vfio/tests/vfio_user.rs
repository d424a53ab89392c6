//! The vfio-user transport against a server that is not this project's: the `vfio_user` crate's, with the scripted
//! controller behind it.

mod fake;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fake::Fake;
use nvme_spec::AdminOpcode;
use nvme_vfio::transport::{DmaMemory, Transport, VfioUser};
use nvme_vfio::{Controller, Options};
use rustix::event::EventfdFlags;
use rustix::fs::SealFlags;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea};

/// What the server saw besides registers.
#[derive(Default)]
struct Seen {
    config: Vec<(u64, Vec<u8>)>,
    interrupts: Vec<(u32, u32, u32, usize)>,
    eventfds: Vec<File>,
    resets: u32,
}

struct Backend {
    fake: Fake,
    seen: Arc<Mutex<Seen>>,
    config: [u8; 256],
    mappings: Vec<(u64, Mapping)>,
    refuse_dma: bool,
}

struct Mapping {
    base: *mut std::ffi::c_void,
    len: usize,
}

// SAFETY: it owns its pages, and nothing about them is tied to a thread.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `dma_map`, unmapped once.
        unsafe { rustix::mm::munmap(self.base, self.len).unwrap() };
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match (region, data.len()) {
            (0, 4) => data.copy_from_slice(&self.fake.read32(offset)?.to_le_bytes()),
            (0, 8) => data.copy_from_slice(&self.fake.read64(offset)?.to_le_bytes()),
            (7, len) => data.copy_from_slice(&self.config[offset as usize..offset as usize + len]),
            other => panic!("read {other:?}"),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match (region, data.len()) {
            (0, 4) => self.fake.write32(offset, u32::from_le_bytes(data.try_into().unwrap())),
            (0, 8) => self.fake.write64(offset, u64::from_le_bytes(data.try_into().unwrap())),
            (7, len) => {
                self.config[offset as usize..offset as usize + len].copy_from_slice(data);
                self.seen.lock().unwrap().config.push((offset, data.to_vec()));
                Ok(())
            }
            other => panic!("write {other:?}"),
        }
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        if self.refuse_dma {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let fd = fd.expect("a descriptor");
        // Or else this server could truncate it, which the client would die of.
        assert!(rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK));
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let (len, flags) = (size as usize, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &fd, offset)? };
        self.mappings.push((address, Mapping { base, len }));
        let memory =
            DmaMemory { base: std::ptr::NonNull::new(base.cast()).unwrap(), len: size, backing: None };
        // SAFETY: `mappings` keeps it mapped until `dma_unmap` has told the fake.
        unsafe { self.fake.map_dma(address, &memory) }
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.fake.unmap_dma(address, size)?;
        self.mappings.retain(|(iova, _)| *iova != address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.seen.lock().unwrap().resets += 1;
        self.fake.reset()
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap();
        assert_eq!(flags, 0x24, "eventfds, triggered");
        seen.interrupts.push((index, start, count, fds.len()));
        seen.eventfds.extend(fds);
        Ok(())
    }
}

struct Served {
    folder: tempfile::TempDir,
    fake: Fake,
    seen: Arc<Mutex<Seen>>,
}

impl Served {
    /// Serves one client, with the doorbells mappable if there is a file for them.
    fn new(fake: Fake, doorbells: Option<File>, refuse_dma: bool) -> Self {
        Self::with_config(fake, doorbells, refuse_dma, config_space())
    }

    fn with_config(fake: Fake, doorbells: Option<File>, refuse_dma: bool, config: [u8; 256]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let region = |index, size| {
            let argsz = size_of::<vfio_region_info>() as u32;
            let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
            let region_info = vfio_region_info { argsz, index, flags, size, ..Default::default() };
            ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
        };
        let mut regions: Vec<ServerRegion> = (0..9).map(|index| region(index, 0)).collect();
        (regions[0], regions[7]) = (region(0, 0x4000), region(7, 256));
        if let Some(file) = &doorbells {
            regions[0].region_info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
            regions[0].mmap_fd = Some(file.as_raw_fd());
            let area = vfio_region_sparse_mmap_area { offset: 0x1000, size: 0x1000 };
            regions[0].sparse_areas = vec![SparseArea { area }];
        }
        let irqs = (0..5).map(|index| IrqInfo { index, flags: 1, count: if index == 2 { 40 } else { 1 } });
        let server = Server::new(&folder.path().join("socket"), true, irqs.collect(), regions).unwrap();
        let mappings = Vec::new();
        let mut backend = Backend { fake: fake.clone(), seen: seen.clone(), config, mappings, refuse_dma };
        thread::spawn(move || {
            // Whatever ends the connection ends the server; clients see it.
            let _ = server.run(&mut backend);
            drop(doorbells);
        });
        Self { folder, fake, seen }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&self) -> VfioUser {
        VfioUser::connect(&self.socket()).unwrap()
    }
}

/// With a capability of another kind, then MSI-X with 40 vectors.
fn config_space() -> [u8; 256] {
    let mut config = [0; 256];
    config[6] = 1 << 4;
    config[0x34] = 0x40;
    (config[0x40], config[0x41]) = (0x01, 0x80);
    (config[0x80], config[0x81], config[0x82]) = (0x11, 0, 39);
    config
}

#[test]
fn a_controller_comes_up_and_goes_down_behind_another_server() {
    let served = Served::new(Fake::new(), None, false);
    let controller = Controller::open(Box::new(served.connect()), Options::default()).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    for token in 0..300 {
        queue.flush(&namespace, token).unwrap();
        queue.kick();
        let start = Instant::now();
        while queue.poll(|completed, result| assert_eq!((completed, result), (token, Ok(())))).unwrap() == 0 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::yield_now();
        }
    }
    drop((queue, controller));
    assert!(!served.fake.state().cc.en());
}

#[test]
fn memory_decoding_and_bus_mastering_are_enabled_and_the_pin_is_not() {
    let served = Served::new(Fake::new(), None, false);
    let _transport = served.connect();
    assert_eq!(served.seen.lock().unwrap().config, [(4, vec![0x06, 0x04])]);
}

#[test]
fn interrupts_that_another_client_left_enabled_are_disabled() {
    let mut config = config_space();
    config[0x83] |= 0x80;
    let served = Served::with_config(Fake::new(), None, false, config);
    let _transport = served.connect();
    assert_eq!(served.seen.lock().unwrap().config, [(0x82, vec![39, 0]), (4, vec![0x06, 0x04])]);
}

#[test]
fn doorbells_are_mapped_where_the_server_offers_them() {
    let memory = rustix::fs::memfd_create(c"doorbells", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x2000).unwrap();
    let file = File::from(memory.try_clone().unwrap());
    let served = Served::new(Fake::new(), Some(file), false);
    let transport = served.connect();
    let doorbells = transport.doorbells().unwrap();
    assert_eq!(doorbells.len, 0x1000);
    // SAFETY: inside the doorbells, which are mapped as long as the transport lives.
    unsafe { doorbells.base.add(3).write_volatile(0x1234_5678) };
    let mut seen = [0; 4];
    rustix::io::pread(&memory, &mut seen, 0x100c).unwrap();
    assert_eq!(u32::from_le_bytes(seen), 0x1234_5678);
}

#[test]
fn a_doorbell_file_shorter_than_promised_is_an_error_and_not_a_sigbus() {
    let memory = rustix::fs::memfd_create(c"doorbells", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x1000).unwrap();
    let served = Served::new(Fake::new(), Some(File::from(memory)), false);
    let error = VfioUser::connect(&served.socket()).map(drop).unwrap_err().to_string();
    assert_eq!(error, "area 0x1000+0x1000 is not inside its file of 0x1000 bytes");
}

#[test]
fn without_a_mappable_area_doorbells_are_trapped() {
    let served = Served::new(Fake::new(), None, false);
    assert!(served.connect().doorbells().is_none());
}

#[test]
fn interrupts_are_connected_in_pieces_that_the_server_takes() {
    let served = Served::new(Fake::new(), None, false);
    let transport = served.connect();
    assert_eq!(transport.interrupt_vectors(), 40);
    let eventfds: Vec<_> =
        (0..3).map(|_| rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap()).collect();
    let some = |index: usize| -> Option<BorrowedFd<'_>> { Some(eventfds[index].as_fd()) };
    transport.set_interrupts(5, &[some(0), some(1), None, None, some(2)]).unwrap();
    transport.set_interrupts(6, &[None]).unwrap();
    let seen = served.seen.lock().unwrap();
    // This server takes one descriptor a message.
    let wanted = [(2, 5, 1, 1), (2, 6, 1, 1), (2, 7, 1, 0), (2, 8, 1, 0), (2, 9, 1, 1)];
    assert_eq!(seen.interrupts[..5], wanted);
    // The admin queue's vector as well, once: SPDK's target (26.05) fails the controller when an admin command's
    // interrupt goes nowhere.
    assert_eq!(seen.interrupts[5..], [(2, 0, 1, 1), (2, 6, 1, 0)]);
    assert_eq!(seen.config.last(), Some(&(0x82, vec![39, 0x80])), "MSI-X is enabled");
    rustix::io::write(&seen.eventfds[2], &1u64.to_ne_bytes()).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&eventfds[2], &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
fn the_admin_queues_vector_stays_connected_when_a_queue_gives_it_up() {
    let served = Served::new(Fake::new(), None, false);
    let transport = served.connect();
    let eventfd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    for _ in 0..2 {
        transport.set_interrupts(0, &[Some(eventfd.as_fd())]).unwrap();
        transport.set_interrupts(0, &[None]).unwrap();
    }
    let seen = served.seen.lock().unwrap();
    assert_eq!(seen.interrupts, [(2, 0, 1, 1), (2, 0, 1, 0), (2, 0, 1, 1)].repeat(2));
}

#[test]
fn a_refusal_is_an_error_and_not_taken_for_success() {
    let served = Served::new(Fake::new(), None, true);
    let error = Controller::open(Box::new(served.connect()), Options::default()).map(drop).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("vfio-user:") && error.contains("mapping") && error.contains("DMA memory"),
        "{error}"
    );
}

#[test]
fn a_reset_reaches_the_device_and_enables_it_again() {
    let served = Served::new(Fake::new(), None, false);
    let transport = served.connect();
    transport.reset().unwrap();
    let seen = served.seen.lock().unwrap();
    assert_eq!((seen.resets, seen.config.len()), (1, 2));
}

#[test]
fn admin_data_crosses_in_shared_memory() {
    let served = Served::new(Fake::new(), None, false);
    served.fake.state().identify.mdts = 4;
    let controller = Controller::open(Box::new(served.connect()), Options::default()).unwrap();
    assert_eq!(controller.max_transfer(), 64 << 10);
    let identified = |step: &&fake::Step| **step == fake::Step::Admin(AdminOpcode::IDENTIFY);
    assert_eq!(served.fake.state().steps.iter().filter(identified).count(), 1);
}

#[test]
fn a_server_that_talks_nonsense_is_an_error() {
    use std::io::{Read, Write};
    let nonsense: [&[u8]; 4] = [
        &[0; 16],
        &[0xff; 64],
        // A reply that says it is as long as memory.
        &[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0],
        // A reply with major version 7.
        &[0, 0, 1, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0],
    ];
    for bytes in nonsense {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        });
        VfioUser::connect(&path).map(drop).unwrap_err();
        server.join().unwrap();
    }
}
