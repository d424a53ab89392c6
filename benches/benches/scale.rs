//! What a reactor takes for a command when there are many controllers, many queues, or a second reactor.
//!
//! ```sh
//! cargo bench -p benches --bench scale
//! ```
//!
//! As in `instructions.rs`, driver and reactors run in one thread, one after the other, and only the reactors' rounds are
//! timed: what is measured does not depend on how many CPUs there are. 4 KiB reads of `null:`, 32 in flight on each
//! busy queue. Every figure is for one command, so in a perfect world those of a group are the same.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvme_emu::bench::SteppedReactor;
use nvme_emu::namespace::{Identity, Namespace as Served, NamespaceOptions};
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine};
use nvme_loopback::Loopback;
use nvme_vfio::{Controller, DmaBuffer, Namespace, Options, QueuePair};
use std::time::{Duration, Instant};

const IODEPTH: u64 = 32;
const BLOCK: usize = 4096;

/// What there is, and what of it is busy.
#[derive(Clone, Copy)]
struct Case {
    controllers: usize,
    busy: usize,
    /// Queue pairs of each.
    queues: u16,
    reactors: usize,
}

/// A driver's end of a controller.
struct Driven {
    pairs: Vec<QueuePair>,
    namespace: Namespace,
    buffer: DmaBuffer,
    // After what is its.
    _controller: Controller,
}

impl Driven {
    fn open(function: nvme_emu::pci::PciFunction, queues: u16) -> Self {
        let transport = Loopback::new("bench", function).expect("a transport");
        // Without its own thread, which would look in now and then.
        let options = Options { queues, depth: IODEPTH as u16, recovery: None, ..Options::default() };
        let controller = Controller::open(Box::new(transport), options).expect("a controller");
        Self {
            pairs: (0..queues).map(|_| controller.queue_pair().expect("a queue pair")).collect(),
            namespace: controller.namespace(1).expect("a namespace"),
            buffer: controller.alloc_dma(BLOCK * IODEPTH as usize).expect("memory"),
            _controller: controller,
        }
    }

    fn submit(&mut self) {
        let blocks = BLOCK as u32 / self.namespace.block_size();
        for pair in &mut self.pairs {
            for token in 0..IODEPTH {
                let at = token as usize * BLOCK;
                let data = self.buffer.range(at..at + BLOCK);
                pair.read(&self.namespace, token * u64::from(blocks), blocks, data, token).expect("room");
            }
            pair.kick();
        }
    }

    fn complete(&mut self) -> usize {
        let poll = |pair: &mut QueuePair| {
            pair.poll(|_, result| result.expect("a read that succeeds")).expect("a controller that lives")
        };
        self.pairs.iter_mut().map(poll).sum()
    }
}

struct Setup {
    engine: Engine,
    reactors: Vec<SteppedReactor>,
    driven: Vec<Driven>,
    busy: usize,
}

impl Setup {
    fn new(case: Case) -> Self {
        let (engine, mut reactors) = SteppedReactor::start_several(case.reactors).expect("an engine");
        let functions: Vec<_> = (0..case.controllers)
            .map(|_| {
                let disk = block_core::Registry::default().open("null:1T".parse().unwrap()).expect("a disk");
                let options = NamespaceOptions { block_size: Some(512), identity: Identity::Fresh };
                let served = Served::new(1, disk, &options).expect("a namespace");
                let subsystem =
                    Subsystem::new(SubsystemOptions::default(), vec![served]).expect("a subsystem");
                engine.add_controller(&subsystem, &ControllerOptions::default()).expect("a controller")
            })
            .collect();
        let bring_up = std::thread::spawn(move || -> Vec<Driven> {
            functions.into_iter().map(|function| Driven::open(function, case.queues)).collect()
        });
        while !bring_up.is_finished() {
            for reactor in &mut reactors {
                reactor.round().expect("an engine that runs");
            }
            std::thread::yield_now();
        }
        let driven = bring_up.join().expect("controllers");
        Self { engine, reactors, driven, busy: case.busy }
    }

    /// A batch on every busy queue, and the time that the reactors took for it.
    fn batch(&mut self) -> Duration {
        self.driven[..self.busy].iter_mut().for_each(Driven::submit);
        let commands = self.busy * self.driven[0].pairs.len() * IODEPTH as usize;
        let (mut time, mut completed) = (Duration::ZERO, 0);
        while completed < commands {
            let began = Instant::now();
            for reactor in &mut self.reactors {
                reactor.round().expect("an engine that runs");
            }
            time += began.elapsed();
            completed += self.driven[..self.busy].iter_mut().map(Driven::complete).sum::<usize>();
        }
        time
    }
}

fn bench(criterion: &mut Criterion, group: &str, name: &str, case: Case) {
    let mut setup = Setup::new(case);
    for _ in 0..1000 {
        setup.batch();
    }
    let commands = (case.busy * usize::from(case.queues)) as u64 * IODEPTH;
    let before = setup.engine.counters().messages;
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |bencher| {
        // An iteration is a command.
        bencher.iter_custom(|iterations| {
            let batches = iterations.div_ceil(commands);
            let time: Duration = (0..batches).map(|_| setup.batch()).sum();
            time.mul_f64(iterations as f64 / (batches * commands) as f64)
        });
    });
    group.finish();
    assert_eq!(setup.engine.counters().messages, before, "messages between threads on the data path");
    // Its shutdown would wait for reactors that nobody runs any more.
    std::mem::forget(setup);
}

fn scale(criterion: &mut Criterion) {
    let alone = Case { controllers: 1, busy: 1, queues: 1, reactors: 1 };
    for controllers in [1, 16, 64] {
        let case = Case { controllers, ..alone };
        bench(criterion, "one of so many controllers is busy", &controllers.to_string(), case);
    }
    for controllers in [1, 16, 64] {
        let case = Case { controllers, busy: controllers, ..alone };
        bench(criterion, "so many controllers are busy", &controllers.to_string(), case);
    }
    for reactors in [1, 2] {
        for queues in [1, 2, 4, 8] {
            let case = Case { queues, reactors, ..alone };
            let group =
                format!("so many queues on {reactors} reactor{}", if reactors > 1 { "s" } else { "" });
            bench(criterion, &group, &queues.to_string(), case);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = scale
}
criterion_main!(benches);
