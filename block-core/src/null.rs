//! `null:SIZE`: a disk that forgets. What is left when the medium costs nothing.

use crate::disk::{Disk, DiskInfo, Unmapped};
use crate::mem::take_capacity;
use crate::queue::{Queue, Submission};
use crate::registry::OpenError;
use crate::request::{Completion, Operation, Request};
use crate::segments;
use crate::spec::DiskSpec;
use std::io;
use std::os::fd::BorrowedFd;

/// A disk that accepts every write and keeps none of it.
///
/// A read succeeds and leaves its buffers as they are, as QEMU's `null-co` does by default: a guest then finds in
/// them what it had put there itself. With `read-zeroes=on` it fills them with zeroes. Every request is done in
/// [`Queue::submit`].
///
/// Options: `read-zeroes=on|off` (default off), `readonly=on|off` (default off).
#[derive(Clone, Debug)]
pub struct NullDisk {
    capacity: u64,
    read_zeroes: bool,
    read_only: bool,
}

impl NullDisk {
    /// A disk of `capacity` bytes with the default options.
    pub fn with_capacity(capacity: u64) -> Self {
        Self { capacity, read_zeroes: false, read_only: false }
    }

    /// The disk that `null:SIZE[,option=value…]` names.
    ///
    /// # Errors
    ///
    /// A size or an option that is wrong.
    pub fn open(mut spec: DiskSpec) -> Result<Self, OpenError> {
        let disk = Self {
            capacity: take_capacity(&spec)?,
            read_zeroes: spec.take_switch("read-zeroes")?.unwrap_or(false),
            read_only: spec.take_switch("readonly")?.unwrap_or(false),
        };
        spec.finish()?;
        Ok(disk)
    }
}

impl Disk for NullDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            capacity: self.capacity,
            logical_block_size: 512,
            physical_block_size: 512,
            request_alignment: 1,
            memory_alignment: 1,
            max_transfer: u32::MAX,
            volatile_cache: false,
            read_only: self.read_only,
            unmapped: if self.read_zeroes { Unmapped::Zeroes } else { Unmapped::Ignored },
            discard_granularity: 512,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: 512,
        }
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(NullQueue(self.clone())))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct NullQueue(NullDisk);

impl Queue for NullQueue {
    #[inline]
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        if let Some(result) = request.settled(self.0.capacity, self.0.read_only) {
            return Submission::Done(result);
        }
        if self.0.read_zeroes && request.operation == Operation::Read {
            // SAFETY: the caller vouches for the segments until this call returns `Done`.
            unsafe { segments::zero(request.segments) };
        }
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
