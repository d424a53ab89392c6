//! A medium that fails under a qcow2 image: the request that needed it fails with its errno, nothing is lost that was
//! promised, and the image stays one that opens and checks with leaks at most. Seeds as in `power_cuts.rs`.

mod images;

use block_core::contract::durability::{ENGINES, Mode, Workload, seeds, writing_has_ended};
use block_core::contract::{Client, Memory, Random, pattern};
use block_core::file::simulated::{Asked, SimulatedFile, Verdict, once};
use block_core::{Disk, Operation, RequestFlags, RequestResult};
use images::simulated::{Case, EXTERNAL, Shapes, examine, open};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Write,
    Zero,
    SetLen,
    Sync,
}

impl Call {
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Zero, Self::SetLen, Self::Sync];

    fn is(self, asked: &Asked) -> bool {
        match self {
            Self::Read => matches!(asked, Asked::Read { .. }),
            Self::Write => matches!(asked, Asked::Write { .. }),
            Self::Zero => matches!(asked, Asked::Zero { .. }),
            Self::SetLen => matches!(asked, Asked::SetLen(_)),
            Self::Sync => matches!(asked, Asked::Sync),
        }
    }
}

/// One call fails in some runs, in others several in a row, or all from then on.
#[test]
fn whatever_call_fails_the_request_does_and_nothing_is_lost_that_was_promised() {
    let Some(shapes) = Shapes::new() else { return };
    let seeds = seeds(120);
    let (mut failed, all) = (0, seeds.clone().count());
    for seed in seeds {
        let mut random = Random::new(seed);
        let cache = random.one_of(&["writeback", "none", "writethrough", "directsync"]);
        let mode = Mode { cache, engine: random.one_of(&ENGINES) };
        let call = random.one_of(&Call::ALL);
        let errno = random.one_of(&[libc::EIO, libc::ENOSPC]);
        let early = random.one_of(&[3, 20, 200]);
        let first = random.below(early);
        let last = first + random.one_of(&[0, 0, 5, u64::MAX / 2]);
        let what = format!("{call:?} number {first} to {last} fails, {mode}, RINGPAIR_SEED={seed}");
        eprintln!("{what}");
        let case = shapes.case(random.below(100), seed);
        let Case { shape, file, workload, .. } = &case;
        let workload = Workload { goes_on: true, ..workload.clone() };
        let disk = open(file, &mode.to_string()).unwrap();
        let number = Arc::new(AtomicU64::new(0));
        case.hook(|| {
            let number = number.clone();
            move |asked| {
                let fails =
                    call.is(asked) && (first..=last).contains(&number.fetch_add(1, Ordering::Relaxed));
                if fails { Verdict::Fail(errno) } else { Verdict::Done }
            }
        });
        let history = workload.run(&disk, &|| file.now());
        drop(disk);
        failed += usize::from(history.failures().next().is_some());
        for failure in history.failures() {
            assert_eq!(failure.errno, errno, "{what}, {shape}");
        }
        case.keeps(&history, mode.promise(), 6).unwrap_or_else(|error| panic!("{what}, {shape}: {error}"));
    }
    assert!(failed * 2 > all, "only {failed} of {all} runs had anything fail");
}

fn write(client: &mut Client, offset: u64, flags: RequestFlags) -> RequestResult {
    client.write_from(offset, &mut Memory::holding(&pattern(1, offset, 8192), 0), &[8192], flags)
}

fn flush(client: &mut Client) -> Result<(), i32> {
    client.run(Operation::Flush, (0, 0), RequestFlags::NONE).map_err(|error| error.errno)
}

/// The image is whole and holds these 8 KiB that have been written; it can be opened again, written to and flushed.
fn is_whole_and_holds(file: &SimulatedFile, written: &[u64]) {
    let held = examine(file.contents()).unwrap();
    for &offset in written {
        assert!(held[offset as usize..][..8192] == pattern(1, offset, 8192), "what was written to {offset}");
    }
    file.hook(|_| Verdict::Done);
    let disk = open(file, "cache=writeback").unwrap();
    let mut client = Client::new(&disk, 1);
    assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
    assert_eq!(flush(&mut client), Ok(()));
}

