//! What each cache mode asks of the kernel, on both engines: the open flags, and the system calls and ring entries
//! behind each write and flush. Each test runs itself again under the [`tracer`].

mod tracer;

use block_core::contract::{Client, Memory};
use block_core::{Operation, Registry, RequestFlags};
use std::fs::File;
use tracer::{Asked, mark, trace, traced_file};

const DSYNC: i32 = libc::RWF_DSYNC;
const DATASYNC: i32 = 1; // IORING_FSYNC_DATASYNC
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What is expected of a mode.
struct Mode {
    options: &'static str,
    direct: bool,
    /// A write without FUA is durable at its completion.
    durable: bool,
    /// FUA and flush reach the medium.
    flushes: bool,
    ring: bool,
}

/// The traced process: one request after another, each in a phase of its own.
fn requests(file: &str, options: &str) {
    let disk = Registry::default().open(format!("{file},{options}").parse().unwrap()).unwrap();
    let mut client = Client::new(&*disk, 8);
    let mut memory = Memory::new(8192, 0, 0x5a);
    let (none, fua) = (RequestFlags::NONE, RequestFlags::FUA);
    mark("write");
    client.write_from(0, &mut memory, &[8192], none).unwrap();
    mark("write of two segments");
    client.write_from(0, &mut memory, &[4096], none).unwrap();
    mark("flush");
    client.run(Operation::Flush, (0, 0), none).unwrap();
    // Right after a flush, with no other write in between: a FUA write must not think that there is nothing to do.
    mark("FUA write");
    client.write_from(0, &mut memory, &[8192], fua).unwrap();
    mark("FUA write of two segments");
    client.write_from(0, &mut memory, &[4096], fua).unwrap();
    mark("unaligned write");
    client.write_from(4196, &mut Memory::new(100, 0, 0x5a), &[100], none).unwrap();
    mark("unaligned FUA write");
    client.write_from(4196, &mut Memory::new(100, 0, 0x5a), &[100], fua).unwrap();
    mark("write zeroes");
    client.run(Operation::WriteZeroes, (0, 4096), none).unwrap();
    mark("FUA write zeroes");
    client.run(Operation::WriteZeroes, (0, 4096), fua).unwrap();
    mark("discard");
    client.run(Operation::Discard, (0, 4096), none).unwrap();
    mark("flush of the disk");
    disk.flush().unwrap();
    mark("end");
}

impl Mode {
    fn write(&self, ring: bool, durable: bool) -> Vec<Asked> {
        let rwf = if durable { DSYNC } else { 0 };
        vec![if ring { Asked::RingWrite { rwf } } else { Asked::Write { rwf } }]
    }

    /// `fallocate`, then a sync if it has to be durable.
    fn check_allocation(&self, phase: &str, asked: &[Asked], durable: bool) {
        let Some((Asked::Fallocate { .. }, rest)) = asked.split_first() else {
            panic!("{phase}: no fallocate, {asked:?}");
        };
        // A file system without FALLOC_FL_ZERO_RANGE takes more than one, or zeroes written out.
        let rest: Vec<_> = rest.iter().filter(|asked| !matches!(asked, Asked::Fallocate { .. })).collect();
        let durably = matches!(rest.last(), Some(Asked::Fdatasync | Asked::Write { rwf: DSYNC }));
        assert_eq!(durably, durable, "{phase}: {asked:?}");
    }

