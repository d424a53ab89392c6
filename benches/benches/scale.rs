//! What a reactor takes for a command when there are many controllers, many queues, or a second reactor.
//!
//! ```sh
//! cargo bench -p benches --bench scale
//! ```
//!
//! As in `instructions.rs`, a driver and its reactors run in one thread, one after the other, and only the reactors' rounds
//! are timed: what is measured does not depend on how many CPUs there are (but for the last group, which needs two).
//! 4 KiB reads of `null:`, 32 in flight on each busy queue. Every figure is for one command, so in a perfect world
//! those of a group are the same.
//!
//! What counts are the ratios in a group, so its members take turns of some milliseconds, and each turn is held against
//! the first member's just before it. Printed are the medians.

use nvme_emu::bench::SteppedReactor;
use nvme_emu::namespace::{Identity, Namespace as Served, NamespaceOptions};
use nvme_emu::pci::PciFunction;
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine};
use nvme_loopback::Loopback;
use nvme_vfio::{Controller, DmaBuffer, Namespace, Options, QueuePair};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const IODEPTH: u64 = 32;
const BLOCK: usize = 4096;

/// Turns of each member of a group, and commands in a turn.
const TURNS: usize = 100;
const COMMANDS: u64 = 1 << 16;

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
    controller: Controller,
}

impl Driven {
    fn open(function: PciFunction, queues: u16) -> Self {
        let transport = Loopback::new("bench", function).expect("a transport");
        // Without its own thread, which would look in now and then.
        let options = Options { queues, depth: IODEPTH as u16, recovery: None, ..Options::default() };
        let controller = Controller::open(Box::new(transport), options).expect("a controller");
        Self {
            pairs: (0..queues).map(|_| controller.queue_pair().expect("a queue pair")).collect(),
            namespace: controller.namespace(1).expect("a namespace"),
            buffer: controller.alloc_dma(BLOCK * IODEPTH as usize).expect("memory"),
            controller,
        }
    }

    fn submit(&mut self) {
        self.pairs.iter_mut().for_each(|pair| submit(pair, &self.namespace, &self.buffer));
    }

    fn complete(&mut self) -> usize {
        self.pairs.iter_mut().map(complete).sum()
    }
}

fn submit(pair: &mut QueuePair, namespace: &Namespace, buffer: &DmaBuffer) {
    let blocks = BLOCK as u32 / namespace.block_size();
    for token in 0..IODEPTH {
        let at = token as usize * BLOCK;
        let data = buffer.range(at..at + BLOCK);
        pair.read(namespace, token * u64::from(blocks), blocks, data, token).expect("room");
    }
    pair.kick();
}

fn complete(pair: &mut QueuePair) -> usize {
    pair.poll(|_, result| result.expect("a read that succeeds")).expect("a controller that lives")
}