/// A blank image of each shape on each engine in each cache mode of these.
fn each(caches: &[&'static str], test: impl Fn(&SimulatedFile, &str)) {
    let Some(shapes) = Shapes::new() else { return };
    for (mode, shape) in Mode::each(caches).flat_map(|mode| [0, 1, 2].map(|shape| (mode, shape))) {
        let Case { shape, file, .. } = shapes.case(shape, 1);
        eprintln!("{shape}, {mode}");
        test(&file, &mode.to_string());
    }
}

/// A flush fails when this call does, once, after a write to `offset` that followed a flush; then writing has ended, and
/// what had been flushed before is there.
fn a_failed_flush_ends_writing(caches: &[&'static str], call: Call, offset: u64) {
    for errno in [libc::EIO, libc::ENOSPC] {
        each(caches, |file, options| {
            let disk = open(file, options).unwrap();
            let mut client = Client::new(&disk, 4);
            assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
            assert_eq!(flush(&mut client), Ok(()));
            assert_eq!(write(&mut client, offset, RequestFlags::NONE), Ok(()));
            // Once: what follows would succeed, if it were asked for.
            file.hook(once(move |asked| call.is(asked), Verdict::Fail(errno)));
            assert_eq!(flush(&mut client), Err(errno));
            writing_has_ended(&disk, &mut client, errno);
            drop(client);
            drop(disk);
            is_whole_and_holds(file, &[0]);
        });
    }
}

#[test]
fn after_a_failed_fdatasync_writing_fails_until_the_disk_is_opened_again() {
    // Of an image whose metadata has changed, and of one of which only the data has.
    for offset in [131_072, 0] {
        a_failed_flush_ends_writing(&["writeback", "none"], Call::Sync, offset);
    }
}

#[test]
fn after_a_failed_fdatasync_of_the_data_file_writing_fails_too() {
    let Some(shapes) = Shapes::new() else { return };
    // New metadata, and only data.
    for (mode, offset) in Mode::each(&["writeback", "none"]).flat_map(|mode| [(mode, 131_072), (mode, 0)]) {
        eprintln!("{mode}, a write to {offset}");
        let case = shapes.case(EXTERNAL, 1);
        let disk = open(&case.file, &mode.to_string()).unwrap();
        let mut client = Client::new(&disk, 4);
        assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
        assert_eq!(flush(&mut client), Ok(()));
        assert_eq!(write(&mut client, offset, RequestFlags::NONE), Ok(()));
        let data = case.data.as_ref().unwrap();
        data.hook(once(|asked| *asked == Asked::Sync, Verdict::Fail(libc::EIO)));
        assert_eq!(flush(&mut client), Err(libc::EIO));
        writing_has_ended(&disk, &mut client, libc::EIO);
        drop(client);
        drop(disk);
        assert!(examine(case.contents()).unwrap()[..8192] == pattern(1, 0, 8192));
    }
}

#[test]
fn a_durable_write_into_place_that_fails_with_eio_ends_writing_too() {
    each(&["none", "writethrough"], |file, options| {
        let disk = open(file, options).unwrap();
        let mut client = Client::new(&disk, 4);
        assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
        assert_eq!(flush(&mut client), Ok(()));
        file.hook(|asked| match asked {
            Asked::Write { dsync: true, .. } => Verdict::Fail(libc::EIO),
            _ => Verdict::Done,
        });
        let failed = write(&mut client, 0, RequestFlags::FUA).map_err(|error| error.errno);
        assert_eq!(failed, Err(libc::EIO));
        file.hook(|_| Verdict::Done);
        writing_has_ended(&disk, &mut client, libc::EIO);
        drop(client);
        drop(disk);
        is_whole_and_holds(file, &[]);
    });
}

#[test]
fn metadata_that_cannot_be_written_fails_the_flush_and_ends_writing() {
    a_failed_flush_ends_writing(&["writeback"], Call::Write, 131_072);
}

#[test]
fn where_the_file_cannot_grow_a_write_that_needs_it_fails_and_those_that_do_not_go_on() {
    each(&["writeback", "none", "writethrough"], |file, options| {
        let disk = open(file, options).unwrap();
        let mut client = Client::new(&disk, 4);
        let full = Arc::new(AtomicBool::new(true));
        let is_full = full.clone();
        file.hook(move |asked| match asked {
            Asked::SetLen(_) if is_full.load(Ordering::Relaxed) => Verdict::Fail(libc::ENOSPC),
            _ => Verdict::Done,
        });
        let failed = write(&mut client, 131_072, RequestFlags::NONE).map_err(|error| error.errno);
        assert_eq!(failed, Err(libc::ENOSPC));
        assert_eq!(flush(&mut client), Ok(()));
        // Somebody has made room.
        full.store(false, Ordering::Relaxed);
        assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
        assert_eq!(flush(&mut client), Ok(()));
        full.store(true, Ordering::Relaxed);
        assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()), "it has its place");
        assert_eq!(flush(&mut client), Ok(()));
        drop(client);
        drop(disk);
        is_whole_and_holds(file, &[0]);
    });
}

