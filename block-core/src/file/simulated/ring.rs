//! The ring of a simulated file: entries take effect and complete in an order that a seed decides.

use super::calls::Descriptor;
use super::log::{Asked, OperationId};
use crate::contract::Random;
use crate::file::medium::Medium;
use crate::file::open_file::OpenFile;
use crate::file::ring::{Completed, Entry, REAP, Ring};
use crate::request::Segment;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// A ring.
pub struct SimulatedRing {
    file: Descriptor,
    random: Random,
    room: usize,
    /// In the ring, not handed over.
    pushed: VecDeque<Flying>,
    /// Handed over.
    flying: Vec<Flying>,
    completed: VecDeque<Completed>,
    /// Readable while something is flying that needs nobody else, or has completed.
    wake: OwnedFd,
    awake: bool,
    /// What to wait on: `wake`, and the events that entries read.
    epoll: OwnedFd,
}

/// An entry.
struct Flying {
    user_data: u64,
    what: What,
    segments: Vec<Segment>,
    offset: u64,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Read,
    Write { dsync: bool },
    Sync,
    Event { event: i32, count: *mut u64 },
}

#[derive(Clone, Copy)]
enum Progress {
    Pushed,
    Issued(OperationId),
    Applied(OperationId),
    /// Nothing of it is in the log.
    Unlogged,
}

/// Whether an event has been signalled.
fn signalled(event: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

impl SimulatedRing {
    /// Takes one random step with one of the entries that are flying. `false`: none of them can go on.
    fn step(&mut self) -> bool {
        let ready: Vec<usize> = (0..self.flying.len()).filter(|&i| self.flying[i].ready()).collect();
        if ready.is_empty() {
            return false;
        }
        let index = self.random.one_of(&ready);
        let entry = &mut self.flying[index];
        if let Progress::Issued(id) = entry.progress {
            // SAFETY: who pushed the entry keeps its segments until it has completed.
            unsafe { Descriptor::apply(&mut self.file.log(), id, &entry.segments) };
            entry.progress = Progress::Applied(id);
            return true;
        }
        let entry = self.flying.swap_remove(index);
        let result = match (entry.what, entry.progress) {
            (_, Progress::Applied(id)) => self.file.log().complete(id),
            // SAFETY: as above.
            (What::Read, _) => unsafe { self.file.read(&entry.segments, entry.offset) },
            (What::Event { event, count }, _) => {
                // SAFETY: who pushed the entry keeps event and count until it has completed.
                let event = unsafe { BorrowedFd::borrow_raw(event) };
                let _ = epoll::delete(&self.epoll, event);
                let mut bytes = [0; 8];
                let read = rustix::io::read(event, &mut bytes).map_err(|errno| errno.raw_os_error());
                // SAFETY: as above.
                unsafe { count.write(u64::from_ne_bytes(bytes)) };
                read
            }
            // Not in the log: it was refused at once.
            (What::Write { .. } | What::Sync, _) => Err(libc::EINVAL),
        };
        let result = result.map_or_else(|errno| -errno, |n| n as i32);
        self.completed.push_back(Completed { user_data: entry.user_data, result });
        true
    }

    fn hand_over(&mut self, mut entry: Flying) {
        entry.progress = match entry.what {
            What::Write { dsync } => self
                .file
                .issue_write(&entry.segments, entry.offset, dsync)
                .map_or(Progress::Unlogged, Progress::Issued),
            What::Sync => Progress::Issued(self.file.log().issue(Asked::Sync)),
            What::Read => Progress::Unlogged,
            What::Event { event, .. } => {
                // SAFETY: who pushed the entry keeps the event open.
                let event = unsafe { BorrowedFd::borrow_raw(event) };
                let _ = epoll::add(&self.epoll, event, epoll::EventData::new_u64(1), epoll::EventFlags::IN);
                Progress::Unlogged
            }
        };
        self.flying.push(entry);
    }

    fn set_wake(&mut self) {
        let awake = !self.completed.is_empty()
            || self.flying.iter().any(|entry| !matches!(entry.what, What::Event { .. }));
        if awake != self.awake {
            let _ = if awake {
                rustix::io::write(&self.wake, &1u64.to_ne_bytes())
            } else {
                rustix::io::read(&self.wake, &mut [0; 8])
            };
            self.awake = awake;
        }
    }
}

impl Flying {
    fn ready(&self) -> bool {
        match self.what {
            // SAFETY: who pushed the entry keeps the event open.
            What::Event { event, .. } => signalled(unsafe { BorrowedFd::borrow_raw(event) }),
            _ => true,
        }
    }
}

impl Ring for SimulatedRing {
    fn open(file: &OpenFile, entries: u32) -> io::Result<Self> {
        let Medium::Simulated(file) = &file.medium else { return Err(io::ErrorKind::Unsupported.into()) };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let seed = file.log().random().below(u64::MAX);
        Ok(Self {
            file: file.clone(),
            random: Random::new(seed),
            room: entries as usize,
            pushed: VecDeque::new(),
            flying: Vec::new(),
            completed: VecDeque::new(),
            wake,
            awake: false,
            epoll,
        })
    }

    unsafe fn push(&mut self, entry: Entry<'_>, user_data: u64) -> bool {
        if self.pushed.len() == self.room {
            return false;
        }
        let (what, segments, offset) = match entry {
            Entry::Read { segments, offset } => (What::Read, segments, offset),
            Entry::Write { segments, offset, dsync } => (What::Write { dsync }, segments, offset),
            Entry::Sync => (What::Sync, &[][..], 0),
            Entry::Event { event, count } => (What::Event { event: event.as_raw_fd(), count }, &[][..], 0),
        };
        let (segments, progress) = (segments.to_vec(), Progress::Pushed);
        self.pushed.push_back(Flying { user_data, what, segments, offset, progress });
        true
    }

    fn enter(&mut self, submit: u32, wait: u32) -> io::Result<u32> {
        // As a kernel does that has no memory for now.
        if self.random.chance(2) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let mut taken = 0;
        while taken < submit
            && let Some(entry) = self.pushed.pop_front()
        {
            self.hand_over(entry);
            taken += 1;
        }
        while self.completed.len() < wait as usize {
            if !self.step() {
                std::thread::yield_now();
            }
        }
        self.set_wake();
        Ok(taken)
    }

    fn reap(&mut self, into: &mut [MaybeUninit<Completed>; REAP]) -> usize {
        let mut steps = self.random.below(3 * self.flying.len() as u64 + 1);
        while (steps > 0 || self.completed.is_empty()) && self.step() {
            steps = steps.saturating_sub(1);
        }
        let mut n = 0;
        for (place, completed) in into.iter_mut().zip(std::iter::from_fn(|| self.completed.pop_front())) {
            place.write(completed);
            n += 1;
        }
        self.set_wake();
        n
    }

    fn has_deferred(&mut self) -> bool {
        false
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn release_file(&mut self) {}
}
