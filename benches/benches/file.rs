//! A file through block-core, beside the plainest io_uring loop on the same file: 4 KiB random reads, 32 in flight.
//!
//! The plain loop is the limit: it registers nothing, checks nothing and keeps nothing about a request but its buffer.

use benches::in_flight::{BLOCK, Buffers, DEPTH, random, run};
use block_core::{Operation, Registry, Request, RequestFlags, Segment};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use io_uring::{IoUring, opcode, types};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE: u64 = 256 << 20;

/// `count` reads through a ring of our own, polled in the same way.
fn through_plain_ring(ring: &mut IoUring, file: &File, count: u64) -> Duration {
    let (mut buffers, mut offset) = (Buffers::default(), random(SIZE));
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut submitted, mut completed) = (0, 0);
    let start = Instant::now();
    while completed < count {
        let mut any = false;
        while submitted < count {
            let Some(index) = free.pop() else { break };
            let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffers.get(index), BLOCK as u32)
                .offset(offset())
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
                b.iter_custom(|count| run(&mut *queue, Operation::Read, count, random(SIZE)));
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
            let (mut buffers, mut offset) = (Buffers::default(), random(SIZE));
            let segments = [Segment { base: buffers.get(0), len: BLOCK }];
            b.iter(|| {
                let request = Request {
                    operation: Operation::Read,
                    offset: offset() % capacity,
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
