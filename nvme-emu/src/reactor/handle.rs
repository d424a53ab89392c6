//! How other threads reach a reactor, and how it falls asleep without missing them.
//!
//! Two things wake a reactor. *Descriptors* that it waits on (sockets, disks) stay readable, so a wait that begins late
//! ends at once; so does one that begins after the alarm has rung. *Memory* that others write (its mailbox, doorbells)
//! does not, so whoever writes has to know that the reactor sleeps, and the reactor that somebody has written. That is
//! Dekker's problem, and this its usual answer:
//!
//! | who writes | the reactor ([`ReactorHandle::sleep`]) |
//! |---|---|
//! | writes the mailbox or doorbell | announces sleep; arms the doorbells |
//! | *fence* | *fence* |
//! | looks whether sleep is announced, or EventIdx armed; if so, rings | looks at everything once more; if there is nothing, waits |
//!
//! Of the two fences one comes first. If it is the writer's, the reactor's last look sees what was written; if it is
//! the reactor's, the writer sees that it has to ring. `tests/sleep_model` checks this file and `doorbell.rs` in all
//! interleavings and with all reorderings that the memory model allows.

use super::alarm::Alarm;
use super::message::Message;
use crate::sync::{AtomicBool, Ordering, SegQueue, fence};

/// A reactor's mailbox and alarm clock.
pub(crate) struct ReactorHandle {
    mailbox: SegQueue<Message>,
    has_mail: AtomicBool,
    asleep: AtomicBool,
    alarm: Alarm,
}

/// What a reactor has to look at and to wait on besides its mailbox.
pub(crate) trait Sleeper {
    /// Asks everybody who can be asked to ring when something changes.
    fn arm(&mut self);
    /// Whether something has changed already.
    fn has_work(&mut self) -> bool;
    /// Waits until something happens, the alarm among other things.
    fn wait(&mut self);
    /// Takes back what [`Sleeper::arm`] asked for.
    fn disarm(&mut self);
}

impl ReactorHandle {
    pub(crate) fn new(alarm: Alarm) -> Self {
        Self {
            mailbox: SegQueue::new(),
            has_mail: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            alarm,
        }
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: Message) {
        self.mailbox.push(message);
        self.has_mail.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the reactor if it sleeps, after something that it looks at has changed.
    #[inline]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.alarm.ring();
        }
    }

    /// The next message. The reactor's own.
    #[inline]
    pub(crate) fn receive(&self) -> Option<Message> {
        if !self.has_mail.load(Ordering::Relaxed) {
            return None;
        }
        let message = self.mailbox.pop();
        if message.is_some() {
            return message;
        }
        // Read, not just written: whose flag this takes back, that one's message is seen below.
        self.has_mail.swap(false, Ordering::AcqRel);
        let message = self.mailbox.pop();
        if message.is_some() {
            // There may be more of them.
            self.has_mail.store(true, Ordering::Relaxed);
        }
        message
    }

    /// Sleeps, unless there is work already. The reactor's own.
    pub(crate) fn sleep(&self, sleeper: &mut impl Sleeper) {
        sleeper.arm();
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.has_mail.load(Ordering::Relaxed) && !sleeper.has_work() {
            sleeper.wait();
        }
        self.asleep.store(false, Ordering::Relaxed);
        sleeper.disarm();
    }

    /// What a wake-up makes ring.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }
}
