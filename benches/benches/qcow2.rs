//! qcow2 through block-core: what finding a cluster costs; allocated clusters beside a raw file; and writes to fresh
//! clusters beside `qemu-img bench` doing the same.

use benches::in_flight::{BLOCK, Buffers, DEPTH, random, run};
use block_core::file::CacheMode;
use block_core::qcow2::Qcow2Disk;
use block_core::{Completion, Disk, DiskInfo, ImageFile, OpenError, Operation, Queue, Registry, Request};
use block_core::{RequestFlags, Segment, Submission, Unmapped};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fixtures::qemu_img_or_skip;
use std::hint::black_box;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SIZE: u64 = 512 << 20;
const CLUSTER: u64 = 64 << 10;

/// A file in memory whose queues end every request in the call and move nothing: what is left is the format.
struct Nothing(Mutex<Vec<u8>>);

impl Disk for Nothing {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            capacity: self.0.lock().unwrap().len() as u64,
            logical_block_size: 512,
            physical_block_size: 4096,
            request_alignment: 1,
            memory_alignment: 1,
            max_transfer: u32::MAX,
            volatile_cache: true,
            read_only: false,
            unmapped: Unmapped::Zeroes,
            discard_granularity: 4096,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: 512,
        }
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(NothingQueue))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct NothingQueue;

impl Queue for NothingQueue {
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        black_box(request.offset);
        Submission::Done(Ok(()))
    }

    fn kick(&mut self) {}

    fn poll(&mut self, _completions: &mut Vec<Completion>) -> usize {
        0
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl ImageFile for Nothing {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let start = bytes.len().min(offset as usize);
        let n = into.len().min(bytes.len() - start);
        into[..n].copy_from_slice(&bytes[start..start + n]);
        into[n..].fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let end = offset as usize + data.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn zero_at(&self, _offset: u64, _len: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }

    fn open_beside(&self, path: &Path, _read_only: bool) -> Result<Arc<dyn ImageFile>, OpenError> {
        Err(OpenError::Unusable {
            location: path.display().to_string(),
            reason: "there is no other file".into(),
        })
    }

    fn failed(&self) -> Option<i32> {
        None
    }

    fn cache_mode(&self) -> CacheMode {
        CacheMode::Writeback
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        Ok((0, 0))
    }

    fn identity_of(&self, _path: &Path) -> io::Result<(u64, u64)> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn open(name: &str) -> Arc<dyn Disk> {
    Registry::default().open(name.parse().expect("spec")).unwrap_or_else(|error| panic!("{error}"))
}

/// A request whose cluster is in the table, without what the file below does with it.
fn hit(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().expect("a name");
    let Some(qemu_img) = qemu_img_or_skip() else { return };
    qemu_img.ok(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", name, &SIZE.to_string()]);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.truncate(bytes.len().next_multiple_of(CLUSTER as usize));
    let disk = Qcow2Disk::on_file(Arc::new(Nothing(Mutex::new(bytes)))).expect("disk");
    let mut group = c.benchmark_group("qcow2, a mapping that is in the table");
    group.throughput(Throughput::Elements(1));
    let mut queue = disk.open_queue(DEPTH as u16).expect("queue");
    run(&mut *queue, Operation::Read, 100_000, random(SIZE));
    for operation in [Operation::Read, Operation::Write] {
        group.bench_function(format!("{operation:?}"), |b| {
            let (mut buffers, mut offset) = (Buffers::default(), random(SIZE));
            let segments = [Segment { base: buffers.get(0), len: BLOCK }];
            b.iter(|| {
                let (offset, len, flags) = (offset(), BLOCK as u64, RequestFlags::NONE);
                let request = Request { operation, offset, len, segments: &segments, flags, token: 0 };
                // SAFETY: the buffer outlives the call, in which the request ends.
                unsafe { queue.submit(request) }
            });
        });
    }
    group.finish();
}

/// Clusters that are allocated, beside a raw file of the same file system.
fn allocated(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let (raw, image) = (dir.path().join("raw.img"), dir.path().join("disk.qcow2"));
    let chunk: Vec<u8> = (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&raw, chunk).expect("write");
    let name = |path: &Path| path.to_str().expect("a name").to_owned();
    let Some(qemu_img) = qemu_img_or_skip() else { return };
    qemu_img.ok(&["convert", "-f", "raw", "-O", "qcow2", &name(&raw), &name(&image)]);
    for operation in [Operation::Read, Operation::Write] {
        let mut group =
            c.benchmark_group(format!("allocated, cache=none, 4 KiB random {operation:?}, QD{DEPTH}"));
        group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(4)).sample_size(10);
        for path in [&raw, &image] {
            let disk = open(&format!("{},cache=none", path.display()));
            let mut queue = disk.open_queue(DEPTH as u16).expect("queue");
            run(&mut *queue, Operation::Read, 20_000, random(SIZE));
            let label = path.extension().expect("an extension").to_string_lossy().into_owned();
            group.bench_function(label, |b| {
                let mut offset = random(SIZE);
                b.iter_custom(|count| run(&mut *queue, operation, count, &mut offset));
            });
        }
        group.finish();
    }
}

/// Writes each of which needs a new cluster, on a fresh image; `qemu-img bench` before and after.
fn allocating(c: &mut Criterion) {
    const COUNT: u64 = 20_000;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().expect("a name");
    let Some(qemu_img) = qemu_img_or_skip() else { return };
    let fresh = || {
        let _ = std::fs::remove_file(&path);
        qemu_img.ok(&["create", "-q", "-f", "qcow2", name, "8G"]);
    };
    let theirs = || {
        fresh();
        let (count, depth, step) = (COUNT.to_string(), DEPTH.to_string(), CLUSTER.to_string());
        let start = Instant::now();
        let bench = ["bench", "-w", "-f", "qcow2", "-t", "none", "-i", "io_uring"];
        let shape = ["-c", &count, "-d", &depth, "-s", "4096", "-S", &step, name];
        qemu_img.ok(&[&bench[..], &shape].concat());
        println!("qemu-img bench: {:.0} /s", COUNT as f64 / start.elapsed().as_secs_f64());
    };
    theirs();
    let mut group = c.benchmark_group(format!("allocating, cache=none, 4 KiB writes, QD{DEPTH}"));
    group.throughput(Throughput::Elements(COUNT)).measurement_time(Duration::from_secs(4)).sample_size(10);
    group.bench_function("a cluster each", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                fresh();
                let disk = open(&format!("{name},cache=none"));
                let mut queue = disk.open_queue(DEPTH as u16).expect("queue");
                let mut next = 0;
                took += run(&mut *queue, Operation::Write, COUNT, || {
                    next += CLUSTER;
                    next - CLUSTER
                });
                let start = Instant::now();
                drop(queue);
                drop(disk);
                took += start.elapsed();
            }
            took
        });
    });
    group.finish();
    theirs();
}

criterion_group!(benches, hit, allocated, allocating);
criterion_main!(benches);
