//! Atomics, fences and the queue that threads reach a reactor by, under names of our own: `tests/sleep_model` compiles
//! the same files with a model checker's behind these names.

pub(crate) use crossbeam::queue::SegQueue;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
