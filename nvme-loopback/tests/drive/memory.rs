//! Memory that others can map, as a guest's is, and requests into it.

use std::os::fd::{AsFd, OwnedFd};

use block_core::{
    Completion, Disk, MemoryRegion, Operation, Queue, Request, RequestFlags, RequestResult, Segment,
    Submission,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};

/// Pages of a memfd.
pub struct SharedMemory {
    pub base: *mut u8,
    pub len: usize,
    file: OwnedFd,
}

impl SharedMemory {
    pub fn new(len: usize) -> Self {
        let (base, file) = Self::map(std::ptr::null_mut(), len);
        Self { base, len, file }
    }

    /// Puts other memory, zeroes, to the same address.
    pub fn renew(&mut self) {
        (_, self.file) = Self::map(self.base, self.len);
    }

    fn map(at: *mut u8, len: usize) -> (*mut u8, OwnedFd) {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len as u64).unwrap();
        let (protection, mut flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        if !at.is_null() {
            flags |= MapFlags::FIXED;
        }
        // SAFETY: a new mapping, which replaces none, or our own of the same length.
        let base = unsafe { rustix::mm::mmap(at.cast(), len, protection, flags, &file, 0) }.unwrap();
        (base.cast(), file)
    }

    pub fn register(&self, disk: &dyn Disk) {
        self.try_register(disk).unwrap();
    }

    pub fn try_register(&self, disk: &dyn Disk) -> std::io::Result<()> {
        let region = MemoryRegion { base: self.base, len: self.len, backing: Some((self.file.as_fd(), 0)) };
        // SAFETY: the tests take it back before they let the memory go.
        unsafe { disk.register_memory(region) }
    }

    pub fn unregister(&self, disk: &dyn Disk) {
        disk.unregister_memory(self.base, self.len);
    }

    pub fn segment(&self, at: usize, len: usize) -> Segment {
        assert!(at + len <= self.len);
        Segment { base: self.base.wrapping_add(at), len }
    }

    pub fn write(&self, at: usize, data: &[u8]) {
        let to = self.segment(at, data.len());
        // SAFETY: inside the mapping, as has been checked.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.base, data.len()) };
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let from = self.segment(at, len);
        let mut data = vec![0; len];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.base, data.as_mut_ptr(), len) };
        data
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

/// Runs one request to its end.
pub fn run(
    queue: &mut dyn Queue,
    operation: Operation,
    (offset, len): (u64, u64),
    segments: &[Segment],
) -> RequestResult {
    let request = Request { operation, offset, len, segments, flags: RequestFlags::NONE, token: 1 };
    // SAFETY: the tests' memory stays until this returns.
    match unsafe { queue.submit(request) } {
        Submission::Done(result) => result,
        Submission::Full => panic!("full"),
        Submission::Pending => finish(queue, 1).pop().unwrap().result,
    }
}

/// Kicks, and waits for so many requests.
pub fn finish(queue: &mut dyn Queue, count: usize) -> Vec<Completion> {
    queue.kick();
    let mut completed = Vec::with_capacity(count);
    let start = std::time::Instant::now();
    while completed.len() < count {
        if queue.poll(&mut completed) == 0 {
            assert!(start.elapsed().as_secs() < 60, "{} of {count}", completed.len());
            std::thread::yield_now();
        }
    }
    completed
}
