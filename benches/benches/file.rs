//! A file through block-core, beside the plainest io_uring loop on the same file: 4 KiB random reads, 32 in flight.
//!
//! The plain loop is the limit: it registers nothing, checks nothing and keeps nothing about a request but its buffer.

use block_core::{Operation, Queue, Registry, Request, RequestFlags, Segment, Submission};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use io_uring::{IoUring, opcode, types};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const DEPTH: usize = 32;
const BLOCK: usize = 4096;
const SIZE: u64 = 256 << 20;

/// Page-aligned buffers, one for each request in flight.
struct Buffers(Vec<u8>);

impl Buffers {
    fn new() -> Self {
        Self(vec![0; (DEPTH + 1) * BLOCK])
    }

    fn get(&mut self, index: usize) -> *mut u8 {
        let aligned = self.0.as_ptr().align_offset(BLOCK);
        self.0[aligned + index * BLOCK..].as_mut_ptr()
    }
}

/// Random block offsets (xorshift64).
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (SIZE / BLOCK as u64) * BLOCK as u64
    }
}

/// `count` reads through a queue, polled.
fn through_queue(queue: &mut dyn Queue, count: u64) -> Duration {
    let (mut buffers, mut offsets) = (Buffers::new(), Offsets(0x5eed));
    let mut completions = Vec::with_capacity(DEPTH);
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut submitted, mut completed) = (0, 0);
    let start = Instant::now();
    while completed < count {
        while submitted < count {
            let Some(index) = free.pop() else { break };
            let segments = [Segment { base: buffers.get(index), len: BLOCK }];
            let request = Request {
                operation: Operation::Read,
                offset: offsets.next(),
                len: BLOCK as u64,
                segments: &segments,
                flags: RequestFlags::NONE,
                token: index as u64,
            };
            // SAFETY: each buffer has one request at a time, and all have completed when this returns.
            let submission = unsafe { queue.submit(request) };
            assert_eq!(submission, Submission::Pending);
            submitted += 1;
        }
        queue.kick();
        queue.poll(&mut completions);
        for completion in completions.drain(..) {
            completion.result.expect("read");
            free.push(completion.token as usize);
            completed += 1;
        }
    }
    start.elapsed()
}

/// `count` reads through a ring of our own, polled in the same way.
fn through_plain_ring(ring: &mut IoUring, file: &File, count: u64) -> Duration {
    let (mut buffers, mut offsets) = (Buffers::new(), Offsets(0x5eed));
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut submitted, mut completed) = (0, 0);
    let start = Instant::now();
    while completed < count {
        let mut any = false;
        while submitted < count {
            let Some(index) = free.pop() else { break };
            let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffers.get(index), BLOCK as u32)
                .offset(offsets.next())
                .build()
                .user_data(index as u64);
            // SAFETY: each buffer has one request at a time, and all have completed when this returns.
            unsafe { ring.submission().push(&entry) }.expect("room");
            submitted += 1;
            any = true;
        }
        if any || ring.submission().taskrun() {
            ring.submit_and_wait(0).expect("submit");
        }
        for entry in ring.completion() {
            assert_eq!(entry.result(), BLOCK as i32);
            free.push(entry.user_data() as usize);
            completed += 1;
        }
    }
    start.elapsed()
}

/// A file that is really there, without holes.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("create");
    let chunk: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..SIZE >> 20 {
        file.write_all(&chunk).expect("write");
    }
    file.sync_all().expect("sync");
}

fn file(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let path = dir.path().join("disk.img");
    fill(&path);
    for (cache, flags) in [("none", libc::O_DIRECT), ("writeback", 0)] {
        let mut group = c.benchmark_group(format!("file, cache={cache}, 4 KiB random read, QD{DEPTH}"));
        group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(5)).sample_size(20);
        let plain = OpenOptions::new().read(true).custom_flags(flags).open(&path).expect("open");
        group.bench_function("plain io_uring, deferred task work", |b| {
            let mut ring = IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .build(DEPTH as u32)
                .expect("ring");
            b.iter_custom(|count| through_plain_ring(&mut ring, &plain, count));
        });
        group.bench_function("plain io_uring", |b| {
            let mut ring = IoUring::new(DEPTH as u32).expect("ring");
            b.iter_custom(|count| through_plain_ring(&mut ring, &plain, count));
        });
        for aio in ["io_uring", "threads"] {
            let name = format!("{},cache={cache},aio={aio},readonly=on", path.display());
            let disk = Registry::default().open(name.parse().expect("spec")).expect("disk");
            group.bench_function(format!("block-core, aio={aio}"), |b| {
                let mut queue = disk.open_queue(DEPTH as u16).expect("queue");
                b.iter_custom(|count| through_queue(&mut *queue, count));
            });
        }
        group.finish();
    }
}

/// What a request costs that ends in the call.
fn at_once(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit, 4 KiB read");
    group.throughput(Throughput::Elements(1));
    for name in ["null:1T", "mem:64M"] {
        let disk = Registry::default().open(name.parse().expect("spec")).expect("disk");
        let capacity = disk.info().capacity;
        group.bench_function(name, |b| {
            let mut queue = disk.open_queue(1).expect("queue");
            let (mut buffers, mut offsets) = (Buffers::new(), Offsets(0x5eed));
            let segments = [Segment { base: buffers.get(0), len: BLOCK }];
            b.iter(|| {
                let request = Request {
                    operation: Operation::Read,
                    offset: offsets.next() % capacity,
                    len: BLOCK as u64,
                    segments: &segments,
                    flags: RequestFlags::NONE,
                    token: 0,
                };
                // SAFETY: the buffer outlives the call, in which the request ends.
                unsafe { queue.submit(request) }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, file, at_once);
criterion_main!(benches);
