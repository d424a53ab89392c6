//! The queue half of the contract.

use crate::request::{Completion, Operation, Request, RequestResult};
use std::os::fd::BorrowedFd;

/// What became of a submitted request.
#[must_use = "a request that was not taken has to be submitted again, one that is done has no completion"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// It has ended already, and no [`Completion`] will follow.
    Done(RequestResult),
    /// A [`Completion`] with its token will follow.
    Pending,
    /// The queue has no room and has not taken it: poll, then submit it again.
    Full,
}

/// A queue on a disk, owned by one thread. Nothing in it locks or allocates per request.
///
/// # The contract
///
/// * Any offset and length is safe to pass, with any arithmetic overflow in it. A range that is not inside the
///   disk ends with `EINVAL` and touches nothing; a length of 0 succeeds. Alignment is never required (see
///   [`crate::DiskInfo::request_alignment`] for what is fast).
/// * A write is all there, or its completion is an error.
/// * Requests in flight at the same time may take effect in any order; where they overlap, each byte range of
///   `request_alignment` holds one of them whole.
/// * A flush covers exactly the writes that had completed before it was submitted.
/// * A write or write-zeroes with FUA is durable at its completion, as far as the cache mode lets it
///   (`cache=unsafe` does not).
/// * Every request that was `Pending` completes exactly once. Dropping the queue waits for those that are left.
/// * A request may have to wait until one on another queue of the same disk has been polled (two writes to parts of one
///   block). A thread with several queues on one disk therefore polls all of them while it waits for any, and before
///   it drops one sees the others through to their last completion.
pub trait Queue {
    /// Takes a request. It is started by the next [`Queue::kick`] at the latest.
    ///
    /// # Safety
    ///
    /// Each segment must point to memory that is valid for reads and writes, of its length, until the request
    /// has completed or the queue has been dropped. The memory may be written by others at any time (a guest):
    /// implementations must neither make references to it nor trust what they read twice.
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission;

    /// Says that a request of this operation and range will be among the next ones, so that what it touches can be on
    /// its way while others are worked on, or while it is looked into itself. No more than a hint: any range is safe to
    /// pass, and nothing has to come of it. Whoever asks [`Queue::takes_hints`] once can leave it be.
    fn hint(&self, operation: Operation, offset: u64, len: u64) {
        let _ = (operation, offset, len);
    }

    /// Whether [`Queue::hint`] does anything.
    fn takes_hints(&self) -> bool {
        false
    }

    /// Ends a batch: everything submitted so far that is not under way yet gets so, with one system call for all of it
    /// where one is needed.
    fn kick(&mut self);

    /// Appends what has completed to `completions` and says how many that were. Never blocks, and makes no system
    /// call unless there is something that only one can collect.
    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize;

    /// A descriptor that becomes readable when [`Queue::poll`] would find something, to sleep on once
    /// [`Queue::may_sleep`] agrees; it stays the same one. `None`: this queue never has a request pending, or does
    /// not let its thread sleep while it has.
    ///
    /// Only the queue's own thread is sure to be woken, and its sleep may end early: with `EINTR`, or for nothing.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Asks, when [`Queue::poll`] has found nothing, whether the thread may sleep on [`Queue::wait_fd`], and makes that
    /// unreadable first if it is so for something that has been polled already. `false`: there may be something to
    /// poll. It may make a system call.
    ///
    /// Who sleeps without asking is woken all the same, but perhaps again and again for what is long over.
    fn may_sleep(&mut self) -> bool {
        true
    }
}
