//! What `src/sync.rs` is to the reactor: the same names, of loom's.

use loom::sync::Mutex;
use std::cell::Cell;
use std::collections::VecDeque;

pub use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};

thread_local! {
    /// Loom's threads are coroutines of the test's own.
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// The fences of the files under test.
pub fn fence(order: Ordering) {
    if !LEFT_OUT.get() {
        loom::sync::atomic::fence(order);
    }
}

/// Runs a model of a reactor whose fences were forgotten.
pub fn leave_out_fences(model: impl FnOnce()) {
    LEFT_OUT.set(true);
    model();
}

/// A queue that orders no more than its entries, which a mutex of loom's does too.
pub struct SegQueue<T>(Mutex<VecDeque<T>>);

impl<T> SegQueue<T> {
    pub fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    pub fn push(&self, entry: T) {
        self.0.lock().unwrap().push_back(entry);
    }

    pub fn pop(&self) -> Option<T> {
        self.0.lock().unwrap().pop_front()
    }
}
