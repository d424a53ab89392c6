//! Opens a namespace of a drive as a disk and tries it: for tests in guests, and for a first look at a drive. Overwrites
//! its beginning and its end.
//!
//! ```text
//! disk_exercise DISK COMMAND            DISK: nvme://ADDRESS/NSID[,option=value…], vfio-user:SOCKET/NSID[,…]
//!
//!   contract       whether it keeps the block layer's contract, sentence by sentence
//!   zero-copy      write and verify out of registered memory on two threads, and say what was copied
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use block_core::contract::{SENTENCES, pattern};
use block_core::{
    Completion, Disk, DiskSpec, MemoryRegion, Operation, Registry, Request, RequestFlags, Segment, Submission,
};
use rustix::mm::{MapFlags, ProtFlags};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk_exercise: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, command] = arguments.as_slice() else {
        return Err("expected DISK COMMAND".into());
    };
    let mut registry = Registry::default();
    nvme_vfio::disk::register(&mut registry);
    let disk = registry.open(name.parse::<DiskSpec>()?)?;
    println!("{:?}", disk.info());
    match command.as_str() {
        "contract" => contract(&*disk),
        "zero-copy" => zero_copy(&disk),
        other => Err(format!("{other}: there is no such command").into()),
    }
}

/// Panics where the contract is broken.
fn contract(disk: &dyn Disk) -> Result<()> {
    for (name, sentence) in SENTENCES {
        println!("{name}");
        sentence(disk);
    }
    println!("all of the contract is kept");
    Ok(())
}

fn zero_copy(disk: &Arc<dyn Disk>) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..2u64).map(|thread| scope.spawn(move || write_and_verify(&**disk, thread))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    })?;
    for (name, value) in disk.counters() {
        println!("{name} {value}");
    }
    println!("verified");
    Ok(())
}

const MEMORY: usize = 4 << 20;
const REQUESTS: usize = 8;

/// Memory like that of a guest that is this process' own.
fn memory() -> Result<*mut u8> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, wherever the kernel likes. It stays until the process ends.
    Ok(unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), MEMORY, protection, MapFlags::SHARED)? }
        .cast())
}

fn write_and_verify(disk: &dyn Disk, thread: u64) -> Result<()> {
    let base = memory()?;
    // SAFETY: the memory stays.
    unsafe { disk.register_memory(MemoryRegion { base, len: MEMORY, backing: None })? };
    let mut queue = disk.open_queue(64)?;
    let mut completed: Vec<Completion> = Vec::new();
    let area = thread * (8 << 20);
    for (lap, len) in [512usize, 4096, 65536, 131_072, 1024, 524_288].into_iter().enumerate() {
        let stride = MEMORY / REQUESTS;
        for operation in [Operation::Write, Operation::Read] {
            for i in 0..REQUESTS {
                let at = base.wrapping_add(i * stride);
                let offset = area + (i * stride) as u64;
                let data = pattern(lap as u64, offset, len);
                // SAFETY: inside the memory, which only this thread and requests that have ended use.
                unsafe {
                    if operation == Operation::Write {
                        std::ptr::copy_nonoverlapping(data.as_ptr(), at, len);
                    } else {
                        std::ptr::write_bytes(at, 0, len);
                    }
                }
                let segments = [Segment { base: at, len }];
                let (len, flags, token) = (len as u64, RequestFlags::NONE, i as u64);
                let request = Request { operation, offset, len, segments: &segments, flags, token };
                // A shallow queue is full now and then.
                // SAFETY: the memory stays.
                while unsafe { queue.submit(request) } == Submission::Full {
                    queue.kick();
                    queue.poll(&mut completed);
                }
            }
            queue.kick();
            while completed.len() < REQUESTS {
                queue.poll(&mut completed);
            }
            for completion in completed.drain(..) {
                completion.result?;
            }
        }
        for i in 0..REQUESTS {
            let data = pattern(lap as u64, area + (i * stride) as u64, len);
            // SAFETY: as above.
            let found = unsafe { std::slice::from_raw_parts(base.wrapping_add(i * stride), len) };
            if found != data {
                return Err(format!("wrong data: {len} bytes at {}", area + (i * stride) as u64).into());
            }
        }
    }
    drop(queue);
    disk.unregister_memory(base, MEMORY);
    Ok(())
}
