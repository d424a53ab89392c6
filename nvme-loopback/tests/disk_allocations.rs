//! Requests to a drive's disk allocate nothing, once the queue is warm.

mod drive;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use block_core::{Completion, Disk, Operation, Queue, Request, RequestFlags, Segment, Submission};
use drive::Emulated;
use drive::memory::SharedMemory;

/// Counts this thread's allocations: the emulated controller's are another test's.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests of every kind, from memory that is registered and memory that is not.
fn lap(queue: &mut dyn Queue, memory: &SharedMemory, completions: &mut Vec<Completion>) {
    let pages = |at: usize| [memory.segment(at, 4096), memory.segment(at + 8192, 4096)];
    let requests: [(Operation, u64, &[Segment]); 8] = [
        (Operation::Read, 0, &pages(0)),
        (Operation::Write, 65536, &pages(32768)),
        (Operation::Read, 131_072, &[memory.segment(0, 1 << 18)]),
        (Operation::Write, 1 << 20, &[memory.segment(1 << 19, 65536)]),
        (Operation::Write, (2 << 20) + 5, &[memory.segment(0, 1000)]),
        (Operation::Flush, 0, &[]),
        (Operation::Discard, 3 << 20, &[]),
        (Operation::WriteZeroes, 4 << 20, &[]),
    ];
    let mut pending = 0;
    for (operation, offset, segments) in requests {
        let data: usize = segments.iter().map(|segment| segment.len).sum();
        let len = if segments.is_empty() { 8192 } else { data as u64 };
        let request = Request { operation, offset, len, segments, flags: RequestFlags::NONE, token: 0 };
        // SAFETY: the memory stays.
        match unsafe { queue.submit(request) } {
            Submission::Done(result) => assert_eq!(result, Ok(())),
            Submission::Pending => pending += 1,
            Submission::Full => panic!("full"),
        }
    }
    queue.kick();
    while pending > 0 {
        if queue.poll(completions) == 0 {
            queue.may_sleep();
        }
        for completion in completions.drain(..) {
            assert_eq!(completion.result, Ok(()));
            pending -= 1;
        }
    }
}

#[test]
fn requests_allocate_nothing_after_the_first_ones() {
    let emulated = Emulated::on("mem:16M");
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(1 << 20);
    for registered in [true, false] {
        if registered {
            memory.register(&disk);
        }
        let mut queue = disk.open_queue(16).unwrap();
        let mut completions = Vec::with_capacity(16);
        for _ in 0..30 {
            lap(&mut *queue, &memory, &mut completions);
        }
        let before = ALLOCATIONS.get();
        for _ in 0..100 {
            lap(&mut *queue, &memory, &mut completions);
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "registered: {registered}");
        drop(queue);
        if registered {
            memory.unregister(&disk);
        }
    }
    assert!(emulated.drive.counters().bytes_bounced > 0);
}
