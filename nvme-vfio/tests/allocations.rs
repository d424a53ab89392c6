//! The data path allocates nothing.

mod fake;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fake::Fake;
use nvme_vfio::{Controller, Options};

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
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

#[test]
fn submitting_kicking_and_polling_allocate_nothing() {
    let fake = Fake::with(|state| state.record_commands = false);
    let controller = Controller::open(fake.boxed(), Options::default()).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    let buffer = controller.alloc_dma(1 << 20).unwrap();
    fake.state().steps.reserve(10_000);
    let before = ALLOCATIONS.get();
    for lap in 0..100 {
        for token in 0..32 {
            queue.read(&namespace, lap, 8, buffer.range(512..4608), token).unwrap();
            queue.write(&namespace, lap, 2048, buffer.range(0..1 << 20), false, token).unwrap();
        }
        queue.kick();
        let mut sum = 0;
        assert_eq!(queue.poll(|token, result| sum += token + u64::from(result.is_ok())).unwrap(), 64);
        assert_eq!(sum, 31 * 32 + 64);
        assert_eq!(queue.poll(|_, _| unreachable!()).unwrap(), 0);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
