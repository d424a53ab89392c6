//! The whole chain: a guest's driver, an emulated controller, a drive as its disk, which is an emulated controller
//! itself, in this process or behind a socket. The guest's data is not copied on the way to the drive.

mod drive;
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_core::{Disk, DiskInfo, Queue};
use drive::{Emulated, open};
use nvme_emu::{ControllerOptions, Engine};
use nvme_loopback::Loopback;
use nvme_spec::identify::IdentifyNamespace;
use nvme_vfio::disk::{Drive, NvmeDisk};
use nvme_vfio::{Controller, DmaBuffer, QueuePair};
use rig::{ServerProcess, pattern, run};

/// The guest's side of the chain. Fields go in the order of the chain.
struct Guest {
    controller: Controller,
    _engine: Engine,
}

impl Guest {
    fn on(disk: Arc<dyn Disk>, block_size: u32) -> Self {
        let (engine, function) = drive::controller(vec![disk], block_size, &ControllerOptions::default());
        let transport = Loopback::new("guest", function).unwrap();
        let controller = Controller::open(Box::new(transport), drive::options()).unwrap();
        Self { controller, _engine: engine }
    }

    /// Writes and reads back, over sizes and offsets in memory.
    fn check(&self) {
        let namespace = self.controller.namespace(1).unwrap();
        let mut queue = self.controller.queue_pair().unwrap();
        let buffer = self.controller.alloc_dma(1 << 20).unwrap();
        let block = namespace.block_size();
        for (lap, blocks) in [1, 2, 7, 8, 9, 16, 64, 100].into_iter().enumerate() {
            for at in [0, 4, 512, 2048, 4092] {
                let slba = lap as u64 * 1000 + at as u64;
                round_trip(&mut queue, &namespace, &buffer, at, (slba, blocks), block);
            }
        }
        assert_eq!(run(&mut queue, |queue| queue.flush(&namespace, 0)), Ok(()));
        assert_eq!(run(&mut queue, |queue| queue.write_zeroes(&namespace, 0, 8, true, false, 0)), Ok(()));
        let data = buffer.range(0..(8 * block) as usize);
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, 0, 8, data, 0)), Ok(()));
        let mut read = vec![1; (8 * block) as usize];
        buffer.read_at(0, &mut read);
        assert!(read.iter().all(|byte| *byte == 0));
    }
}

fn round_trip(
    queue: &mut QueuePair,
    namespace: &nvme_vfio::Namespace,
    buffer: &DmaBuffer,
    at: usize,
    (slba, blocks): (u64, u32),
    block: u32,
) {
    let len = (blocks * block) as usize;
    let data = pattern(slba << 8 | at as u64, len);
    buffer.write_at(at, &data);
    let range = buffer.range(at..at + len);
    assert_eq!(run(queue, |queue| queue.write(namespace, slba, blocks, range, false, 0)), Ok(()));
    buffer.fill(at..at + len, 0xa5);
    assert_eq!(run(queue, |queue| queue.read(namespace, slba, blocks, range, 0)), Ok(()));
    let mut read = vec![0; len];
    buffer.read_at(at, &mut read);
    assert!(read == data, "{blocks} blocks at {slba}, memory at {at}");
}

fn nothing_was_copied(drive: &Drive) {
    let counters = drive.counters();
    assert_eq!((counters.bytes_bounced, counters.blocks_read_to_write), (0, 0), "{counters:?}");
    assert!(counters.bytes_direct > 1 << 20, "{counters:?}");
}

#[test]
fn a_guests_data_reaches_a_drive_without_a_copy() {
    for (drive_block, guest_block) in [(512, 512), (512, 4096), (4096, 4096)] {
        let emulated = Emulated::new(
            vec![open("mem:64M")],
            drive_block,
            &ControllerOptions::default(),
            drive::options(),
        );
        let guest = Guest::on(Arc::new(emulated.disk(1)), guest_block);
        guest.check();
        nothing_was_copied(&emulated.drive);
    }
}

