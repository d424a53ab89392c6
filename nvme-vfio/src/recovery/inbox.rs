//! What the caretaker is asked to do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Link;
use crate::error::Error;

/// What a queue pair or a user asks for.
pub(crate) enum Request {
    /// New queues for a parked queue pair, unless a reset comes in between.
    Queues { link: Arc<Link>, generation: u32 },
    /// The Abort of a command, if no reset has come in between.
    Abort { qid: u16, cid: u16, generation: u32 },
    /// A reset.
    Reset(SyncSender<Result<(), Error>>),
}

/// What to do next.
pub(crate) enum Next {
    /// End.
    Stop,
    /// Bring the controller back from this.
    Fault(String),
    Request(Request),
    /// Nothing came in time.
    Nothing,
}

#[derive(Default)]
struct State {
    /// The first fault that was reported of a generation.
    fault: Option<(u32, String)>,
    requests: VecDeque<Request>,
    stop: bool,
}

/// The caretaker's inbox.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    /// The last generation of which a fault was reported, plus 1.
    faulted: AtomicU64,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ask(&self, request: Request) {
        self.lock().requests.push_back(request);
        self.arrived.notify_one();
    }

    /// Reports a fault of the controller in this generation; the first one counts.
    pub(crate) fn report(&self, generation: u32, fault: &dyn std::fmt::Display) {
        let mut state = self.lock();
        // Generations wrap around, and so do differences between them. One from before a reset is over.
        let newer = |reported: u32| (generation.wrapping_sub(reported) as i32) > 0;
        if state.fault.as_ref().is_none_or(|(reported, _)| newer(*reported)) {
            state.fault = Some((generation, fault.to_string()));
            self.faulted.store(u64::from(generation) + 1, Ordering::Relaxed);
        }
        self.arrived.notify_one();
    }

    /// Whether a fault of this generation was reported: a reset is coming, nobody has to wait for anything else.
    pub(crate) fn is_faulted(&self, generation: u32) -> bool {
        self.faulted.load(Ordering::Relaxed) == u64::from(generation) + 1
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.arrived.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stop
    }

    /// Waits for what is to be done, until then at most. Faults of other generations than this one are over.
    pub(crate) fn next(&self, generation: u32, until: Instant) -> Next {
        let mut state = self.lock();
        loop {
            if state.stop {
                return Next::Stop;
            }
            if let Some((reported, fault)) = state.fault.take()
                && reported == generation
            {
                return Next::Fault(fault);
            }
            if let Some(request) = state.requests.pop_front() {
                return Next::Request(request);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sleeps, unless told to stop.
    pub(crate) fn pause(&self, time: Duration) {
        let stopped = |state: &mut State| !state.stop;
        drop(self.arrived.wait_timeout_while(self.lock(), time, stopped));
    }
}
