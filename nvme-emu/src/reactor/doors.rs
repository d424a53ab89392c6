//! A reactor's front doors, and when it looks at each.
//!
//! A door through which something came is looked at again in the [`PATIENCE`]-th round after that, which is half a
//! microsecond: messages come in a hurry or not at all, and each look that finds nothing is two system calls. (Not in the
//! next round: where a message announced a lone command, the reactor sleeps before the eighth, and the look would have kept
//! whoever is to hear of the completion from this CPU.) From the [`Doors::longest`]-th round on, epoll watches it: one system
//! call in so many rounds for all doors that are quiet, however many they are. A wait on epoll, when the reactor sleeps,
//! watches them as well. Rounds are counted by their length: one that found nothing as one, and one more for
//! [`WORK_PER_ROUND`] commands.

use super::PollMode;
use super::front_door::FrontDoor;
use rustix::event::{Timespec, epoll};
use std::os::fd::OwnedFd;

/// Commands that take about as long as a round that finds none, with a margin for what else they take.
const WORK_PER_ROUND: u32 = 4;

/// Rounds from a look at a door that found something to the next, and what they grow by with each that finds nothing.
const PATIENCE: u32 = 8;

struct Door {
    front: Box<dyn FrontDoor>,
    /// Rounds between two looks, and until the next; at the longest it is quiet.
    interval: u32,
    left: u32,
}

/// Doors, by number from 0.
pub(super) struct Doors {
    /// Rounds between two looks at the doors that are quiet.
    longest: u32,
    doors: Vec<Door>,
    /// Those that are not quiet.
    used: Vec<usize>,
    /// Rounds until epoll is asked for the quiet ones.
    left: u32,
}

impl Doors {
    /// For a reactor that looks for work like this.
    ///
    /// With `adaptive`, a doorbell may come through a door, and a reactor that finds nothing is asleep soon anyway: 64
    /// rounds, about 3 µs. With `always`, doorbells are memory, and a round of a reactor that never sleeps should be
    /// spent on looking at that: 1024 rounds, about 50 µs.
    pub(super) fn new(mode: PollMode) -> Self {
        let longest = match mode {
            PollMode::Adaptive => 64,
            PollMode::Always => 1024,
        };
        Self { longest, doors: Vec::new(), used: Vec::new(), left: 0 }
    }

    /// What epoll is to say of the door that is added next.
    pub(super) fn next_number(&self) -> u64 {
        self.doors.len() as u64
    }

    pub(super) fn add(&mut self, front: Box<dyn FrontDoor>) {
        self.doors.push(Door { front, interval: self.longest, left: 0 });
        self.rouse(self.doors.len() - 1);
    }

    /// Looks at those whose turn it is after a round with so many commands. Says at how many there was something to do.
    #[inline]
    pub(super) fn look(&mut self, epoll: &OwnedFd, commands: usize) -> usize {
        if self.doors.is_empty() {
            return 0;
        }
        let rounds = 1 + commands as u32 / WORK_PER_ROUND;
        let (mut work, mut position) = (0, 0);
        while let Some(&number) = self.used.get(position) {
            let door = &mut self.doors[number];
            door.left = door.left.saturating_sub(rounds);
            if door.left == 0 {
                let busy = door.front.poll();
                work += usize::from(busy);
                door.interval = if busy { PATIENCE } else { door.interval * PATIENCE };
                door.left = door.interval;
                if door.interval >= self.longest {
                    self.used.swap_remove(position);
                    continue;
                }
            }
            position += 1;
        }
        self.left = self.left.saturating_sub(rounds);
        if self.left == 0 && self.used.len() < self.doors.len() {
            self.left = self.longest;
            work += self.wait(epoll, Some(&Timespec::default()));
        }
        work
    }

