//! A medium that fails: what both engines say of it, and what they do from then on. On a simulated file, so that every
//! call can be made to fail.

use block_core::contract::durability::{ENGINES, writing_has_ended};
use block_core::contract::{Client, Memory, pattern};
use block_core::file::simulated::{Asked, SimulatedFile, Verdict, once};
use block_core::{Disk, Operation, RequestError, RequestFlags, RequestResult};
use std::sync::{Arc, Mutex};

const SIZE: usize = 1 << 20;

fn file() -> SimulatedFile {
    SimulatedFile::new(vec![0; SIZE], 1)
}

fn open(file: &SimulatedFile, engine: &str, cache: &str) -> impl Disk + use<> {
    file.open(&format!("aio={engine},cache={cache}")).unwrap()
}

fn write(client: &mut Client, offset: u64, flags: RequestFlags) -> RequestResult {
    let mut memory = Memory::holding(&pattern(1, offset, 8192), 0);
    client.write_from(offset, &mut memory, &[8192], flags)
}

fn flush(client: &mut Client) -> Result<(), i32> {
    client.run(Operation::Flush, (0, 0), RequestFlags::NONE).map_err(|error| error.errno)
}

#[test]
fn after_a_failed_fdatasync_writing_fails_until_the_disk_is_opened_again() {
    for engine in ENGINES {
        for errno in [libc::EIO, libc::ENOSPC] {
            let file = file();
            let disk = open(&file, engine, "writeback");
            let mut client = Client::new(&disk, 4);
            assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
            // Once: what follows would succeed, if it were asked for.
            file.hook(once(|asked| matches!(asked, Asked::Sync), Verdict::Fail(errno)));
            assert_eq!(flush(&mut client), Err(errno), "aio={engine}");
            writing_has_ended(&disk, &mut client, errno);
            drop(client);
            drop(disk);
            let disk = open(&file, engine, "writeback");
            let mut client = Client::new(&disk, 4);
            assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
            assert_eq!(flush(&mut client), Ok(()));
        }
    }
}

#[test]
fn a_durable_write_that_fails_with_eio_may_have_taken_the_report_of_others_and_ends_writing_too() {
    for engine in ENGINES {
        for (cache, flags) in [("none", RequestFlags::FUA), ("writethrough", RequestFlags::NONE)] {
            let file = file();
            let disk = open(&file, engine, cache);
            let mut client = Client::new(&disk, 4);
            // Once: what follows would succeed, if it were asked for.
            file.hook(once(
                |asked| matches!(asked, Asked::Write { dsync: true, .. }),
                Verdict::Fail(libc::EIO),
            ));
            let failed = write(&mut client, 8192, flags);
            assert_eq!(failed, Err(RequestError { errno: libc::EIO, offset: 8192, len: 8192 }));
            let refused = write(&mut client, 0, RequestFlags::NONE);
            assert_eq!(refused.map_err(|error| error.errno), Err(libc::EIO), "aio={engine},cache={cache}");
        }
    }
}

#[test]
fn a_plain_write_that_fails_says_so_and_ends_nothing() {
    for engine in ENGINES {
        for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
            let file = file();
            let disk = open(&file, engine, "writeback");
            let mut client = Client::new(&disk, 4);
            file.hook(move |asked| match asked {
                Asked::Write { offset: 65536.., .. } => Verdict::Fail(errno),
                _ => Verdict::Done,
            });
            let failed = write(&mut client, 65536, RequestFlags::NONE);
            assert_eq!(failed, Err(RequestError { errno, offset: 65536, len: 8192 }), "aio={engine}");
            assert_eq!(write(&mut client, 0, RequestFlags::NONE), Ok(()));
            assert_eq!(flush(&mut client), Ok(()));
        }
    }
}

#[test]
fn a_write_that_falls_short_goes_on_and_fails_with_what_stopped_it() {
    for engine in ENGINES {
        let file = file();
        let disk = open(&file, engine, "none");
        let mut client = Client::new(&disk, 4);
        file.hook(|asked| match asked {
            Asked::Write { len: 8192, .. } => Verdict::Short(4096),
            _ => Verdict::Done,
        });
        assert_eq!(write(&mut client, 4096, RequestFlags::NONE), Ok(()), "aio={engine}");
        assert_eq!(client.read(4096, 8192), pattern(1, 4096, 8192));
        file.hook(|asked| match asked {
            Asked::Write { offset: 0, .. } => Verdict::Short(4096),
            Asked::Write { .. } => Verdict::Fail(libc::ENOSPC),
            _ => Verdict::Done,
        });
        let failed = write(&mut client, 0, RequestFlags::NONE);
        assert_eq!(failed, Err(RequestError { errno: libc::ENOSPC, offset: 0, len: 8192 }));
    }
}

#[test]
fn a_read_that_fails_says_so_with_its_range() {
    for engine in ENGINES {
        let file = file();
        let disk = open(&file, engine, "writeback");
        file.hook(|asked| match asked {
            Asked::Read { .. } => Verdict::Fail(libc::EIO),
            _ => Verdict::Done,
        });
        let mut memory = Memory::new(4096, 0, 0);
        let failed = Client::new(&disk, 1).read_into(12288, &mut memory, &[4096]);
        assert_eq!(failed, Err(RequestError { errno: libc::EIO, offset: 12288, len: 4096 }), "aio={engine}");
    }
}

/// What was asked of a file, in order.
fn record(
    file: &SimulatedFile,
    verdict: impl Fn(&Asked) -> Verdict + Send + 'static,
) -> Arc<Mutex<Vec<Asked>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let into = asked.clone();
    file.hook(move |asked| {
        into.lock().unwrap().push(*asked);
        verdict(asked)
    });
    asked
}

#[test]
fn where_rwf_dsync_is_refused_a_durable_write_is_a_write_and_then_an_fdatasync() {
    for (engine, cache) in ENGINES.into_iter().flat_map(|e| ["writeback", "none"].map(|c| (e, c))) {
        let file = file();
        let disk = open(&file, engine, cache);
        let mut client = Client::new(&disk, 4);
        let asked = record(&file, |asked| match asked {
            Asked::Write { dsync: true, .. } => Verdict::Fail(libc::EOPNOTSUPP),
            _ => Verdict::Done,
        });
        let write_of = |dsync| Asked::Write { offset: 0, len: 8192, dsync };
        assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
        assert_eq!(*asked.lock().unwrap(), [write_of(true), write_of(false), Asked::Sync], "aio={engine}");
        asked.lock().unwrap().clear();
        assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
        assert_eq!(*asked.lock().unwrap(), [write_of(false), Asked::Sync], "once is enough to know");
    }
}

#[test]
fn a_fua_write_right_after_a_flush_is_made_durable_all_the_same() {
    for (engine, cache) in ENGINES.into_iter().flat_map(|e| ["writeback", "none"].map(|c| (e, c))) {
        let file = file();
        let disk = open(&file, engine, cache);
        let mut client = Client::new(&disk, 4);
        let asked = record(&file, |_| Verdict::Done);
        assert_eq!(flush(&mut client), Ok(()));
        assert_eq!(write(&mut client, 0, RequestFlags::FUA), Ok(()));
        let durable = Asked::Write { offset: 0, len: 8192, dsync: true };
        assert_eq!(*asked.lock().unwrap(), [Asked::Sync, durable], "aio={engine},cache={cache}");
    }
}
