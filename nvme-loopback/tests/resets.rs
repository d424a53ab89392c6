//! Resets, shutdowns and deaths, with I/O under way.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nvme_spec::async_event::AsynchronousEvent;
use nvme_vfio::transport::{Transport, VfioUser};
use nvme_vfio::{Controller, Fault, Options, QueuePair};
use rig::{Emulated, PLACES, Rig, ServerProcess, pattern, run};

/// Faults are to be seen here, not recovered from.
fn plain() -> Options {
    Options { recovery: None, ..Options::default() }
}

/// Keeps a queue pair busy until it breaks or `stop` is set; counts completions.
fn load(
    controller: &Controller,
    queue: &mut QueuePair,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Option<Fault> {
    let namespace = controller.namespace(1).unwrap();
    let buffer = controller.alloc_dma(64 << 10).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut slba = 0;
        while queue.read(&namespace, slba, 128, buffer.range(0..64 << 10), 0).is_ok() {
            slba += 128;
        }
        queue.kick();
        match queue.poll(|_, result| assert_eq!(result, Ok(()))) {
            Ok(count) => {
                done.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(fault) => return Some(fault),
        }
    }
    None
}

#[test]
fn a_controller_reset_under_load_breaks_old_queue_pairs_and_new_ones_work() {
    for place in PLACES {
        let options = Options { queues: 4, depth: 32, recovery: None, ..Options::default() };
        let rig = Rig::new(place, Emulated::default(), options);
        let controller = &rig.controller;
        let namespace = controller.namespace(1).unwrap();
        let data = pattern(1, 4096);
        for _ in 0..10 {
            let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
            thread::scope(|scope| {
                let worker = |mut queue| {
                    let (stop, done) = (&stop, &done);
                    scope.spawn(move || load(controller, &mut queue, stop, done))
                };
                let workers = [(); 2].map(|()| worker(controller.queue_pair().unwrap()));
                let start = Instant::now();
                while done.load(Ordering::Relaxed) < 100 {
                    assert!(start.elapsed() < Duration::from_secs(20), "no I/O");
                    thread::yield_now();
                }
                controller.reset().unwrap();
                for worker in workers {
                    assert_eq!(worker.join().unwrap(), Some(Fault::Reset));
                }
            });
            let mut queue = controller.queue_pair().unwrap();
            let buffer = controller.alloc_dma(4096).unwrap();
            buffer.write_at(0, &data);
            let range = buffer.range(0..4096);
            assert_eq!(run(&mut queue, |queue| queue.write(&namespace, 5, 8, range, true, 0)), Ok(()));
            assert_eq!(run(&mut queue, |queue| queue.compare(&namespace, 5, 8, range, 0)), Ok(()));
        }
    }
}

#[test]
fn dropping_a_queue_pair_with_commands_in_flight_hurts_nobody() {
    for place in PLACES {
        let options = Options { queues: 2, ..Options::default() };
        let rig = Rig::new(place, Emulated::default(), options);
        let namespace = rig.controller.namespace(1).unwrap();
        let mut steady = rig.controller.queue_pair().unwrap();
        for _ in 0..20 {
            let mut queue = rig.controller.queue_pair().unwrap();
            let buffer = rig.controller.alloc_dma(1 << 20).unwrap();
            while queue.read(&namespace, 0, 2048, buffer.range(0..1 << 20), 0).is_ok() {}
            queue.kick();
            // The memory first: the controller must let go of it.
            drop(buffer);
            drop(queue);
            assert_eq!(run(&mut steady, |queue| queue.flush(&namespace, 0)), Ok(()));
        }
    }
}

#[test]
fn data_outlives_the_driver() {
    let server = ServerProcess::start(Emulated::default());
    let data = pattern(3, 8192);
    for round in 0..3 {
        let transport = VfioUser::connect(&server.socket()).unwrap();
        let controller = Controller::open(Box::new(transport), Options::default()).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let mut queue = controller.queue_pair().unwrap();
        let buffer = controller.alloc_dma(8192).unwrap();
        if round == 0 {
            buffer.write_at(0, &data);
            let range = buffer.range(0..8192);
            assert_eq!(run(&mut queue, |queue| queue.write(&namespace, 9, 16, range, true, 0)), Ok(()));
        }
        let range = buffer.range(0..8192);
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, 9, 16, range, 0)), Ok(()));
        let mut read = vec![0; 8192];
        buffer.read_at(0, &mut read);
        assert!(read == data, "round {round}");
    }
}

