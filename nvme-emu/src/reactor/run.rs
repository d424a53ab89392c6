//! A reactor: one thread, run to completion.
//!
//! A round of its loop: messages, then the shards' doorbells → SQEs → requests, then the disks' kick and poll →
//! CQEs, then interrupts, and the front doors now and then. Which shards are looked at is [`Attention`]'s to say. A
//! round without work is the [`Poller`]'s to judge: look again, doze, or sleep.

use super::PollMode;
use super::alarm::Alarm;
use super::attention::{Attention, BYTES_PER_UNIT};
use super::disk_queues::DiskQueues;
use super::doors::Doors;
use super::handle::{ReactorHandle, Sleeper};
use super::message::Message;
use super::poller::{Idle, Poller};
use super::probes;
use super::shard::Shard;
use block_core::Completion;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rounds between two accounts of time, for reactors that never sleep.
const ROUNDS_PER_ACCOUNT: u32 = 1 << 20;

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
    attention: Attention,
    disks: DiskQueues,
    doors: Doors,
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
        watch(&epoll, reactors[index].alarm().fd(), NOT_A_DOOR, Alarm::WATCHED)?;
        Ok(Self {
            index,
            reactors,
            mode,
            epoll,
            shards: Vec::new(),
            attention: Attention::default(),
            disks: DiskQueues::default(),
            doors: Doors::new(mode),
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
            if !self.may_sleep() {
                std::hint::spin_loop();
                continue;
            }
            match self.poller.idle(Instant::now) {
                Idle::Spin => std::hint::spin_loop(),
                Idle::Doze(nap) => self.rest(Some(nap)),
                Idle::Sleep => self.rest(None),
            }
        }
    }

    /// Looks at everything once. `None`: it was told to stop.
    #[inline]
    pub(crate) fn round(&mut self) -> Option<Round> {
        let mut work = 0;
        while let Some(message) = self.reactors[self.index].receive() {
            work += 1;
            self.counters.messages.add(1);
            if !self.handle(message) {
                return None;
            }
        }
        let commands = self.poll_shards();
        work += commands + self.poll_disks_and_doors(commands);
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
        // The others have nothing outstanding.
        for &shard in self.attention.all_warm() {
            self.shards[shard].account(awake, asleep);
        }
    }

    #[inline]
    fn poll_shards(&mut self) -> usize {
        if self.shards.len() == 1 {
            // It has nobody to share attention with.
            return self.look(0);
        }
        let (mut commands, mut work, mut position) = (0, 0, 0);
        while let Some(index) = self.attention.at(position) {
            let before = self.shards[index].bytes_moved();
            let fetched = self.look(index);
            let shard = &self.shards[index];
            commands += fetched;
            work += fetched as u64 + (shard.bytes_moved() - before) / BYTES_PER_UNIT;
            position = self.attention.looked(position, fetched > 0 || shard.is_busy());
        }
        for _ in 0..self.attention.turns(work) {
            commands += self.look_at_a_cold_one();
        }
        commands
    }

    /// Looks at a shard, and ends its batch at once while its lines are at hand: what its disks have not done yet ends
    /// another.
    #[inline]
    fn look(&mut self, index: usize) -> usize {
        let shard = &mut self.shards[index];
        let commands = shard.poll((index as u64) << 32, &mut self.disks);
        shard.finish_batch();
        commands
    }

    fn look_at_a_cold_one(&mut self) -> usize {
        let Some(index) = self.attention.next_cold() else { return 0 };
        let commands = self.look(index);
        if commands > 0 || self.shards[index].is_busy() {
            self.attention.warm(index);
        }
        commands
    }

    #[inline]
    fn poll_disks_and_doors(&mut self, commands: usize) -> usize {
        self.disks.kick_and_poll(&mut self.completions);
        let ended = self.completions.len();
        if ended > 0 {
            for completion in self.completions.drain(..) {
                // The upper half of a token is its shard, as set above.
                self.shards[(completion.token >> 32) as usize]
                    .complete(completion.token as u32, completion.result);
            }
            // Those that wait for a disk are warm.
            for &shard in self.attention.all_warm() {
                self.shards[shard].finish_batch();
            }
        }
        ended + self.doors.look(&self.epoll, commands)
    }

    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::AddController(shared, vectors) => {
                self.shards.push(Shard::new(self.index, shared, vectors));
                self.attention.add();
            }
            Message::AddFrontDoor(front) => {
                if let Err(error) = watch(&self.epoll, front.wait_fd(), self.doors.next_number(), READABLE) {
                    tracing::error!("cannot watch a socket: {error}");
                }
                self.doors.add(front);
            }
            Message::ToShard(index, request, ticket) => {
                let epoll = &self.epoll;
                let mut new_fd = |fd: RawFd| {
                    // SAFETY: the disk queue that the descriptor belongs to was opened just now and is not dropped
                    // before the reactor's epoll descriptor is.
                    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                    if let Err(error) = watch(epoll, fd, NOT_A_DOOR, READABLE) {
                        tracing::error!("cannot watch a disk: {error}");
                    }
                };
                self.attention.warm(index);
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

    /// Dozes for a moment with the doorbells left as they are, or sleeps until something happens.
    #[cold]
    fn rest(&mut self, nap: Option<Duration>) {
        let reactors = Arc::clone(&self.reactors);
        let mut rest = Rest { nap, slept: Duration::ZERO, reactor: self };
        reactors[rest.reactor.index].sleep(&mut rest);
        let slept = rest.slept;
        self.account(slept);
    }
}

/// A reactor that is about to rest.
struct Rest<'a> {
    reactor: &'a mut Reactor,
    /// For how long; nothing: until something happens, for which doorbells are armed.
    nap: Option<Duration>,
    slept: Duration,
}

impl Sleeper for Rest<'_> {
    fn arm(&mut self) {
        if self.nap.is_none() {
            self.reactor.shards.iter().for_each(Shard::arm);
        }
    }

    fn has_work(&mut self) -> bool {
        self.reactor.shards.iter().any(Shard::has_work) || !self.reactor.disks.may_sleep()
    }

    fn wait(&mut self) {
        let reactor = &mut *self.reactor;
        let now = Instant::now();
        let timeout = self.nap.or_else(|| {
            // Only a shard that is busy has one.
            let warm = reactor.attention.all_warm().iter();
            let deadline = warm.filter_map(|&shard| reactor.shards[shard].deadline()).min();
            deadline.map(|at| at.saturating_duration_since(now))
        });
        let limit = timeout
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        probes::sleep(reactor.index, timeout);
        reactor.doors.wait(&reactor.epoll, limit.as_ref());
        probes::wake(reactor.index);
        self.slept = now.elapsed();
        reactor.counters.sleeps.add(1);
    }

    fn disarm(&mut self) {
        if self.nap.is_none() {
            self.reactor.shards.iter().for_each(Shard::disarm);
        }
    }
}

/// What epoll says of descriptors that are not a front door's.
const NOT_A_DOOR: u64 = u64::MAX;
/// How all descriptors but the alarm's are watched: for as long as there is something to read.
const READABLE: epoll::EventFlags = epoll::EventFlags::IN;

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, number: u64, flags: epoll::EventFlags) -> io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(number), flags)?;
    Ok(())
}