#[test]
fn metadata_that_cannot_be_read_fails_the_request_that_needs_it() {
    each(&["writeback"], |file, options| {
        let disk = open(file, options).unwrap();
        assert_eq!(write(&mut Client::new(&disk, 4), 0, RequestFlags::FUA), Ok(()));
        drop(disk);
        let disk = open(file, options).unwrap();
        file.hook(
            |asked| {
                if matches!(asked, Asked::Read { .. }) { Verdict::Fail(libc::EIO) } else { Verdict::Done }
            },
        );
        let mut client = Client::new(&disk, 4);
        let mut memory = Memory::new(8192, 0, 0);
        let failed = client.read_into(0, &mut memory, &[8192]).map_err(|error| error.errno);
        assert_eq!(failed, Err(libc::EIO));
        assert_eq!(write(&mut client, 0, RequestFlags::NONE).map_err(|error| error.errno), Err(libc::EIO));
        file.hook(|_| Verdict::Done);
        assert_eq!(client.read(0, 8192), pattern(1, 0, 8192), "once it can be read");
        assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()), "nothing had been changed yet");
        drop(client);
        drop(disk);
        is_whole_and_holds(file, &[0]);
    });
}

#[test]
fn a_request_in_more_pieces_than_the_queue_is_deep_fails_once() {
    each(&["writeback", "none"], |file, options| {
        let disk = open(file, options).unwrap();
        let mut client = Client::new(&disk, 2);
        // Each cluster before the one that precedes it.
        let cluster = disk.info().discard_granularity as usize;
        for number in (0..8).rev() {
            client.write((number * cluster) as u64, &pattern(1, 0, cluster));
        }
        file.hook(
            |asked| {
                if matches!(asked, Asked::Read { .. }) { Verdict::Fail(libc::EIO) } else { Verdict::Done }
            },
        );
        for _ in 0..3 {
            let mut memory = Memory::new(8 * cluster, 0, 0);
            let failed = client.read_into(0, &mut memory, &[8 * cluster]).map_err(|error| error.errno);
            assert_eq!(failed, Err(libc::EIO));
            assert_eq!(client.poll().len(), 0, "it completes once");
        }
        file.hook(|_| Verdict::Done);
        client.read(0, 8 * cluster);
    });
}

/// A bug in the metadata's work, or in what it is built from: at the next call of a kind, the thread panics.
fn panic_at_next(file: &SimulatedFile, call: Call) {
    let mut panics = 1;
    file.hook(move |asked| {
        if call.is(asked) && panics > 0 {
            panics = 0;
            panic!("as asked for by the test, at {asked:?}");
        }
        Verdict::Done
    });
}

/// `work` fails when the thread panics in it, at each of these calls; what had been flushed is there, and what is known
/// can be read on.
fn a_panic_is_contained(
    calls: &[Call],
    before: impl Fn(&mut Client),
    work: impl Fn(&mut Client) -> Result<(), i32>,
) {
    for call in calls {
        each(&["writeback", "none"], |file, options| {
            let disk = open(file, options).unwrap();
            let mut client = Client::new(&disk, 4);
            assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
            assert_eq!(write(&mut client, 131_072, RequestFlags::NONE), Ok(()));
            assert_eq!(flush(&mut client), Ok(()));
            drop(client);
            drop(disk);
            let disk = open(file, options).unwrap();
            let mut client = Client::new(&disk, 4);
            before(&mut client);
            panic_at_next(file, *call);
            assert_eq!(work(&mut client), Err(libc::EIO), "a panic at {call:?}");
            writing_has_ended(&disk, &mut client, libc::EIO);
            assert_eq!(client.read(0, 8192), pattern(1, 0, 8192));
            assert_eq!(Client::new(&disk, 1).read(0, 8192), pattern(1, 0, 8192));
            drop(client);
            drop(disk);
            is_whole_and_holds(file, &[0, 131_072]);
        });
    }
}

#[test]
fn a_panic_while_a_mapping_is_looked_up_fails_the_read_and_ends_writing() {
    let read = |client: &mut Client| {
        let mut memory = Memory::new(8192, 0, 0);
        client.read_into(131_072, &mut memory, &[8192]).map_err(|error| error.errno)
    };
    a_panic_is_contained(&[Call::Read], |_| (), read);
}

#[test]
fn a_panic_while_a_cluster_is_allocated_fails_the_write_and_ends_writing() {
    let known = |client: &mut Client| drop(client.read(0, 8192));
    let allocate =
        |client: &mut Client| write(client, 196_608, RequestFlags::NONE).map_err(|error| error.errno);
    a_panic_is_contained(&[Call::Read, Call::SetLen], known, allocate);
}

#[test]
fn a_panic_while_metadata_is_written_back_fails_the_flush_and_ends_writing() {
    let change = |client: &mut Client| assert_eq!(write(client, 196_608, RequestFlags::NONE), Ok(()));
    a_panic_is_contained(&[Call::Write, Call::Sync], change, flush);
}
