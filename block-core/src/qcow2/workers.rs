//! The threads that metadata is worked on: a few for the whole process, however many disks there are.
//!
//! A disk is handed to them when it has something to do, and is with one of them at a time. They are started as they are
//! needed and stay.

use super::disk::Shared;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// As many threads at most. They wait for the medium more than they compute.
const MAX_THREADS: usize = 16;

static WORKERS: Workers = Workers {
    state: Mutex::new(State { waiting: VecDeque::new(), idle: 0, threads: 0 }),
    work: Condvar::new(),
};

struct Workers {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    waiting: VecDeque<Arc<Shared>>,
    idle: usize,
    threads: usize,
}

impl Workers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a disk over. Fails, without having done so, if no thread could be started at all.
pub(super) fn hand_over(disk: Arc<Shared>) -> io::Result<()> {
    let mut state = WORKERS.state();
    if state.waiting.len() >= state.idle && state.threads < MAX_THREADS {
        match std::thread::Builder::new().name("qcow2".to_owned()).spawn(work) {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => return Err(error),
            Err(_) => {}
        }
    }
    state.waiting.push_back(disk);
    drop(state);
    WORKERS.work.notify_one();
    Ok(())
}

/// What each thread does.
fn work() {
    let mut state = WORKERS.state();
    loop {
        if let Some(disk) = state.waiting.pop_front() {
            drop(state);
            disk.work();
            drop(disk);
            state = WORKERS.state();
        } else {
            state.idle += 1;
            state = WORKERS.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
