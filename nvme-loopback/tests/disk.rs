//! Disks on a drive: what is copied and what is not, what is shared, what goes out together.

mod drive;

use std::sync::Arc;

use block_core::{Disk, Operation, RequestFlags, Segment};
use block_core::{Request, Submission};
use drive::memory::{SharedMemory, finish, run};
use drive::{Emulated, open, options};
use nvme_emu::ControllerOptions;
use nvme_vfio::Options;

const PAGE: usize = 4096;

/// Bytes that tell where they are.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i / 8).wrapping_mul(0x9e37_79b9) >> 5 ^ seed) as u8).collect()
}

#[test]
fn registered_memory_is_used_as_it_is() {
    let emulated = Emulated::on("mem:16M");
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(1 << 20);
    memory.register(&disk);
    let mut queue = disk.open_queue(16).unwrap();
    let data = pattern(1, 1 << 19);
    // One block; pages; pages with an offset; more than a transfer of 256 KiB would be; pieces that only SGLs describe.
    let cuts: [(usize, &[usize]); 5] =
        [(0, &[512]), (0, &[8192]), (512, &[65536]), (4, &[1 << 19]), (6, &[512, 1000, 24])];
    for (at, lens) in cuts {
        let len: usize = lens.iter().sum::<usize>().div_ceil(512) * 512;
        memory.write(at, &data[..len]);
        let mut segments: Vec<Segment> = Vec::new();
        let mut from = at;
        for &n in lens.iter().cycle() {
            let n = n.min(at + len - from);
            segments.push(memory.segment(from, n));
            from += n;
            if from == at + len {
                break;
            }
        }
        assert_eq!(run(&mut *queue, Operation::Write, (512, len as u64), &segments), Ok(()));
        memory.write(at, &vec![0; len]);
        assert_eq!(run(&mut *queue, Operation::Read, (512, len as u64), &segments), Ok(()));
        assert!(memory.read(at, len) == data[..len], "{at} {lens:?}");
    }
    let counters = emulated.drive.counters();
    assert_eq!((counters.bytes_bounced, counters.blocks_read_to_write), (0, 0));
    assert!(counters.bytes_direct > 1 << 20);
    drop(queue);
    memory.unregister(&disk);
}

#[test]
fn one_block_is_one_command_and_nothing_is_read_for_it() {
    let emulated = Emulated::on("mem:16M");
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(PAGE);
    memory.register(&disk);
    let mut queue = disk.open_queue(16).unwrap();
    assert_eq!(run(&mut *queue, Operation::Write, (512, 512), &[memory.segment(512, 512)]), Ok(()));
    let counters = emulated.drive.counters();
    assert_eq!((counters.commands, counters.bytes_direct, counters.blocks_read_to_write), (1, 512, 0));
    // A part of a block takes a read and a write.
    assert_eq!(run(&mut *queue, Operation::Write, (512, 511), &[memory.segment(512, 511)]), Ok(()));
    let counters = emulated.drive.counters();
    assert_eq!((counters.commands, counters.bytes_bounced, counters.blocks_read_to_write), (3, 511, 1));
    drop(queue);
    assert_eq!(emulated.drive.counters(), counters, "what a closed queue counted stays");
    memory.unregister(&disk);
}

