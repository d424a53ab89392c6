//! Copies of one block at a time out of (or into) a memory as big as the disk under test: what any `mem:` disk has
//! to do, and nothing else.

use super::placement::pin;
use super::workload::{Direction, Sequence, Workload};
use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, Instant};

/// Memory, every page of it written.
pub struct Memory {
    base: *mut u8,
    len: usize,
}

impl Memory {
    /// Maps `len` private bytes, as `mem:` does: on huge pages where the machine gives some for the asking.
    ///
    /// # Errors
    ///
    /// There is not that much memory.
    pub fn new(len: usize) -> Result<Self> {
        // SAFETY: a fresh anonymous mapping, where the kernel puts it.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        Self::fill(base, len)
    }

    /// Maps `len` shared bytes, as the driver does for its buffers: the page cache's huge pages are not given where
    /// private ones are.
    ///
    /// # Errors
    ///
    /// There is not that much memory.
    pub fn shared(len: usize) -> Result<Self> {
        let file = memfd_create("ringpair-bench", MemfdFlags::CLOEXEC)
            .context("making shared memory to measure copies with")?;
        ftruncate(&file, len as u64).context("making shared memory to measure copies with")?;
        // SAFETY: a fresh mapping of a file that nobody else has, where the kernel puts it.
        let base = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        };
        Self::fill(base, len)
    }

    fn fill(mapped: rustix::io::Result<*mut c_void>, len: usize) -> Result<Self> {
        let base = mapped.with_context(|| format!("mapping {len} bytes of memory to measure copies with"))?;
        // SAFETY: advice on the mapping just made; refused is as good.
        let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        // SAFETY: the mapping is `len` bytes long, writable, and nobody else knows of it.
        unsafe { ptr::write_bytes(base.cast::<u8>(), 0x5A, len) };
        Ok(Self { base: base.cast(), len })
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and nothing borrowed it.
        let _ = unsafe { munmap(self.base.cast::<c_void>(), self.len) };
    }
}

/// Copies a second that one CPU makes, in the order and direction of `workload`, between a memory and as many
/// buffers as there are I/Os in flight.
pub fn measure(workload: &Workload, memory: &Memory, cpu: usize, runtime: Duration) -> Result<f64> {
    let block_size = workload.block_size as usize;
    let buffers = Memory::shared(block_size * usize::from(workload.iodepth))?;
    let (source, target) = (memory.base as usize, buffers.base as usize);
    let capacity = memory.len as u64;
    let workload = Workload { numjobs: 1, ..*workload };
    anyhow::ensure!(capacity >= u64::from(workload.block_size), "a block is larger than the disk");
    let work = move || {
        pin(cpu);
        let mut sequence = Sequence::new(&workload, capacity, 0);
        let (mut copies, mut buffer) = (0u64, 0usize);
        let began = Instant::now();
        loop {
            for _ in 0..256 {
                let (direction, offset) = sequence.next();
                let disk = (source + offset as usize) as *mut u8;
                let host = (target + buffer * block_size) as *mut u8;
                let (from, to) = if direction == Direction::Read { (disk, host) } else { (host, disk) };
                // SAFETY: `Sequence` gives offsets of whole blocks inside `capacity`, which is the length of
                // `memory`; `buffer` is below the number of blocks in `buffers`; both outlive this thread,
                // which is joined below; the two do not overlap.
                unsafe { ptr::copy_nonoverlapping(from, to, block_size) };
                buffer = if buffer + 1 == usize::from(workload.iodepth) { 0 } else { buffer + 1 };
            }
            copies += 256;
            let elapsed = began.elapsed();
            if elapsed >= runtime {
                return copies as f64 / elapsed.as_secs_f64();
            }
        }
    };
    // A thread of its own, so that the caller's affinity stays as it is.
    std::thread::spawn(work).join().map_err(|_| anyhow::anyhow!("the copying thread died"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Pattern;

    #[test]
    fn copies_are_counted_for_reads_and_writes() {
        let memory = Memory::new(1 << 20).unwrap();
        for pattern in [Pattern::RandomRead, Pattern::Write] {
            let workload = Workload { pattern, read_percent: 50, block_size: 4096, iodepth: 8, numjobs: 1 };
            assert!(measure(&workload, &memory, 0, Duration::from_millis(5)).unwrap() > 0.0);
        }
    }
}
