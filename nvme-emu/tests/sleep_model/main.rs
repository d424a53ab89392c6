//! No wake-up is lost: the reactor's way to fall asleep, model-checked.
//!
//! `handle.rs` and `doorbell.rs` are compiled here as they are, with [loom]'s atomics and fences behind `crate::sync`.
//! Loom runs each test in all interleavings of its threads, and lets relaxed loads see every value that the C11 memory model
//! allows. A wake-up that is lost leaves the reactor waiting when all others have ended, which loom reports as a
//! deadlock. That it would is tested too, by leaving out what prevents it.
//!
//! What is modelled around those files: descriptors (one that stays readable, in [`alarm`]), the guest (Linux's
//! `nvme_dbbuf_update_and_check_event`), the mailbox's queue (a mutex). Not modelled: time. A doze that misses a
//! doorbell ends by itself.

#[path = "../../src/reactor/doorbell.rs"]
#[allow(dead_code, reason = "the whole file, of which the model uses a part")]
mod doorbell;
#[path = "../../src/reactor/handle.rs"]
#[allow(dead_code, reason = "as above")]
mod handle;

mod alarm;
mod doorbell_page;
mod guest;
mod message;
mod reactor;
mod sync;

use guest::{ring_shadow, ring_trapped};
use loom::thread;
use message::Message;
use reactor::{Model, Reactor};
use std::sync::Arc;

/// Runs a model in every way that it can go with so many switches between threads that nobody asked for.
fn check(switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(model);
}

/// A thread beside the reactor. It is not joined: loom waits for it anyway, and its joins do not go well with its parks.
fn spawn(model: &Arc<Model>, thread: impl FnOnce(&Model) + 'static) {
    let model = model.clone();
    thread::spawn(move || thread(&model));
}

/// A guest submits twice through shadow doorbells, ringing when EventIdx asks for it, and the message arrives at a socket
/// that the reactor waits on.
fn shadow_guest(reactor: Reactor) {
    check(4, move || {
        let model = Arc::new(Model::new(true));
        spawn(&model, |model| (1..=2).for_each(|tail| ring_shadow(model, tail)));
        reactor.run(&model, 2, 0);
    });
}

#[test]
fn a_reactor_sleeps_through_no_shadow_doorbell() {
    shadow_guest(Reactor::WHOLE);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_a_shadow_doorbell_is_slept_through() {
    sync::leave_out_fences(|| shadow_guest(Reactor::WHOLE));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_last_look_a_shadow_doorbell_is_slept_through() {
    shadow_guest(Reactor { last_look: false, ..Reactor::WHOLE });
}

#[test]
#[should_panic(expected = "deadlock")]
fn unarmed_a_shadow_doorbell_is_slept_through() {
    shadow_guest(Reactor { arms: false, ..Reactor::WHOLE });
}

/// Doorbell writes trapped by another reactor, at which the controller is at home: it writes the doorbell for this
/// one, and wakes it.
fn trapped_elsewhere() {
    check(4, || {
        let model = Arc::new(Model::new(false));
        spawn(&model, |model| (1..=2).for_each(|tail| ring_trapped(model, tail)));
        Reactor::WHOLE.run(&model, 2, 0);
    });
}

#[test]
fn a_reactor_sleeps_through_no_doorbell_that_another_one_trapped() {
    trapped_elsewhere();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_a_trapped_doorbell_is_slept_through() {
    sync::leave_out_fences(trapped_elsewhere);
}

/// With mapped doorbells nobody rings. `PollMode::Always` therefore never sleeps while there are queues, and this is
/// what would happen if it did.
#[test]
#[should_panic(expected = "deadlock")]
fn a_mapped_doorbell_must_not_be_slept_on() {
    check(4, || {
        let model = Arc::new(Model::new(false));
        spawn(&model, |model| model.page().store(1, sync::Ordering::Release));
        Reactor::WHOLE.run(&model, 1, 0);
    });
}

/// The control thread, and whoever adds controllers or doors, at the same time.
fn mail(senders: usize, each: usize) {
    check(3, move || {
        let model = Arc::new(Model::new(false));
        for _ in 0..senders {
            spawn(&model, move |model| (0..each).for_each(|_| model.handle.send(Message)));
        }
        Reactor::WHOLE.run(&model, 0, senders * each);
    });
}

#[test]
fn no_message_is_slept_through_nor_left_behind() {
    mail(1, 3);
    mail(2, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_a_message_is_slept_through() {
    sync::leave_out_fences(|| mail(1, 1));
}

/// A guest and the control thread at once.
#[test]
fn a_message_and_a_doorbell_at_once_are_both_seen() {
    check(2, || {
        let model = Arc::new(Model::new(true));
        spawn(&model, |model| ring_shadow(model, 1));
        spawn(&model, |model| model.handle.send(Message));
        Reactor::WHOLE.run(&model, 1, 1);
    });
}
