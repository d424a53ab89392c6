//! The data path allocates nothing, once it is warm.

mod host;

use host::{Host, adaptive, disk, polling};
use nvme_emu::{ControllerOptions, EngineOptions};
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::{NvmOpcode, Status, SubmissionQueueEntry};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

/// Counts what reactors allocate. The test's own threads, and the harness's, allocate as they like.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Whether the calling thread is a reactor, by its name: asked without allocating.
fn is_reactor() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, zero-terminated.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name.starts_with(b"ringpair-r")
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_reactor() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn batch(host: &mut Host, list: u64, data: u64) {
    for i in 0..48 {
        let (opcode, blocks) = match i % 4 {
            0 => (NvmOpcode::READ, 8),
            1 => (NvmOpcode::WRITE, 1),
            2 => (NvmOpcode::READ, 64),
            _ => (NvmOpcode::FLUSH, 1),
        };
        let dwords = ReadWrite::new().with_slba(i).with_number_of_logical_blocks(blocks);
        let sqe = SubmissionQueueEntry::new(opcode, 0).with_nsid(1).with_dwords(dwords);
        host.put(1, sqe.with_prp(data, list));
    }
    host.ring(1);
    for _ in 0..48 {
        assert_eq!(host.completion(1).status(), Status::SUCCESS);
    }
}

fn allocations(engine: EngineOptions, spec: &str) -> u64 {
    let mut host = Host::with(engine, ControllerOptions::default(), vec![disk(spec)]);
    host.enable();
    host.create_queue(1);
    let (list, data) = (host.pages(1), host.pages(8));
    host.write_ram(list, (1..8).map(|page| data + page * 4096).collect::<Vec<u64>>().as_bytes());
    for _ in 0..20 {
        batch(&mut host, list, data);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "making the queues is counted, so commands would be");
    for _ in 0..200 {
        batch(&mut host, list, data);
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn nothing_is_allocated_per_command() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    for spec in ["mem:16M", "null:16M", &path] {
        for engine in [adaptive(), polling(1)] {
            assert_eq!(allocations(engine, spec), 0, "{spec}");
        }
    }
}
