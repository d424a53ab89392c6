//! A disk whose requests end when the test says so, and which wants to know of them in advance.

use block_core::{
    Completion, Disk, DiskInfo, Operation, Queue, Request, RequestResult, Submission, Unmapped,
};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// A request that a queue has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub operation: Operation,
    pub offset: u64,
    pub len: u64,
    pub flags: block_core::RequestFlags,
    /// First byte of its memory, to show that it is (not) touched.
    pub memory: usize,
    /// Whether the disk had heard of it before it came.
    pub expected: bool,
    token: u64,
}

#[derive(Default)]
struct State {
    expected: Vec<(Operation, u64, u64)>,
    waiting: Vec<Taken>,
    ended: Vec<Completion>,
    room: usize,
}

pub struct GateDisk {
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
}

impl GateDisk {
    pub fn new(room: usize) -> Arc<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        Arc::new(Self { state: Arc::new(Mutex::new(State { room, ..State::default() })), event })
    }

    /// What waits to be ended.
    pub fn waiting(&self) -> Vec<Taken> {
        self.state.lock().unwrap().waiting.clone()
    }

    /// Ends everything that waits.
    pub fn release(&self, result: RequestResult) -> usize {
        let mut state = self.state.lock().unwrap();
        let tokens: Vec<u64> = state.waiting.drain(..).map(|taken| taken.token).collect();
        state.ended.extend(tokens.iter().map(|&token| Completion { token, result }));
        drop(state);
        rustix::io::write(&*self.event, &1u64.to_ne_bytes()).unwrap();
        tokens.len()
    }
}

impl Disk for GateDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            capacity: 1 << 30,
            logical_block_size: 512,
            physical_block_size: 512,
            request_alignment: 1,
            memory_alignment: 1,
            max_transfer: 1 << 20,
            volatile_cache: true,
            read_only: false,
            unmapped: Unmapped::Zeroes,
            discard_granularity: 512,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: 512,
        }
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(GateQueue { state: self.state.clone(), event: self.event.clone() }))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct GateQueue {
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
}

impl Queue for GateQueue {
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        let mut state = self.state.lock().unwrap();
        if state.waiting.len() == state.room {
            return Submission::Full;
        }
        let expected = state.expected.contains(&(request.operation, request.offset, request.len));
        state.waiting.push(Taken {
            operation: request.operation,
            offset: request.offset,
            len: request.len,
            flags: request.flags,
            memory: request.segments.first().map_or(0, |segment| segment.base as usize),
            expected,
            token: request.token,
        });
        Submission::Pending
    }

    fn hint(&self, operation: Operation, offset: u64, len: u64) {
        self.state.lock().unwrap().expected.push((operation, offset, len));
    }

    fn takes_hints(&self) -> bool {
        true
    }

    fn kick(&mut self) {}

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let _ = rustix::io::read(&*self.event, &mut [0; 8]);
        let mut state = self.state.lock().unwrap();
        let count = state.ended.len();
        completions.append(&mut state.ended);
        count
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }
}