    /// Waits until something happens, and rouses the doors at which it did. Says how many of them were quiet.
    pub(super) fn wait(&mut self, epoll: &OwnedFd, timeout: Option<&Timespec>) -> usize {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; 16];
        // Interrupted or not, everything is looked at next. What had no place is reported again.
        let count = epoll::wait(epoll, &mut events, timeout).unwrap_or(0);
        events[..count].iter().filter(|event| self.rouse(event.data.u64() as usize)).count()
    }

    /// The door is looked at in the next round. Says whether there is such a door and it was quiet.
    fn rouse(&mut self, number: usize) -> bool {
        let Some(door) = self.doors.get_mut(number) else { return false };
        let quiet = door.interval >= self.longest;
        (door.interval, door.left) = (1, 1);
        if quiet {
            self.used.push(number);
        }
        quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{read, write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Something to do whenever its eventfd has been written.
    struct Bell {
        fd: Arc<OwnedFd>,
        polls: Arc<AtomicUsize>,
    }

    impl FrontDoor for Bell {
        fn wait_fd(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }

        fn poll(&mut self) -> bool {
            self.polls.fetch_add(1, Ordering::Relaxed);
            read(&*self.fd, &mut [0; 8]).is_ok()
        }
    }

    /// With [`PollMode::Adaptive`].
    const MAX_INTERVAL: u32 = 64;

    struct House {
        doors: Doors,
        epoll: OwnedFd,
        bells: Vec<Arc<OwnedFd>>,
        polls: Arc<AtomicUsize>,
    }

    impl House {
        fn with(doors: usize) -> Self {
            Self::polled(doors, PollMode::Adaptive)
        }

        fn polled(doors: usize, mode: PollMode) -> Self {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let mut this = Self { doors: Doors::new(mode), epoll, bells: Vec::new(), polls: Arc::default() };
            for _ in 0..doors {
                let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
                let number = epoll::EventData::new_u64(this.doors.next_number());
                epoll::add(&this.epoll, &*fd, number, epoll::EventFlags::IN).unwrap();
                this.doors.add(Box::new(Bell { fd: fd.clone(), polls: this.polls.clone() }));
                this.bells.push(fd);
            }
            this
        }

        fn rounds(&mut self, rounds: u32) -> usize {
            (0..rounds).map(|_| self.doors.look(&self.epoll, 0)).sum()
        }

        /// Looks at doors in so many rounds.
        fn polls(&mut self, rounds: u32) -> usize {
            let before = self.polls.load(Ordering::Relaxed);
            self.rounds(rounds);
            self.polls.load(Ordering::Relaxed) - before
        }

        fn ring(&self, door: usize) {
            write(&*self.bells[door], &1u64.to_ne_bytes()).unwrap();
        }
    }

    #[test]
    fn quiet_doors_are_not_looked_at_one_by_one() {
        let mut house = House::with(100);
        house.rounds(MAX_INTERVAL * 2);
        assert_eq!(house.polls(10_000), 0);
    }

    #[test]
    fn what_comes_through_a_quiet_door_is_found_within_the_longest_interval() {
        let mut house = House::with(100);
        house.rounds(MAX_INTERVAL * 2);
        for door in [0, 41, 99] {
            house.ring(door);
            assert!(house.rounds(MAX_INTERVAL + 1) > 0);
            assert!(read(&*house.bells[door], &mut [0; 8]).is_err(), "door {door} was looked at");
        }
    }

    #[test]
    fn a_reactor_that_never_sleeps_looks_at_quiet_doors_less_often() {
        let mut house = House::polled(1, PollMode::Always);
        house.rounds(2048);
        house.ring(0);
        assert_eq!(house.rounds(512), 0);
        assert!(house.rounds(513) > 0);
    }

    #[test]
    fn what_comes_after_a_pause_is_found_within_a_few_times_that() {
        for pause in [1, 3, 20, 100, 400, 900] {
            let mut house = House::polled(1, PollMode::Always);
            house.ring(0);
            while house.rounds(1) == 0 {}
            house.rounds(pause);
            house.ring(0);
            assert!(house.rounds(PATIENCE * pause + 1) > 0, "after {pause}");
        }
    }

    #[test]
    fn rounds_with_work_are_longer() {
        let mut house = House::polled(1, PollMode::Always);
        house.rounds(2048);
        house.ring(0);
        let rounds = 1024 / (1 + 128 / WORK_PER_ROUND) + 1;
        let found: usize = (0..rounds).map(|_| house.doors.look(&house.epoll, 128)).sum();
        assert!(found > 0);
    }

    #[test]
    fn more_doors_than_one_call_reports_are_all_found() {
        let mut house = House::with(100);
        house.rounds(MAX_INTERVAL * 2);
        (0..100).for_each(|door| house.ring(door));
        house.rounds((MAX_INTERVAL + 1) * 100 / 16 + MAX_INTERVAL);
        assert!(house.bells.iter().all(|bell| read(&**bell, &mut [0; 8]).is_err()));
    }

    #[test]
    fn a_door_in_use_is_looked_at_in_every_eighth_round() {
        let mut house = House::with(2);
        house.rounds(MAX_INTERVAL * 2);
        house.ring(0);
        while house.polls(1) == 0 {}
        for _ in 0..100 {
            house.ring(0);
            assert_eq!((house.polls(PATIENCE - 1), house.rounds(1)), (0, 1));
        }
    }

    #[test]
    fn a_wait_rouses_the_door_that_ended_it() {
        let mut house = House::with(3);
        house.rounds(MAX_INTERVAL * 2);
        house.ring(2);
        house.doors.wait(&house.epoll, None);
        assert_eq!(house.polls(1), 1);
    }
}
