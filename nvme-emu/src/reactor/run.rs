//! A reactor: one thread, run to completion.
//!
//! A round of its loop: messages, then every shard's doorbells → SQEs → requests, then the disks' kick and poll →
//! CQEs, then interrupts, and the front doors now and then. A round without work is the poller's to judge: look
//! again, or sleep.

use super::PollMode;
use super::disk_queues::DiskQueues;
use super::front_door::FrontDoor;
use super::handle::ReactorHandle;
use super::message::Message;
use super::poller::{Idle, Poller};
use super::shard::Shard;
use block_core::Completion;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Front doors are looked at once in this many rounds while nothing comes through them.
const MAX_DOOR_INTERVAL: u32 = 64;

/// Rounds between two accounts of time, for reactors that never sleep.
const ROUNDS_PER_ACCOUNT: u32 = 1 << 20;

struct Door {
    front: Box<dyn FrontDoor>,
    /// Rounds between two looks, and until the next.
    interval: u32,
    left: u32,
}

/// What a round has found to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Commands fetched.
    pub(crate) commands: usize,
    /// Those, and everything else that there was.
    work: usize,
}

pub(crate) struct Reactor {
    index: usize,
    reactors: Arc<[ReactorHandle]>,
    mode: PollMode,
    epoll: OwnedFd,
    shards: Vec<Shard>,
    disks: DiskQueues,
    doors: Vec<Door>,
    completions: Vec<Completion>,
    poller: Poller,
    counters: Arc<super::ReactorStatistics>,
    /// When time was last accounted for.
    accounted: Instant,
    rounds: u32,
}

impl Reactor {
    pub(crate) fn new(
        index: usize,
        reactors: Arc<[ReactorHandle]>,
        mode: PollMode,
        counters: Arc<super::ReactorStatistics>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, reactors[index].alarm())?;
        Ok(Self {
            index,
            reactors,
            mode,
            epoll,
            shards: Vec::new(),
            disks: DiskQueues::default(),
            doors: Vec::new(),
            completions: Vec::with_capacity(1024),
            poller: Poller::new(),
            counters,
            accounted: Instant::now(),
            rounds: 0,
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        while let Some(round) = self.round() {
            if round.work > 0 {
                self.poller.worked(round.commands, Instant::now);
                continue;
            }
            match self.poller.idle(Instant::now) {
                Idle::Doze(nap) if self.may_sleep() => self.doze(nap),
                Idle::Sleep if self.may_sleep() => self.sleep(),
                _ => std::hint::spin_loop(),
            }
        }
    }

    /// Looks at everything once. `None`: it was told to stop.
    #[inline]
    pub(crate) fn round(&mut self) -> Option<Round> {
        let mut work = 0;
        while let Some(message) = self.reactors[self.index].receive() {
            work += 1;
            if !self.handle(message) {
                return None;
            }
        }
        let commands = self.poll_shards();
        work += commands + self.poll_disks_and_doors();
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(ROUNDS_PER_ACCOUNT) {
            self.account(Duration::ZERO);
        }
        Some(Round { commands, work })
    }

    /// Accounts for the time since the last account, the end of which was slept through.
    fn account(&mut self, asleep: Duration) {
        let now = Instant::now();
        let awake = now.saturating_duration_since(self.accounted).saturating_sub(asleep);
        self.accounted = now;
        self.shards.iter_mut().for_each(|shard| shard.account(awake, asleep));
    }

    #[inline]
    fn poll_shards(&mut self) -> usize {
        let mut commands = 0;
        for (i, shard) in self.shards.iter_mut().enumerate() {
            commands += shard.poll((i as u64) << 32, &mut self.disks);
        }
        commands
    }

    #[inline]
    fn poll_disks_and_doors(&mut self) -> usize {
        self.disks.kick_and_poll(&mut self.completions);
        let ended = self.completions.len();
        for completion in self.completions.drain(..) {
            // The upper half of a token is its shard, as set above.
            self.shards[(completion.token >> 32) as usize]
                .complete(completion.token as u32, completion.result);
        }
        for shard in &mut self.shards {
            shard.finish_batch();
            shard.check_waiting();
        }
        ended + self.look_at_doors()
    }

    #[inline]
    fn look_at_doors(&mut self) -> usize {
        let mut work = 0;
        for door in &mut self.doors {
            door.left -= 1;
            if door.left > 0 {
                continue;
            }
            if door.front.poll() {
                door.interval = 1;
                work += 1;
            } else {
                door.interval = (door.interval * 2).min(MAX_DOOR_INTERVAL);
            }
            door.left = door.interval;
        }
        work
    }

    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::AddController(shared, vectors) => {
                self.shards.push(Shard::new(self.index, shared, vectors));
            }
            Message::AddFrontDoor(front) => {
                if let Err(error) = watch(&self.epoll, front.wait_fd()) {
                    tracing::error!("cannot watch a socket: {error}");
                }
                self.doors.push(Door { front, interval: 1, left: 1 });
            }
            Message::ToShard(index, request, ticket) => {
                let epoll = &self.epoll;
                let mut new_fd = |fd: RawFd| {
                    // SAFETY: the disk queue that the descriptor belongs to was opened just now and is not dropped
                    // before the reactor's epoll descriptor is.
                    if let Err(error) = watch(epoll, unsafe { BorrowedFd::borrow_raw(fd) }) {
                        tracing::error!("cannot watch a disk: {error}");
                    }
                };
                self.shards[index].handle(request, ticket, &mut self.disks, &mut new_fd);
            }
            Message::Stop => return false,
        }
        true
    }

    /// With mapped doorbells nobody would wake it, so it keeps looking while a controller is enabled.
    fn may_sleep(&self) -> bool {
        self.mode == PollMode::Adaptive || !self.shards.iter().any(|shard| shard.is_active())
    }

    /// Sleeps for a moment, with the doorbells left as they are.
    #[cold]
    fn doze(&mut self, nap: Duration) {
        self.reactors[self.index].fall_asleep();
        self.wait(Some(nap));
        for door in &mut self.doors {
            door.left = 1;
        }
    }

    /// Sleeps until something happens. The order is what matters: announce sleep and arm the doorbells, fence, look
    /// at everything once more, sleep.
    #[cold]
    fn sleep(&mut self) {
        self.shards.iter().for_each(Shard::arm);
        self.reactors[self.index].fall_asleep();
        let deadline = self.shards.iter().filter_map(Shard::deadline).min();
        self.wait(deadline.map(|at| at.saturating_duration_since(Instant::now())));
        self.shards.iter().for_each(Shard::disarm);
        for door in &mut self.doors {
            (door.interval, door.left) = (1, 1);
        }
        // However long it was, the gap is over: what comes next is looked for with fresh patience.
        self.poller.worked(0, Instant::now);
    }

    /// Waits on everything that can be waited on, unless there is work already. Sleep has been announced.
    fn wait(&mut self, timeout: Option<Duration>) {
        let handle = &self.reactors[self.index];
        let mut slept = Duration::ZERO;
        let has_work = handle.has_mail() || self.shards.iter().any(Shard::has_work);
        if !has_work && self.disks.may_sleep() {
            let timeout = timeout
                .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
            let begin = Instant::now();
            // Interrupted or not, everything is looked at next.
            let _ = epoll::wait(&self.epoll, &mut [none; 16], timeout.as_ref());
            slept = begin.elapsed();
            self.counters.sleeps.add(1);
        }
        handle.awake();
        handle.silence();
        self.account(slept);
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    Ok(())
}
