//! No heap allocation per request: submit, kick and poll on every kind of disk, counted after a warm-up.

use block_core::{Operation, Queue, Registry, Request, RequestFlags, Segment, Submission};
use rustix::event::{PollFd, PollFlags, poll};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what every thread allocates.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as our caller vouches for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as our caller vouches for.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as our caller vouches for.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: usize = 16;
const LEN: usize = 16384;

/// Page-aligned memory for each request in flight.
#[repr(C, align(4096))]
struct Buffer([u8; LEN]);

/// One batch of requests of every kind, submitted, kicked and polled to its end.
fn batch(queue: &mut dyn Queue, buffers: &mut [Buffer], completions: &mut Vec<block_core::Completion>) {
    let mut pending = 0;
    for (i, buffer) in buffers.iter_mut().enumerate() {
        let base = buffer.0.as_mut_ptr();
        let quarter = |n: usize| Segment { base: base.wrapping_add(n * LEN / 4), len: LEN / 4 };
        let (one, four) = ([Segment { base, len: LEN }], [0, 1, 2, 3].map(quarter));
        let (part, at) = ([Segment { base: base.wrapping_add(1), len: 100 }], i as u64 * LEN as u64);
        let (operation, segments, offset): (_, &[Segment], _) = match i % 8 {
            0 | 1 => (Operation::Read, &one, at),
            2 => (Operation::Read, &four, at),
            3 | 4 => (Operation::Write, &one, at),
            5 => (Operation::Write, &four, at),
            // Bounced, and read-modified-written, where there is O_DIRECT.
            6 => (Operation::Write, &part, at + 77),
            _ => (Operation::Flush, &[], 0),
        };
        let len = segments.iter().map(|s| s.len as u64).sum();
        let flags = if i % 2 == 0 { RequestFlags::NONE } else { RequestFlags::FUA };
        let request = Request { operation, offset, len, segments, flags, token: i as u64 };
        // SAFETY: the buffers outlive the requests, which have all ended when this returns.
        match unsafe { queue.submit(request) } {
            Submission::Done(result) => assert_eq!(result, Ok(())),
            Submission::Pending => pending += 1,
            Submission::Full => panic!("the queue is deep enough"),
        }
    }
    queue.kick();
    while pending > 0 {
        if queue.poll(completions) == 0
            && let Some(fd) = queue.wait_fd()
        {
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
        }
        for completion in completions.drain(..) {
            assert_eq!(completion.result, Ok(()));
            pending -= 1;
        }
    }
}

/// One test, for the count is the whole process's.
#[test]
fn requests_allocate_nothing_after_the_first_ones() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let path = path.display();
    // Clusters that are there, and so found in the table of mappings.
    let image = dir.path().join("disk.qcow2");
    let image = image.to_str().unwrap();
    let mut disks = vec![
        "mem:1M".to_owned(),
        "null:1M".to_owned(),
        format!("{path},aio=io_uring"),
        format!("{path},aio=io_uring,cache=none"),
        format!("{path},aio=threads"),
        format!("{path},aio=threads,cache=none"),
    ];
    if let Some(qemu_img) = fixtures::qemu_img_or_skip() {
        qemu_img.ok(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1M"]);
        disks.extend(
            ["aio=io_uring", "aio=io_uring,cache=none", "aio=threads"].map(|o| format!("{image},{o}")),
        );
    }
    let mut buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer([0x5a; LEN])).collect();
    let mut completions = Vec::with_capacity(DEPTH);
    for name in disks {
        let disk = match Registry::default().open(name.parse().unwrap()) {
            Ok(disk) => disk,
            Err(error) if error.to_string().contains("no O_DIRECT") => {
                eprintln!("skipped: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let mut queue = disk.open_queue(DEPTH as u16).unwrap();
        // Until it has all the threads that it starts as they are needed, which is when the machine has time for them.
        let mut lap = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..200 {
                batch(&mut *queue, &mut buffers, &mut completions);
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        let laps: Vec<_> = std::iter::repeat_with(&mut lap).take(20).take_while(|count| *count > 0).collect();
        assert!(laps.len() < 20, "{name}: allocations in {} requests: {laps:?}", 200 * DEPTH);
    }
}