/// The queue's own view of memory must not outlive a registration: another one may be at the same address.
#[test]
fn memory_that_takes_the_place_of_other_memory_is_not_mistaken_for_it() {
    let emulated = Emulated::on("mem:16M");
    let disk = emulated.disk(1);
    let mut queue = disk.open_queue(16).unwrap();
    let mut memory = SharedMemory::new(16 * PAGE);
    memory.register(&disk);
    memory.write(0, &pattern(1, PAGE));
    assert_eq!(run(&mut *queue, Operation::Write, (0, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    memory.unregister(&disk);
    assert_eq!(emulated.drive.counters().bytes_bounced, 0);
    // Not registered: copied.
    memory.write(0, &pattern(2, PAGE));
    assert_eq!(run(&mut *queue, Operation::Write, (4096, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    assert_eq!(emulated.drive.counters().bytes_bounced, PAGE as u64);
    // Something else at I/O virtual addresses that have become free.
    let other = SharedMemory::new(16 * PAGE);
    other.register(&disk);
    memory.renew();
    memory.register(&disk);
    memory.write(0, &pattern(3, PAGE));
    assert_eq!(run(&mut *queue, Operation::Write, (8192, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    assert_eq!(run(&mut *queue, Operation::Read, (0, 3 * 4096), &[other.segment(0, 3 * PAGE)]), Ok(()));
    let found: Vec<Vec<u8>> = (0..3).map(|i| other.read(i * PAGE, PAGE)).collect();
    assert!(found == [pattern(1, PAGE), pattern(2, PAGE), pattern(3, PAGE)]);
    assert_eq!(emulated.drive.counters().bytes_bounced, PAGE as u64, "nothing else was copied");
    drop(queue);
    memory.unregister(&disk);
    other.unregister(&disk);
}

#[test]
fn memory_registered_by_several_disks_stays_until_the_last_takes_it_back() {
    let emulated =
        Emulated::new(vec![open("mem:16M"), open("mem:16M")], 512, &ControllerOptions::default(), options());
    let (one, two) = (emulated.disk(1), emulated.disk(2));
    let memory = SharedMemory::new(PAGE);
    memory.register(&one);
    memory.register(&two);
    memory.unregister(&one);
    let mut queue = two.open_queue(16).unwrap();
    assert_eq!(run(&mut *queue, Operation::Read, (0, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    assert_eq!(emulated.drive.counters().bytes_bounced, 0);
    memory.unregister(&two);
    assert_eq!(run(&mut *queue, Operation::Read, (0, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    assert_eq!(emulated.drive.counters().bytes_bounced, PAGE as u64);
}

#[test]
fn namespaces_are_disks_of_their_own() {
    let emulated =
        Emulated::new(vec![open("mem:16M"), open("mem:32M")], 512, &ControllerOptions::default(), options());
    let memory = SharedMemory::new(2 * PAGE);
    for nsid in [1, 2] {
        let disk = emulated.disk(nsid);
        assert_eq!(disk.info().capacity, u64::from(nsid) * (16 << 20));
        memory.write(0, &pattern(nsid.into(), PAGE));
        let mut queue = disk.open_queue(4).unwrap();
        assert_eq!(run(&mut *queue, Operation::Write, (0, 4096), &[memory.segment(0, PAGE)]), Ok(()));
    }
    for nsid in [1, 2] {
        let mut queue = emulated.disk(nsid).open_queue(4).unwrap();
        assert_eq!(run(&mut *queue, Operation::Read, (0, 4096), &[memory.segment(0, PAGE)]), Ok(()));
        assert!(memory.read(0, PAGE) == pattern(nsid.into(), PAGE));
    }
    let error = emulated.drive.disk(3, false).err().unwrap().to_string();
    assert!(error.contains("namespace 3"), "{error}");
}

#[test]
fn discards_of_one_batch_are_one_command() {
    let emulated = Emulated::on("mem:16M");
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(1 << 20);
    let mut queue = disk.open_queue(300).unwrap();
    memory.write(0, &[0x5a; 1 << 20]);
    assert_eq!(run(&mut *queue, Operation::Write, (0, 1 << 20), &[memory.segment(0, 1 << 20)]), Ok(()));
    let before = emulated.drive.counters().commands;
    for i in 0..100u64 {
        let request = Request {
            operation: Operation::Discard,
            offset: i * 8192 + 100,
            len: 4096,
            segments: &[],
            flags: RequestFlags::NONE,
            token: i,
        };
        // SAFETY: there are no segments.
        assert_eq!(unsafe { queue.submit(request) }, Submission::Pending);
    }
    let completed = finish(&mut *queue, 100);
    assert!(completed.iter().all(|completion| completion.result == Ok(())));
    assert_eq!(emulated.drive.counters().commands - before, 1);
    assert_eq!(run(&mut *queue, Operation::Read, (0, 1 << 20), &[memory.segment(0, 1 << 20)]), Ok(()));
    // Whole blocks inside each range, and nothing else: 512 to 4096 of each 8192.
    let data = memory.read(0, 1 << 20);
    for (at, byte) in data.iter().enumerate() {
        let discarded = at < 100 * 8192 && (512..4096).contains(&(at % 8192));
        assert_eq!(*byte == 0, discarded, "byte {at}");
    }
}

#[test]
fn when_there_are_no_queue_pairs_left_it_says_what_would_help() {
    let options = Options { queues: 3, ..options() };
    let emulated = Emulated::new(vec![open("mem:16M")], 512, &ControllerOptions::default(), options);
    let disk = emulated.disk(1);
    let queues: Vec<_> = (0..2).map(|_| disk.open_queue(4).unwrap()).collect();
    let error = disk.open_queue(4).err().unwrap().to_string();
    assert!(error.contains("all of its 2 queue pairs are in use") && error.contains("queues="), "{error}");
    // One is kept for this.
    disk.flush().unwrap();
    drop(queues);
    disk.open_queue(4).unwrap();
}

/// Requests go on over resets of the drive, whoever asks for them.
#[test]
fn a_reset_of_the_drive_in_the_middle_of_requests_fails_none_of_them() {
    const LAPS: u64 = 200;
    let emulated = Emulated::on("mem:16M");
    let disk = Arc::new(emulated.disk(1));
    let drive = emulated.drive.clone();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let memory = SharedMemory::new(64 * PAGE);
            memory.register(&*disk);
            let mut queue = disk.open_queue(32).unwrap();
            for lap in 0..LAPS {
                let data = pattern(lap, 64 * PAGE);
                memory.write(0, &data);
                for operation in [Operation::Write, Operation::Read] {
                    for i in 0..32u64 {
                        let segments = [memory.segment(i as usize * 2 * PAGE, 2 * PAGE)];
                        let (offset, len) = (i * 8192, 8192);
                        let flags = RequestFlags::NONE;
                        let request =
                            Request { operation, offset, len, segments: &segments, flags, token: i };
                        // SAFETY: the memory stays.
                        assert_eq!(unsafe { queue.submit(request) }, Submission::Pending);
                    }
                    let ended = finish(&mut *queue, 32);
                    assert!(ended.iter().all(|ended| ended.result == Ok(())), "{ended:?}");
                    if operation == Operation::Write {
                        memory.write(0, &[0; 64 * PAGE]);
                    }
                }
                assert!(memory.read(0, 64 * PAGE) == data, "lap {lap}");
            }
            drop(queue);
            memory.unregister(&*disk);
        });
        for _ in 0..3 {
            if !worker.is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(10));
                drive.controller().reset().unwrap();
            }
        }
        worker.join().unwrap();
    });
    assert!(emulated.drive.controller().recovery_counters().resets > 0);
}

#[test]
fn a_discard_that_had_no_room_when_it_was_kicked_goes_out_by_itself() {
    let emulated = ControllerOptions { mdts: 1, ..ControllerOptions::default() };
    let driver = Options { depth: 2, ..options() };
    let emulated = Emulated::new(vec![open("mem:1M")], 512, &emulated, driver);
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(1 << 14);
    memory.register(&disk);
    let mut queue = disk.open_queue(2).unwrap();
    // Two commands, which are all that there may be.
    let segments = [memory.segment(0, 1 << 14)];
    let read = Request {
        operation: Operation::Read,
        offset: 0,
        len: 1 << 14,
        segments: &segments,
        flags: RequestFlags::NONE,
        token: 0,
    };
    let discard = Request { operation: Operation::Discard, segments: &[], token: 1, ..read };
    for request in [read, discard] {
        // SAFETY: the memory stays until the queue has been dropped.
        assert_eq!(unsafe { queue.submit(request) }, Submission::Pending);
    }
    let mut ended: Vec<u64> = finish(&mut *queue, 2).iter().map(|completion| completion.token).collect();
    ended.sort_unstable();
    assert_eq!(ended, [0, 1]);
    drop(queue);
    memory.unregister(&disk);
}
