//! Memory taken away and controllers reset while others write and read, and all that they read is what they wrote:
//! with shadow doorbells, with trapped ones and with mapped ones, in one process and in two.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nvme_emu::PollMode;
use nvme_spec::Status;
use nvme_vfio::{Controller, Namespace, Options, QueuePair, Recovery};
use rig::{Emulated, PLACES, Place, Rig, pattern};

/// Commands in flight from each worker.
const DEPTH: usize = 16;
/// Queue pairs under load.
const WORKERS: u64 = 2;
/// Blocks of 512 bytes that each worker has for itself.
const OWN_BLOCKS: u64 = 32_768;

/// The three kinds of doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doorbells {
    Shadow,
    Trapped,
    Mapped,
}

const DOORBELLS: [Doorbells; 3] = [Doorbells::Shadow, Doorbells::Trapped, Doorbells::Mapped];

fn start(place: Place, doorbells: Doorbells) -> Rig {
    let poll = if doorbells == Doorbells::Mapped { PollMode::Always } else { PollMode::Adaptive };
    let options = Options {
        queues: WORKERS as u16 + 1,
        depth: DEPTH as u16,
        shadow_doorbells: doorbells == Doorbells::Shadow,
        // Resets are what these tests are about: it must not give up after some of them.
        recovery: Some(Recovery { resets: 1000, ..Recovery::default() }),
        ..Options::default()
    };
    let rig = Rig::new(place, Emulated { poll, ..Emulated::default() }, options);
    assert_eq!(rig.controller.shadow_doorbells(), doorbells == Doorbells::Shadow);
    rig
}

/// Kicks off what was submitted and waits for its end; the tokens of what a reset has ended without an answer.
fn complete(queue: &mut QueuePair, count: usize) -> Vec<u64> {
    let (mut left, mut ended) = (count, Vec::new());
    let start = Instant::now();
    while left > 0 {
        queue.kick();
        let found = queue.poll(|token, result| match result {
            Ok(()) => {}
            Err(Status::COMMAND_ABORTED_BY_HOST) => ended.push(token),
            Err(status) => panic!("a command ended with {status}"),
        });
        left -= found.unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{left} of {count} commands do not end");
        thread::yield_now();
    }
    ended
}

/// Does a command in each slot until all of them have succeeded.
fn all(queue: &mut QueuePair, mut submit: impl FnMut(&mut QueuePair, u64)) {
    let mut slots: Vec<u64> = (0..DEPTH as u64).collect();
    while !slots.is_empty() {
        slots.iter().for_each(|slot| submit(queue, *slot));
        slots = complete(queue, slots.len());
    }
}

/// Writes to a part of the disk of its own, reads it back and compares, until `stop` is set. Counts laps.
fn write_and_verify(
    controller: &Controller,
    (index, namespace, mut queue): (u64, Namespace, QueuePair),
    stop: &AtomicBool,
    laps: &AtomicU64,
) {
    let written = controller.alloc_dma(DEPTH * 4096).unwrap();
    let read = controller.alloc_dma(DEPTH * 4096).unwrap();
    let mut lap = 0;
    while !stop.load(Ordering::Relaxed) {
        // Each slot has a place of its own, another one in each lap.
        let slba = |slot: u64| index * OWN_BLOCKS + (slot * 37 + lap * 11) % 4_000 * 8;
        let data = |slot: u64| pattern(index << 40 | lap << 8 | slot, 4096);
        let range = |slot: u64| slot as usize * 4096..(slot as usize + 1) * 4096;
        (0..DEPTH as u64).for_each(|slot| written.write_at(range(slot).start, &data(slot)));
        read.fill(0..DEPTH * 4096, 0);
        all(&mut queue, |queue, slot| {
            queue.write(&namespace, slba(slot), 8, written.range(range(slot)), false, slot).unwrap();
        });
        all(&mut queue, |queue, slot| {
            queue.read(&namespace, slba(slot), 8, read.range(range(slot)), slot).unwrap();
        });
        for slot in 0..DEPTH as u64 {
            let mut found = [0; 4096];
            read.read_at(range(slot).start, &mut found);
            assert!(found == data(slot)[..], "worker {index}, lap {lap}, slot {slot}");
        }
        lap += 1;
        laps.fetch_add(1, Ordering::Relaxed);
    }
}

/// Does something `times` times while workers write and verify, and lets them make laps in between.
fn under_load(controller: &Controller, times: u32, mut disturb: impl FnMut()) {
    let (stop, laps) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (stop, laps) = (&stop, &laps);
        // Before anything is disturbed: to look at the namespace takes a command too.
        let open = |index| (index, controller.namespace(1).unwrap(), controller.queue_pair().unwrap());
        for worker in (0..WORKERS).map(open).collect::<Vec<_>>() {
            scope.spawn(move || {
                // So that the others end, and their failure is seen, when this one fails.
                let _stop = StopAtEnd(stop);
                write_and_verify(controller, worker, stop, laps);
            });
        }
        let _stop = StopAtEnd(stop);
        let begin = Instant::now();
        for time in 0..times {
            let before = laps.load(Ordering::Relaxed);
            disturb();
            while laps.load(Ordering::Relaxed) < before + 2 && !stop.load(Ordering::Relaxed) {
                assert!(begin.elapsed() < Duration::from_secs(60), "no progress after {time} times");
                thread::yield_now();
            }
        }
    });
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn memory_is_unmapped_under_load_and_nobody_elses_data_suffers() {
    for place in PLACES {
        for doorbells in DOORBELLS {
            let rig = start(place, doorbells);
            let controller = &rig.controller;
            let namespace = controller.namespace(1).unwrap();
            let mut queue = controller.queue_pair().unwrap();
            under_load(controller, 20, || {
                // Reads of another part of the disk, into memory that goes while they are in flight.
                let buffer = controller.alloc_dma(DEPTH << 16).unwrap();
                for slot in 0..DEPTH {
                    let range = buffer.range(slot << 16..(slot + 1) << 16);
                    queue.read(&namespace, WORKERS * OWN_BLOCKS, 128, range, slot as u64).unwrap();
                }
                queue.kick();
                drop(buffer);
                // They end all the same: in time, or with an error that says that the memory is gone.
                let (mut left, begin) = (DEPTH, Instant::now());
                while left > 0 {
                    let taken = queue.poll(|_, result| {
                        // There is more about it in the error log.
                        let gone = Err(Status::DATA_TRANSFER_ERROR.with_more());
                        assert!(result == Ok(()) || result == gone, "{result:?}");
                    });
                    left -= taken.unwrap();
                    assert!(
                        begin.elapsed() < Duration::from_secs(60),
                        "{place:?} {doorbells:?}: {left} left"
                    );
                    thread::yield_now();
                }
            });
        }
    }
}

#[test]
fn a_controller_is_reset_under_load_and_no_write_that_was_completed_is_lost() {
    for place in PLACES {
        for doorbells in DOORBELLS {
            let rig = start(place, doorbells);
            under_load(&rig.controller, 10, || rig.controller.reset().unwrap());
        }
    }
}
