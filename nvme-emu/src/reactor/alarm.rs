//! What wakes a reactor that sleeps.

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::write;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An alarm clock that others set off: an eventfd that nobody reads.
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    /// How it is watched: each ring is reported to one wait, the next or the one under way (`epoll(7)`, `EPOLLET`).
    pub(crate) const WATCHED: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);

    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn ring(&self) {
        // It could only fail at the eventfd's limit, after 2^64 rings.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::Timespec;

    #[test]
    fn each_ring_ends_one_wait_though_it_is_never_silenced() {
        let alarm = Alarm::new().unwrap();
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&watch, alarm.fd(), epoll::EventData::new_u64(0), Alarm::WATCHED).unwrap();
        let mut events = Vec::with_capacity(4);
        let mut rung = || {
            events.clear();
            epoll::wait(&watch, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default()))
                .unwrap()
        };
        assert_eq!(rung(), 0);
        for _ in 0..3 {
            alarm.ring();
            assert_eq!((rung(), rung()), (1, 0));
        }
        alarm.ring();
        alarm.ring();
        assert_eq!((rung(), rung()), (1, 0), "two at once are one");
    }
}
