//! Where the answer to a [`Call`](crate::pci::Call) arrives: at most one is awaited at a time.

use crate::pci::Answer;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The answer has not come.
const NONE: i32 = -1;

/// What waits for an answer.
pub struct Answers(Arc<Slot>);

struct Slot {
    /// [`NONE`], 0, or an errno.
    result: AtomicI32,
    /// Readable when an answer has come.
    arrived: OwnedFd,
}

impl Answers {
    pub fn new() -> io::Result<Self> {
        let arrived = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Slot { result: AtomicI32::new(NONE), arrived })))
    }

    /// What to answer with. Dropped without being called, it answers `EIO`: a call is never waited for in vain.
    pub fn expect(&self) -> Answer {
        let sender = Sender(Some(Arc::clone(&self.0)));
        Box::new(move |result| sender.send(result))
    }

    /// The answer, if it has come.
    pub fn take(&self) -> Option<Result<(), i32>> {
        let result = self.0.result.swap(NONE, Ordering::Acquire);
        if result == NONE {
            return None;
        }
        self.clear();
        Some(if result == 0 { Ok(()) } else { Err(result) })
    }

    /// Makes the descriptor unreadable. The write that belongs to an answer may come after the answer was taken;
    /// then there is nothing to take when it wakes somebody up.
    pub fn clear(&self) {
        // Nothing to read means that it is clear already.
        let _ = io::read(&self.0.arrived, &mut [0; 8]);
    }
}

impl AsFd for Answers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.arrived.as_fd()
    }
}

struct Sender(Option<Arc<Slot>>);

impl Sender {
    fn send(mut self, result: Result<(), i32>) {
        self.put(result.err().map_or(0, |errno| errno.max(1)));
    }

    fn put(&mut self, result: i32) {
        if let Some(slot) = self.0.take() {
            slot.result.store(result, Ordering::Release);
            // It can only fail if the counter is full, and then the descriptor is readable as it should be.
            let _ = io::write(&slot.arrived, &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.put(libc::EIO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_arrives_once_from_any_thread() {
        let answers = Answers::new().unwrap();
        assert_eq!(answers.take(), None);
        let answer = answers.expect();
        std::thread::spawn(move || answer(Err(libc::EEXIST))).join().unwrap();
        assert_eq!(answers.take(), Some(Err(libc::EEXIST)));
        assert_eq!(answers.take(), None);
        answers.expect()(Ok(()));
        assert_eq!(answers.take(), Some(Ok(())));
    }

    #[test]
    fn an_answer_that_nobody_gives_is_an_error() {
        let answers = Answers::new().unwrap();
        drop(answers.expect());
        assert_eq!(answers.take(), Some(Err(libc::EIO)));
    }
}
