//! Those on the other side of a doorbell.

use crate::reactor::Model;
use loom::sync::atomic::{Ordering, fence};

/// Moves a shadow doorbell as Linux does (`nvme_dbbuf_update_and_check_event`), and writes the register if EventIdx asks
/// for it; the message about that arrives at the reactor's socket.
pub fn ring_shadow(model: &Model, tail: u32) {
    let old = model.shadow.load(Ordering::Relaxed);
    model.shadow.store(tail, Ordering::Release);
    fence(Ordering::SeqCst);
    let event = model.event_index.load(Ordering::Relaxed) as u16;
    let (old, new) = (old as u16, tail as u16);
    if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
        model.handle.alarm().arrive();
    }
}

/// Writes the doorbell of a queue of another reactor, and wakes that (`Shared::ring`).
pub fn ring_trapped(model: &Model, tail: u32) {
    model.page().store(tail, Ordering::Release);
    model.handle.wake();
}
