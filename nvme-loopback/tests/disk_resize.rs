//! A disk that becomes another size, below the whole chain: controller, driver, controller, driver. Each of them hears of
//! it from the one below.

mod drive;
mod rig;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use block_core::{CapacityWatcher, Disk, DiskInfo, Queue};
use drive::Emulated;
use nvme_emu::ControllerOptions;
use nvme_loopback::Loopback;
use nvme_spec::Status;
use nvme_vfio::{Controller, Namespace};
use rig::{pattern, run};

/// Far more than it takes.
const SOON: Duration = Duration::from_secs(20);

/// A memory disk of which only so much is said to be there.
struct Resizable {
    disk: Arc<dyn Disk>,
    capacity: AtomicU64,
    watchers: Mutex<Vec<Weak<CapacityWatcher>>>,
}

impl Resizable {
    fn new(capacity: u64) -> Arc<Self> {
        let (disk, watchers) = (drive::open("mem:64M"), Mutex::default());
        Arc::new(Self { disk, capacity: AtomicU64::new(capacity), watchers })
    }

    fn resize(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        for watcher in self.watchers.lock().unwrap().iter().filter_map(Weak::upgrade) {
            watcher();
        }
    }
}

impl Disk for Resizable {
    fn info(&self) -> DiskInfo {
        DiskInfo { capacity: self.capacity.load(Ordering::Relaxed), ..self.disk.info() }
    }

    fn watch_capacity(&self, changed: Weak<CapacityWatcher>) {
        self.watchers.lock().unwrap().push(changed);
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        self.disk.open_queue(depth)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}

/// Waits until the guest's driver has been told that the namespace has so many bytes, by an event and no other way.
fn is_told(capacity: &AtomicU64, bytes: u64) {
    let start = Instant::now();
    while capacity.load(Ordering::Relaxed) != bytes {
        assert!(start.elapsed() < SOON, "{} instead of {bytes}", capacity.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn guests_hear_of_it_and_use_what_is_new_and_nothing_that_has_gone() {
    let resizable = Resizable::new(32 << 20);
    let emulated =
        Emulated::new(vec![resizable.clone()], 512, &ControllerOptions::default(), drive::options());
    let (_engine, function) =
        drive::controller(vec![emulated.into_disk()], 512, &ControllerOptions::default());
    let transport = Loopback::new("guest", function).unwrap();
    let guest = Controller::open(Box::new(transport), drive::options()).unwrap();
    let namespace = guest.namespace(1).unwrap();
    let known = Arc::new(AtomicU64::new(namespace.capacity()));
    let told = known.clone();
    let watch = guest.watch_namespace(&namespace, move |now| {
        told.store(now.map_or(0, Namespace::capacity), Ordering::Relaxed);
    });
    let mut queue = guest.queue_pair().unwrap();
    let buffer = guest.alloc_dma(4096).unwrap();
    // The last block of 64 MiB.
    let last = (64 << 20) / 512 - 8;
    let data = buffer.range(0..4096);
    assert_eq!(
        run(&mut queue, |queue| queue.read(&namespace, last, 8, data, 0)).map_err(Status::code),
        Err(Status::LBA_OUT_OF_RANGE)
    );

    for _ in 0..3 {
        resizable.resize(64 << 20);
        is_told(&known, 64 << 20);
        buffer.write_at(0, &pattern(7, 4096));
        assert_eq!(run(&mut queue, |queue| queue.write(&namespace, last, 8, data, false, 0)), Ok(()));
        buffer.fill(0..4096, 0);
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, last, 8, data, 0)), Ok(()));
        let mut read = [0; 4096];
        buffer.read_at(0, &mut read);
        assert!(read[..] == pattern(7, 4096)[..]);

        resizable.resize(16 << 20);
        is_told(&known, 16 << 20);
        let end = (16 << 20) / 512;
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, end - 8, 8, data, 0)), Ok(()));
        assert_eq!(
            run(&mut queue, |queue| queue.read(&namespace, end - 7, 8, data, 0)).map_err(Status::code),
            Err(Status::LBA_OUT_OF_RANGE)
        );
    }
    drop(watch);
}
