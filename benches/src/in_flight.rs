//! Requests of 4 KiB kept in flight on a queue of `block-core`.

use block_core::{Operation, Queue, Request, RequestFlags, Segment, Submission};
use std::time::{Duration, Instant};

/// How many are in flight.
pub const DEPTH: usize = 32;

/// Bytes of each.
pub const BLOCK: usize = 4096;

/// Page-aligned buffers, one for each request in flight.
#[derive(Debug)]
pub struct Buffers(Vec<u8>);

impl Default for Buffers {
    fn default() -> Self {
        Self(vec![0x5a; (DEPTH + 1) * BLOCK])
    }
}

impl Buffers {
    /// The buffer of one of them: [`BLOCK`] bytes.
    pub fn get(&mut self, index: usize) -> *mut u8 {
        let aligned = self.0.as_ptr().align_offset(BLOCK);
        self.0[aligned + index * BLOCK..].as_mut_ptr()
    }
}

/// Random offsets of blocks (xorshift64) on a disk of `size` bytes.
pub fn random(size: u64) -> impl FnMut() -> u64 {
    let mut state = 0x5eed_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (size / BLOCK as u64) * BLOCK as u64
    }
}

/// `count` requests, [`DEPTH`] of them in flight, polled; how long they took.
///
/// # Panics
///
/// One fails.
pub fn run(
    queue: &mut dyn Queue,
    operation: Operation,
    count: u64,
    mut offset: impl FnMut() -> u64,
) -> Duration {
    let mut buffers = Buffers::default();
    let mut completions = Vec::with_capacity(DEPTH);
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut submitted, mut completed) = (0, 0);
    let start = Instant::now();
    while completed < count {
        while submitted < count {
            let Some(index) = free.pop() else { break };
            let segments = [Segment { base: buffers.get(index), len: BLOCK }];
            let (len, flags, token) = (BLOCK as u64, RequestFlags::NONE, index as u64);
            let request = Request { operation, offset: offset(), len, segments: &segments, flags, token };
            // SAFETY: each buffer has one request at a time, and all have completed when this returns.
            match unsafe { queue.submit(request) } {
                Submission::Pending => {}
                Submission::Done(result) => {
                    result.expect("done");
                    free.push(index);
                    completed += 1;
                }
                Submission::Full => {
                    free.push(index);
                    break;
                }
            }
            submitted += 1;
        }
        queue.kick();
        queue.poll(&mut completions);
        for completion in completions.drain(..) {
            completion.result.expect("completed");
            free.push(completion.token as usize);
            completed += 1;
        }
    }
    start.elapsed()
}