#[test]
fn a_server_that_dies_is_noticed_and_everything_can_still_be_dropped() {
    let mut server = ServerProcess::start(Emulated::default());
    let transport = VfioUser::connect(&server.socket()).unwrap();
    let controller = Controller::open(Box::new(transport), plain()).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    server.kill();
    let start = Instant::now();
    let _ = queue.flush(&namespace, 0);
    queue.kick();
    let fault = loop {
        assert!(start.elapsed() < Duration::from_secs(10));
        if let Err(fault) = queue.poll(|_, _| panic!("nobody is there to complete it")) {
            break fault;
        }
    };
    assert!(matches!(fault, Fault::Gone | Fault::Doorbell { .. }), "{fault}");
    let error = controller.namespaces().map(drop).unwrap_err().to_string();
    assert!(error.starts_with("vfio-user:") && error.contains("admin queue's doorbell"), "{error}");
    drop((queue, controller));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn nobody_listening_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = VfioUser::connect(&folder.path().join("socket")).map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_bad_doorbell_is_reported_as_an_event() {
    let server = ServerProcess::start(Emulated::default());
    let transport = std::sync::Arc::new(VfioUser::connect(&server.socket()).unwrap());
    let controller = Controller::open(Box::new(Shared(transport.clone())), Options::default()).unwrap();
    // The submission queue tail of a queue that does not exist.
    transport.write32(0x1000 + 8 * 5, 1).unwrap();
    let start = Instant::now();
    let events = loop {
        assert!(start.elapsed() < Duration::from_secs(10), "no event");
        let events = controller.events().unwrap();
        if !events.is_empty() {
            break events;
        }
        thread::yield_now();
    };
    assert_eq!(events, [AsynchronousEvent::INVALID_DOORBELL_REGISTER]);
}

#[test]
fn a_function_reset_under_load_ends_in_a_fault_and_a_reset_brings_the_controller_back() {
    // The transport is shared with the driver here, to do behind its back what a host's administrator could.
    let server = ServerProcess::start(Emulated::default());
    let transport = std::sync::Arc::new(VfioUser::connect(&server.socket()).unwrap());
    let controller = Controller::open(Box::new(Shared(transport.clone())), plain()).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    transport.reset().unwrap();
    let start = Instant::now();
    let fault = loop {
        assert!(start.elapsed() < Duration::from_secs(10));
        let _ = queue.flush(&namespace, 0);
        queue.kick();
        if let Err(fault) = queue.poll(|_, _| ()) {
            break fault;
        }
    };
    assert_eq!(fault, Fault::Reset);
    drop(queue);
    controller.reset().unwrap();
    let mut queue = controller.queue_pair().unwrap();
    assert_eq!(run(&mut queue, |queue| queue.flush(&namespace, 0)), Ok(()));
}

/// A transport that somebody else holds too.
struct Shared(std::sync::Arc<VfioUser>);

impl Transport for Shared {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn read32(&self, offset: u64) -> std::io::Result<u32> {
        self.0.read32(offset)
    }
    fn read64(&self, offset: u64) -> std::io::Result<u64> {
        self.0.read64(offset)
    }
    fn write32(&self, offset: u64, value: u32) -> std::io::Result<()> {
        self.0.write32(offset, value)
    }
    fn write64(&self, offset: u64, value: u64) -> std::io::Result<()> {
        self.0.write64(offset, value)
    }
    fn ring(&self, offset: u64, value: u32) -> std::io::Result<()> {
        self.0.ring(offset, value)
    }
    fn doorbells(&self) -> Option<nvme_vfio::transport::DoorbellMemory> {
        self.0.doorbells()
    }
    fn dma_limits(&self) -> nvme_vfio::transport::DmaLimits {
        self.0.dma_limits()
    }
    unsafe fn map_dma(&self, iova: u64, memory: &nvme_vfio::transport::DmaMemory<'_>) -> std::io::Result<()> {
        // SAFETY: passed on as it is.
        unsafe { self.0.map_dma(iova, memory) }
    }
    fn unmap_dma(&self, iova: u64, len: u64) -> std::io::Result<()> {
        self.0.unmap_dma(iova, len)
    }
    fn interrupt_vectors(&self) -> u32 {
        self.0.interrupt_vectors()
    }
    fn set_interrupts(
        &self,
        start: u32,
        eventfds: &[Option<std::os::fd::BorrowedFd<'_>>],
    ) -> std::io::Result<()> {
        self.0.set_interrupts(start, eventfds)
    }
    fn reset(&self) -> std::io::Result<()> {
        self.0.reset()
    }
}
