//! How other threads reach a reactor.

use super::message::Message;
use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A reactor's mailbox and alarm clock.
pub(crate) struct ReactorHandle {
    mailbox: SegQueue<Message>,
    has_mail: AtomicBool,
    asleep: AtomicBool,
    alarm: OwnedFd,
}

impl ReactorHandle {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            mailbox: SegQueue::new(),
            has_mail: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            alarm: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: Message) {
        self.mailbox.push(message);
        self.has_mail.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the reactor if it sleeps, after something that it looks at has changed. Together with
    /// [`ReactorHandle::fall_asleep`] no change is missed: either the fence here comes first, and the reactor's last
    /// look sees the change, or the reactor's does, and its sleep is seen here.
    #[inline]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            let _ = write(&self.alarm, &1u64.to_ne_bytes());
        }
    }

    /// The next message. The reactor's own.
    #[inline]
    pub(crate) fn receive(&self) -> Option<Message> {
        if !self.has_mail.load(Ordering::Acquire) {
            return None;
        }
        let message = self.mailbox.pop();
        if message.is_none() {
            self.has_mail.store(false, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            // One that came in between found the flag set, and nobody would look again.
            return self.mailbox.pop();
        }
        message
    }

    /// Announces sleep. The reactor looks at everything once more afterwards, and only then sleeps.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The reactor is awake (again).
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    pub(crate) fn has_mail(&self) -> bool {
        !self.mailbox.is_empty()
    }

    /// What a wake-up makes readable.
    pub(crate) fn alarm(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// Takes note of wake-ups.
    pub(crate) fn silence(&self) {
        let _ = read(&self.alarm, &mut [0; 8]);
    }
}
