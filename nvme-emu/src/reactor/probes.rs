//! Static probes (USDT) on the way of a command, of the provider `ringpair`; docs/probes.md is for those who listen.
//!
//! A command is known by its controller, its submission queue's identifier and its own. Probes that each command passes
//! have a semaphore, one for all of them, which a shard looks at once a round ([`are_listened_to`]); what they are to
//! tell is put together in functions of their own, which nobody enters while nobody listens. A plain probe is a `nop`, but
//! one whose arguments have to be in registers by then: the four of a command took 40 instructions of 470. Those that
//! come with a system call are plain.

use block_core::RequestResult;
use nvme_spec::{Status, SubmissionQueueEntry};
use probe::{probe, sdt};
use std::time::Duration;

/// How many listen to the probes of commands. Counted by the kernel, which learns of it from the probes' notes.
#[unsafe(link_section = ".probes")]
static mut LISTENERS: u16 = 0;

/// Whether somebody listens to the probes of commands.
#[inline]
pub(super) fn are_listened_to() -> bool {
    // SAFETY: it is written by nobody but the kernel, as if by another thread; a volatile read takes it as it is.
    unsafe { (&raw const LISTENERS).read_volatile() != 0 }
}

/// A look at a submission queue has found commands: where its doorbell stood, and how many wait.
#[cold]
#[inline(never)]
pub(super) fn doorbell(controller: u16, sqid: u16, tail: u32, waiting: u32) {
    sdt!([sym "{}" LISTENERS], ringpair, doorbell, controller, sqid, tail, waiting,);
}

/// A command was fetched.
#[cold]
#[inline(never)]
pub(super) fn sqe(controller: u16, sqid: u16, sqe: &SubmissionQueueEntry) {
    sdt!([sym "{}" LISTENERS], ringpair, sqe, controller, sqid, sqe.cid, sqe.opcode, sqe.nsid,);
}

/// A request of a command goes to its disk: where it begins there, and its length, in bytes.
#[cold]
#[inline(never)]
pub(super) fn submit(controller: u16, sqid: u16, cid: u16, offset: u64, len: u64) {
    sdt!([sym "{}" LISTENERS], ringpair, submit, controller, sqid, cid, offset, len,);
}

/// A request of a command has ended: well (0), or with an errno.
#[cold]
#[inline(never)]
pub(super) fn complete(controller: u16, sqid: u16, cid: u16, result: &RequestResult) {
    let errno = result.as_ref().map_or_else(|error| error.errno, |()| 0);
    sdt!([sym "{}" LISTENERS], ringpair, complete, controller, sqid, cid, errno,);
}

/// A command's completion is posted: with this Status Field, less the Phase Tag.
#[cold]
#[inline(never)]
pub(super) fn cqe(controller: u16, sqid: u16, cid: u16, status: Status) {
    sdt!([sym "{}" LISTENERS], ringpair, cqe, controller, sqid, cid, status.into_bits(),);
}

/// A vector's interrupt is sent.
#[inline]
pub(super) fn interrupt(controller: u16, vector: u16) {
    probe!(ringpair, interrupt, controller, vector);
}

/// A reactor goes to sleep: for at most so many microseconds, or -1, until something happens.
#[inline]
pub(super) fn sleep(reactor: usize, limit: Option<Duration>) {
    probe!(ringpair, sleep, reactor, limit.map_or(-1, |limit| limit.as_micros() as i64));
}

/// It is awake again.
#[inline]
pub(super) fn wake(reactor: usize) {
    probe!(ringpair, wake, reactor);
}
