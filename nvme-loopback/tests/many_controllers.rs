//! Many controllers on few reactors: they come and go under load without anybody's data suffering, and reactors share
//! nothing but messages of the control path.

use block_core::mem::MemDisk;
use nvme_emu::namespace::{Identity, Namespace as Served, NamespaceOptions};
use nvme_emu::pci::PciFunction;
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine, EngineOptions, PollMode};
use nvme_loopback::Loopback;
use nvme_vfio::{Controller, DmaBuffer, Namespace, Options, QueuePair};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CAPACITY: u64 = 1 << 20;
const BLOCK: usize = 4096;
const DEPTH: u16 = 16;

fn engine(reactors: usize, poll: PollMode) -> Engine {
    Engine::start(EngineOptions { reactors, poll, ..EngineOptions::default() }).unwrap()
}

/// A controller with a memory disk of its own.
fn add(engine: &Engine) -> PciFunction {
    let disk = Arc::new(MemDisk::with_capacity(CAPACITY).unwrap());
    let options = NamespaceOptions { block_size: Some(512), identity: Identity::Fresh };
    let namespace = Served::new(1, disk, &options).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions::default(), vec![namespace]).unwrap();
    engine.add_controller(&subsystem, &ControllerOptions::default()).unwrap()
}

fn open(function: &PciFunction, queues: u16) -> Controller {
    let transport = Loopback::new("loopback", function.clone()).unwrap();
    Controller::open(Box::new(transport), Options { queues, depth: DEPTH, ..Options::default() }).unwrap()
}

/// Waits for all that is in flight.
fn drain(pair: &mut QueuePair) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while pair.in_flight() > 0 {
        assert!(Instant::now() < deadline, "{} commands do not end", pair.in_flight());
        let polled = pair.poll(|_, result| result.expect("the command succeeds"));
        if polled.expect("the controller lives") == 0 {
            std::thread::yield_now();
        }
    }
}

/// A queue pair, and what is needed to use it.
struct Driven {
    pair: QueuePair,
    buffer: DmaBuffer,
    namespace: Namespace,
}

impl Driven {
    fn new(controller: &Controller) -> Self {
        Self {
            pair: controller.queue_pair().unwrap(),
            buffer: controller.alloc_dma(BLOCK * usize::from(DEPTH)).unwrap(),
            namespace: controller.namespace(1).unwrap(),
        }
    }
}

/// Writes every block of a part of the disk with what only this `seed` has, as deep as the queue goes, and reads it back.
fn write_and_verify(driven: &mut Driven, seed: u8) {
    let Driven { pair, buffer, namespace } = driven;
    let blocks = BLOCK as u32 / namespace.block_size();
    for batch in 0..4u64 {
        for write in [true, false] {
            for slot in 0..u64::from(DEPTH) {
                let range = slot as usize * BLOCK..(slot as usize + 1) * BLOCK;
                let data = seed ^ (batch * 16 + slot) as u8;
                buffer.fill(range.clone(), if write { data } else { !data });
                let slba = (batch * u64::from(DEPTH) + slot) * u64::from(blocks);
                let data = [buffer.range(range)];
                let submitted = if write {
                    pair.write(namespace, slba, blocks, data, false, slot)
                } else {
                    pair.read(namespace, slba, blocks, data, slot)
                };
                submitted.expect("there is room");
            }
            pair.kick();
            drain(pair);
        }
        for slot in 0..u64::from(DEPTH) {
            let mut data = vec![0; BLOCK];
            buffer.read_at(slot as usize * BLOCK, &mut data);
            let expected = seed ^ (batch * 16 + slot) as u8;
            assert!(
                data.iter().all(|&byte| byte == expected),
                "batch {batch}, slot {slot}: {:x?}",
                &data[..8]
            );
        }
    }
}

#[test]
fn sixty_four_controllers_come_and_go_while_one_is_under_load_and_all_data_is_right() {
    for (reactors, poll) in [(1, PollMode::Adaptive), (2, PollMode::Adaptive), (1, PollMode::Always)] {
        let engine = engine(reactors, poll);
        let steady = add(&engine);
        let others: Vec<PciFunction> = (0..64).map(|_| add(&engine)).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let controller = open(&steady, 1);
                let mut driven = Driven::new(&controller);
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) || rounds < 3 {
                    write_and_verify(&mut driven, rounds as u8);
                    rounds += 1;
                }
            });
            let guests: Vec<_> = others
                .chunks(16)
                .map(|functions| {
                    scope.spawn(move || {
                        for round in 0..2 {
                            // All of them are there at once, some idle, some at work; and then none.
                            let here: Vec<Controller> = functions.iter().map(|it| open(it, 2)).collect();
                            for (seed, controller) in here.iter().enumerate().skip(round).step_by(2) {
                                write_and_verify(&mut Driven::new(controller), seed as u8 * 16 + round as u8);
                            }
                        }
                    })
                })
                .collect();
            guests.into_iter().for_each(|guest| guest.join().expect("its data is right"));
            over.store(true, Ordering::Relaxed);
            load.join().expect("its data is right");
        });
        let counters = engine.counters();
        assert!(counters.controllers.iter().all(|it| it.errors == 0), "{counters:?}");
    }
}

#[test]
fn reactors_send_each_other_nothing_while_data_flows() {
    for poll in [PollMode::Adaptive, PollMode::Always] {
        let engine = engine(2, poll);
        let function = add(&engine);
        let controller = open(&function, 2);
        let mut both = [Driven::new(&controller), Driven::new(&controller)];
        // What the first command of all brings about is over.
        both.iter_mut().for_each(|driven| write_and_verify(driven, 1));
        let before = engine.counters();
        for seed in 0..20 {
            both.iter_mut().for_each(|driven| write_and_verify(driven, seed));
        }
        let after = engine.counters();
        assert_eq!(after.messages, before.messages, "{poll:?}");
        let each: Vec<u64> =
            after.commands.iter().zip(&before.commands).map(|(after, before)| after - before).collect();
        // Each queue is one reactor's alone.
        assert_eq!(each, [20 * 4 * 2 * u64::from(DEPTH); 2], "{poll:?}");
    }
}