#[test]
fn nor_does_it_on_the_way_to_a_drive_behind_a_socket() {
    let server = ServerProcess::start(rig::Emulated::default());
    let name = format!("vfio-user:{}/1", server.socket().display());
    let disk: NvmeDisk = nvme_vfio::disk::open::open_vfio_user(name.parse().unwrap()).unwrap();
    let again = nvme_vfio::disk::open::open_vfio_user(name.parse().unwrap()).unwrap();
    assert!(Arc::ptr_eq(disk.drive(), again.drive()), "opened once");
    let other = format!("{name},depth=17").parse().unwrap();
    let error = nvme_vfio::disk::open::open_vfio_user(other).err().unwrap().to_string();
    assert!(error.contains("depth="), "{error}");
    let drive = disk.drive().clone();
    let guest = Guest::on(Arc::new(disk), 512);
    guest.check();
    nothing_was_copied(&drive);
    drop((guest, again, drive));
    // Closed with its last user, so that it can be opened in another way.
    nvme_vfio::disk::open::open_vfio_user(format!("{name},depth=17").parse().unwrap()).unwrap();
}

#[test]
fn two_guests_share_a_drive() {
    let emulated = Emulated::on("mem:64M");
    let guests: Vec<Guest> = (0..2).map(|_| Guest::on(Arc::new(emulated.disk(1)), 512)).collect();
    let namespaces: Vec<_> = guests.iter().map(|guest| guest.controller.namespace(1).unwrap()).collect();
    let mut queues: Vec<_> = guests.iter().map(|guest| guest.controller.queue_pair().unwrap()).collect();
    let buffers: Vec<_> = guests.iter().map(|guest| guest.controller.alloc_dma(4096).unwrap()).collect();
    let data = pattern(1, 4096);
    buffers[0].write_at(0, &data);
    let range = buffers[0].range(0..4096);
    assert_eq!(run(&mut queues[0], |queue| queue.write(&namespaces[0], 8, 8, range, false, 0)), Ok(()));
    let range = buffers[1].range(0..4096);
    assert_eq!(run(&mut queues[1], |queue| queue.read(&namespaces[1], 8, 8, range, 0)), Ok(()));
    let mut read = vec![0; 4096];
    buffers[1].read_at(0, &mut read);
    assert!(read == data);
    assert_eq!(emulated.drive.counters().bytes_bounced, 0);
}

/// Memory of the guest comes and goes while others of its memory is in use.
#[test]
fn memory_is_unmapped_under_load() {
    let emulated = Emulated::on("mem:64M");
    let guest = Guest::on(Arc::new(emulated.disk(1)), 512);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (guest, stop) = (&guest, &stop);
            scope.spawn(move || {
                let namespace = guest.controller.namespace(1).unwrap();
                let mut queue = guest.controller.queue_pair().unwrap();
                let buffer = guest.controller.alloc_dma(1 << 16).unwrap();
                let mut lap = 0;
                while !stop.load(Ordering::Relaxed) || lap == 0 {
                    let place = (thread * 1000 + lap % 100 * 8, 8);
                    round_trip(&mut queue, &namespace, &buffer, 512, place, 512);
                    lap += 1;
                }
            });
        }
        let namespace = guest.controller.namespace(1).unwrap();
        let mut queue = guest.controller.queue_pair().unwrap();
        for lap in 0..60 {
            // Where another had been a moment before.
            let buffer = guest.controller.alloc_dma(1 << 16).unwrap();
            round_trip(&mut queue, &namespace, &buffer, 0, (50_000 + lap * 64, 64), 512);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(emulated.drive.counters().bytes_bounced, 0);
}

/// A disk that has something to say about itself.
struct Described(Arc<dyn Disk>);

impl Disk for Described {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            physical_block_size: 4096,
            discard_granularity: 65536,
            optimal_io: 256 << 10,
            atomic_write: 16384,
            ..self.0.info()
        }
    }

    fn open_queue(&self, depth: u16) -> std::io::Result<Box<dyn Queue>> {
        self.0.open_queue(depth)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_drives_hints_show_through_to_the_guest() {
    let options = ControllerOptions::default();
    let medium: Arc<dyn Disk> = Arc::new(Described(open("mem:16M")));
    let drive = Emulated::new(vec![medium], 512, &options, drive::options());
    let of_drive = drive.drive.controller().identify_namespace(1).unwrap();
    let guest = Guest::on(drive.into_disk(), 512);
    let of_guest = guest.controller.identify_namespace(1).unwrap();
    let hints = |id: &IdentifyNamespace| [id.npwg, id.npdg, id.nows, id.nawupf];
    assert_eq!(hints(&of_drive), [7, 127, 511, 31]);
    assert_eq!(hints(&of_guest), hints(&of_drive));
    assert!(of_guest.nsfeat.optperf() && of_guest.nsfeat.nsabp());
    assert_eq!((of_guest.nsze, of_guest.dlfeat), (of_drive.nsze, of_drive.dlfeat));
}