    fn check(&self, test: &str) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk.img");
        if let Some(file) = traced_file() {
            return requests(&file, self.options);
        }
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let file = path.to_str().unwrap();
        if let Err(error) = Registry::default().open(format!("{file},{}", self.options).parse().unwrap()) {
            assert!(self.direct && error.to_string().contains("no O_DIRECT"), "{error}");
            eprintln!("skipped: {error}");
            return;
        }
        let Some(phases) = trace(test, file) else { return };
        for (phase, asked) in &phases {
            let asked: Vec<Asked> =
                asked.iter().filter(|asked| !matches!(asked, Asked::Enter { .. })).cloned().collect();
            self.check_phase(phase, &asked);
        }
        assert_eq!(phases.len(), 13, "{phases:?}");
    }

    fn check_phase(&self, phase: &str, asked: &[Asked]) {
        let sync = if self.flushes { vec![Asked::Fdatasync] } else { vec![] };
        let fua_is_durable = self.durable || self.flushes;
        match phase {
            "start" => {
                // The hole is beyond the end, to see whether the file system has holes.
                let [Asked::Open(flags), Asked::Fallocate { mode: PUNCH_HOLE }] = asked else {
                    panic!("expected one open, not {asked:?}")
                };
                assert_eq!(flags & libc::O_DIRECT != 0, self.direct, "O_DIRECT");
                assert_eq!(flags & libc::O_SYNC, 0, "never O_SYNC, never O_DSYNC");
                assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
            }
            "write" | "write of two segments" => {
                assert_eq!(asked, self.write(self.ring, self.durable), "{phase}");
            }
            "FUA write" | "FUA write of two segments" => {
                assert_eq!(asked, self.write(self.ring, fua_is_durable), "{phase}");
            }
            // Past the page cache it is bounced, and that is not for the ring.
            "unaligned write" => {
                assert_eq!(asked, self.write(self.ring && !self.direct, self.durable), "{phase}");
            }
            "unaligned FUA write" => {
                assert_eq!(asked, self.write(self.ring && !self.direct, fua_is_durable), "{phase}");
            }
            "flush" if self.ring && self.flushes => {
                assert_eq!(asked, [Asked::RingFsync { flags: DATASYNC }]);
            }
            "flush" => assert_eq!(asked, sync, "{phase}"),
            "write zeroes" | "discard" => self.check_allocation(phase, asked, self.durable),
            "FUA write zeroes" => self.check_allocation(phase, asked, fua_is_durable),
            "flush of the disk" => {
                let expected = if fua_is_durable { vec![Asked::Fdatasync] } else { vec![] };
                assert_eq!(asked, expected);
            }
            "end" => assert_eq!(asked, []),
            other => panic!("unexpected phase {other}"),
        }
    }
}

macro_rules! modes {
    ($($test:ident: $options:literal, $mode:expr;)*) => {
        $(#[test]
        fn $test() {
            let (direct, durable, flushes, ring) = $mode;
            Mode { options: $options, direct, durable, flushes, ring }.check(stringify!($test));
        })*
    };
}

// The design's table: O_DIRECT; each write durable; flush and FUA reach the medium; through a ring.
modes! {
    uring_writeback: "aio=io_uring,cache=writeback", (false, false, true, true);
    uring_none: "aio=io_uring,cache=none", (true, false, true, true);
    uring_writethrough: "aio=io_uring,cache=writethrough", (false, true, false, true);
    uring_directsync: "aio=io_uring,cache=directsync", (true, true, false, true);
    uring_unsafe: "aio=io_uring,cache=unsafe", (false, false, false, true);
    threads_writeback: "aio=threads,cache=writeback", (false, false, true, false);
    threads_none: "aio=threads,cache=none", (true, false, true, false);
    threads_writethrough: "aio=threads,cache=writethrough", (false, true, false, false);
    threads_directsync: "aio=threads,cache=directsync", (true, true, false, false);
    threads_unsafe: "aio=threads,cache=unsafe", (false, false, false, false);
}

/// How often a ring's queue enters the kernel.
#[test]
fn uring_enters_once_for_eight_requests_or_a_kick_and_polls_without() {
    /// Two full batches and a half.
    const REQUESTS: u32 = 20;
    if let Some(file) = traced_file() {
        let disk = Registry::default().open(format!("{file},aio=io_uring").parse().unwrap()).unwrap();
        let mut client = Client::new(&*disk, REQUESTS as u16);
        let mut memory: Vec<Memory> = (0..REQUESTS).map(|_| Memory::new(4096, 0, 0)).collect();
        for _ in 0..2 {
            mark("submit");
            for (i, memory) in memory.iter_mut().enumerate() {
                let segments = [memory.segment()];
                let range = (4096 * i as u64, 4096);
                // SAFETY: the memory outlives the queue.
                let _ = unsafe { client.submit(Operation::Read, range, &segments, RequestFlags::NONE) };
            }
            mark("kick");
            client.kick();
            mark("collect");
            let mut left = REQUESTS as usize;
            while left > 0 {
                left -= client.wait().len();
            }
            mark("idle");
            for _ in 0..1000 {
                assert!(client.poll().is_empty());
                client.kick();
            }
        }
        mark("end");
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    let Some(phases) =
        trace("uring_enters_once_for_eight_requests_or_a_kick_and_polls_without", path.to_str().unwrap())
    else {
        return;
    };
    assert_eq!(phases.len(), 10, "{phases:?}");
    for (phase, asked) in &phases[1..] {
        match phase.as_str() {
            "submit" => assert_eq!(asked, &[const { Asked::Enter { submitted: 8 } }; 2]),
            "kick" => assert_eq!(asked, &[Asked::Enter { submitted: 4 }]),
            // At most one for each completion that came in by itself, and none that submits.
            "collect" => {
                assert!(asked.len() <= REQUESTS as usize, "{asked:?}");
                assert!(asked.iter().all(|asked| *asked == Asked::Enter { submitted: 0 }), "{asked:?}");
            }
            _ => assert_eq!(asked, &[], "{phase}"),
        }
    }
}