/// Controllers, each with a `null:` of its own.
fn functions(engine: &Engine, controllers: usize) -> Vec<PciFunction> {
    let function = |_| {
        let disk = block_core::Registry::default().open("null:1T".parse().unwrap()).expect("a disk");
        let options = NamespaceOptions { block_size: Some(512), identity: Identity::Fresh };
        let served = Served::new(1, disk, &options).expect("a namespace");
        let subsystem = Subsystem::new(SubsystemOptions::default(), vec![served]).expect("a subsystem");
        engine.add_controller(&subsystem, &ControllerOptions::default()).expect("a controller")
    };
    (0..controllers).map(function).collect()
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
        let functions = functions(&engine, case.controllers);
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

impl Setup {
    /// A member's turn: so many commands, and the time for one.
    fn turn(&mut self) -> f64 {
        let commands = (self.busy * self.driven[0].pairs.len()) as u64 * IODEPTH;
        let batches = COMMANDS.div_ceil(commands);
        let time: Duration = (0..batches).map(|_| self.batch()).sum();
        time.as_secs_f64() * 1e9 / (batches * commands) as f64
    }
}

/// The median of what there is.
fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn report(name: &str, member: &str, times: &[f64], first: &[f64]) {
    let ratio = median(times.iter().zip(first).map(|(time, first)| time / first));
    println!("{name:36} {member:>8} {:8.1} ns  {ratio:6.3}", median(times.iter().copied()));
}

fn group(name: &str, cases: &[(usize, Case)]) {
    let mut setups: Vec<_> = cases.iter().map(|&(_, case)| Setup::new(case)).collect();
    let messages: Vec<_> = setups
        .iter_mut()
        .map(|setup| {
            setup.turn();
            setup.engine.counters().messages
        })
        .collect();
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..TURNS {
        for (setup, times) in setups.iter_mut().zip(&mut times) {
            times.push(setup.turn());
        }
    }
    for (&(member, _), member_times) in cases.iter().zip(&times) {
        report(name, &member.to_string(), member_times, &times[0]);
    }
    for (setup, before) in setups.into_iter().zip(messages) {
        assert_eq!(setup.engine.counters().messages, before, "messages between threads on the data path");
        // Its shutdown would wait for reactors that nobody runs any more.
        std::mem::forget(setup);
    }
}

/// A driver's end of one queue pair.
type OnePair = (QueuePair, Namespace, DmaBuffer);

/// What a reactor and the driver of a queue pair of its do on their thread: turns alone and together with the other
/// thread's. Answers the time for a command in each of them.
fn in_turns(reactor: &mut SteppedReactor, one: &mut OnePair, first: bool, turn: &Barrier) -> Vec<f64> {
    let (pair, namespace, buffer) = one;
    let mut times = Vec::new();
    for together in [false, true].repeat(TURNS) {
        turn.wait();
        if !first && !together {
            continue;
        }
        let mut time = Duration::ZERO;
        for _ in 0..COMMANDS / IODEPTH {
            submit(pair, namespace, buffer);
            let began = Instant::now();
            reactor.round().expect("an engine that runs");
            time += began.elapsed();
            assert_eq!(complete(pair), IODEPTH as usize, "everything is done in one round");
        }
        times.push(time.as_secs_f64() * 1e9 / COMMANDS as f64);
    }
    times
}

/// Two reactors of one controller, each with a queue pair and a thread of its own: the first works alone and with the
/// other in turns.
fn apart(name: &str) {
    let (engine, makers) = SteppedReactor::start_on_threads(2).expect("an engine");
    let turn = Arc::new(Barrier::new(2));
    let (pairs, threads): (Vec<_>, Vec<_>) = makers
        .into_iter()
        .enumerate()
        .map(|(index, make)| {
            let (sender, receiver) = channel();
            let turn = turn.clone();
            let thread = std::thread::spawn(move || {
                let mut reactor = make().expect("a reactor");
                let mut one: OnePair = loop {
                    reactor.round().expect("an engine that runs");
                    if let Ok(one) = receiver.try_recv() {
                        break one;
                    }
                    std::thread::yield_now();
                };
                let times = in_turns(&mut reactor, &mut one, index == 0, &turn);
                // Nobody runs the reactor any more that their end would wait for.
                std::mem::forget((reactor, one));
                times
            });
            (sender, thread)
        })
        .unzip();
    let functions = functions(&engine, 1);
    let driven = Driven::open(functions.into_iter().next().expect("a controller"), 2);
    let buffer = || driven.controller.alloc_dma(BLOCK * IODEPTH as usize).expect("memory");
    let buffers = [buffer(), buffer()];
    // From here on nobody answers anything else.
    let messages = engine.counters().messages;
    for ((pair, buffer), sender) in driven.pairs.into_iter().zip(buffers).zip(pairs) {
        sender.send((pair, driven.namespace.clone(), buffer)).expect("a thread that waits for it");
    }
    let times: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a thread")).collect();
    let (alone, together): (Vec<_>, Vec<_>) = times[0].chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    report(name, "alone", &alone, &alone);
    report(name, "both", &together, &alone);
    assert_eq!(engine.counters().messages, messages, "messages between threads on the data path");
    std::mem::forget((engine, driven.controller));
}

fn main() {
    println!("{:36} {:>8} {:>11}  {:>6}", "", "", "a command", "ratio");
    let alone = Case { controllers: 1, busy: 1, queues: 1, reactors: 1 };
    let several = |counts: &[usize], case: &dyn Fn(usize) -> Case| -> Vec<_> {
        counts.iter().map(|&count| (count, case(count))).collect()
    };
    group(
        "one of so many controllers is busy",
        &several(&[1, 16, 64], &|controllers| Case { controllers, ..alone }),
    );
    group(
        "so many controllers are busy",
        &several(&[1, 16, 64], &|controllers| Case { controllers, busy: controllers, ..alone }),
    );
    for reactors in [1, 2] {
        let name = format!("so many queues on {reactors} reactor{}", if reactors > 1 { "s" } else { "" });
        group(&name, &several(&[1, 2, 4, 8], &|queues| Case { queues: queues as u16, reactors, ..alone }));
    }
    apart("two reactors on two CPUs");
}
