//! A guest-like workload.

use super::history::{History, Kind, Moment, Record, SECTOR, stamp};
use crate::contract::{Memory, Random};
use crate::{
    Completion, Disk, DiskInfo, Operation, Queue, Request, RequestFlags, RequestResult, Segment, Submission,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer than any request can take.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Largest request, in sectors.
const LARGEST: u64 = 40;

/// What to do to a disk: requests of every kind, on all of it, at random.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Decides everything that is not up to the disk.
    pub seed: u64,
    /// How many requests.
    pub requests: usize,
    /// How many of them at a time, at most.
    pub depth: usize,
    /// On how many queues.
    pub queues: usize,
    /// The disk holds zeroes, and not [`Workload::initial`].
    pub blank: bool,
    /// Only multiples of 4096 bytes, as a guest with such blocks sends them.
    pub whole_pages: bool,
    /// Goes on when a request has failed, as a guest does that has a use for what is left of its disk.
    pub goes_on: bool,
}

/// A request that is pending, and its memory.
struct InFlight {
    number: usize,
    queue: usize,
    /// Held until it has ended.
    _memory: Option<Memory>,
}

/// A workload under way.
struct Running<'a> {
    workload: &'a Workload,
    info: DiskInfo,
    clock: &'a dyn Fn() -> u64,
    random: Random,
    history: History,
    order: u64,
    queues: Vec<Box<dyn Queue>>,
    in_flight: Vec<InFlight>,
    completions: Vec<Completion>,
    failed: bool,
}

impl Workload {
    /// One that most tests can use.
    pub fn new(seed: u64) -> Self {
        Self { seed, requests: 120, depth: 12, queues: 2, blank: false, whole_pages: false, goes_on: false }
    }

    /// What a disk is to hold before, unless it is blank: every sector says where it is.
    pub fn initial(&self, capacity: u64) -> Vec<u8> {
        (0..capacity / SECTOR as u64).flat_map(|sector| stamp(self.seed, 0, sector)).collect()
    }

    /// Runs it to its end; or until a request fails, unless it [goes on](Workload::goes_on): the disk is then no longer what
    /// it was.
    ///
    /// `clock` says when things happen, to whoever ends the disk: it must not go backwards.
    ///
    /// # Panics
    ///
    /// The disk gives no queue, or does not complete a request.
    pub fn run(&self, disk: &dyn Disk, clock: &dyn Fn() -> u64) -> History {
        let info = disk.info();
        let queue = |_| disk.open_queue(self.depth as u16).expect("a queue");
        let mut running = Running {
            workload: self,
            history: History::new(self.seed, self.blank, info.capacity),
            info,
            clock,
            random: Random::new(self.seed),
            order: 1,
            queues: (0..self.queues).map(queue).collect(),
            in_flight: Vec::new(),
            completions: Vec::new(),
            failed: false,
        };
        running.run();
        running.drop_queues();
        running.history
    }
}

impl Running<'_> {
    fn run(&mut self) {
        while !self.failed && self.history.records.len() < self.workload.requests {
            let batch = 1 + self.random.below(self.workload.depth as u64);
            for _ in 0..batch {
                if self.in_flight.len() < self.workload.depth && !self.failed {
                    self.submit();
                }
            }
            self.kick();
            // Some batches overlap, others wait for each other.
            let leave = self.random.below(self.workload.depth as u64 / 2 + 1) as usize;
            self.wait_until(leave);
        }
        if self.random.chance(70) {
            self.wait_until(0);
        }
    }

    /// Drops the queues, the last of them with requests pending now and then: it waits for those. The others must have
    /// none, for it may wait for a write on one of them, which only a poll would end.
    fn drop_queues(&mut self) {
        let last = self.queues.len() - 1;
        self.wait_while(|running| running.in_flight.iter().any(|it| it.queue != last));
        self.queues.clear();
        // Until here, what is in flight was written from.
        self.in_flight.clear();
    }

    fn moment(&mut self) -> Moment {
        self.order += 1;
        Moment { order: self.order, clock: (self.clock)() }
    }

    fn range(&mut self) -> (u64, u64) {
        let total = self.info.capacity / SECTOR as u64;
        let unit = if self.workload.whole_pages || self.random.chance(60) { 8 } else { 1 };
        let most = (if self.random.chance(80) { LARGEST / 4 } else { LARGEST }).min(total) / unit;
        let len = (1 + self.random.below(most.max(1))) * unit;
        let start = self.random.below((total - len) / unit + 1) * unit;
        // The end of the disk may be odd: that is where trouble is.
        let start = if unit == 1 && self.random.chance(10) { total - len } else { start };
        (start, len)
    }

    fn operation(&mut self) -> (Operation, Kind, RequestFlags) {
        let fua = if self.random.chance(20) { RequestFlags::FUA } else { RequestFlags::NONE };
        let unmap = if self.random.chance(50) { RequestFlags::MAY_UNMAP } else { RequestFlags::NONE };
        match self.random.below(100) {
            0..12 => (Operation::Flush, Kind::Flush, RequestFlags::NONE),
            12..22 => (Operation::Read, Kind::Nothing, RequestFlags::NONE),
            22..32 => (Operation::WriteZeroes, Kind::Zeroes, fua.with(unmap)),
            32..40 => (Operation::Discard, History::discard(self.info.unmapped), RequestFlags::NONE),
            _ => (Operation::Write, Kind::Write, fua),
        }
    }

    /// The memory of a request. Some of it is where `O_DIRECT` cannot use it as it is.
    fn memory(&mut self, operation: Operation, number: usize, (start, len): (u64, u64)) -> Option<Memory> {
        let skew = if self.random.chance(15) { 8 } else { 0 };
        let seed = self.workload.seed;
        match operation {
            Operation::Write => {
                let sectors = (start..start + len).flat_map(|at| stamp(seed, number as u64 + 1, at));
                Some(Memory::holding(&sectors.collect::<Vec<u8>>(), skew))
            }
            Operation::Read => Some(Memory::new(len as usize * SECTOR, skew, 0)),
            _ => None,
        }
    }

    fn submit(&mut self) {
        let (operation, kind, flags) = self.operation();
        let (start, len) = self.range();
        let number = self.history.records.len();
        let mut memory = self.memory(operation, number, (start, len));
        let cut = self.random.one_of(&[usize::MAX, usize::MAX, 4096, 1024]);
        let segments: Vec<Segment> = memory.as_mut().map_or_else(Vec::new, |memory| memory.segments(&[cut]));
        let fua = flags.contains(RequestFlags::FUA);
        let submitted = self.moment();
        self.history.note(Record { kind, sectors: start..start + len, fua, submitted, completed: None });
        let request = Request {
            operation,
            offset: start * SECTOR as u64,
            len: len * SECTOR as u64,
            segments: &segments,
            flags,
            token: number as u64,
        };
        let queue = self.random.below(self.queues.len() as u64) as usize;
        // SAFETY: the memory is kept until the request has ended or its queue has been dropped.
        match unsafe { self.queues[queue].submit(request) } {
            Submission::Full => panic!("the queue is as deep as was asked for"),
            Submission::Pending => self.in_flight.push(InFlight { number, queue, _memory: memory }),
            Submission::Done(result) => self.ended(number, result),
        }
    }

    fn ended(&mut self, number: usize, result: RequestResult) {
        self.failed |= result.is_err() && !self.workload.goes_on;
        let completed = self.moment();
        self.history.records[number].completed = Some((completed, result));
    }

    fn kick(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.kick());
    }

    /// Takes completions until no more than `leave` requests are in flight.
    fn wait_until(&mut self, leave: usize) {
        self.wait_while(|running| running.in_flight.len() > leave);
    }

    fn wait_while(&mut self, waits: impl Fn(&Self) -> bool) {
        while waits(self) {
            let mut completions = std::mem::take(&mut self.completions);
            for queue in &mut self.queues {
                queue.poll(&mut completions);
            }
            if completions.is_empty() {
                self.sleep();
            }
            for Completion { token, result } in completions.drain(..) {
                let place = self.in_flight.iter().position(|it| it.number as u64 == token);
                let InFlight { number, .. } = self.in_flight.swap_remove(place.expect("a token of ours"));
                self.ended(number, result);
            }
            self.completions = completions;
        }
    }

    /// Sleeps until a queue that has something in flight may have something to poll.
    fn sleep(&mut self) {
        let waiting: Vec<bool> =
            (0..self.queues.len()).map(|queue| self.in_flight.iter().any(|it| it.queue == queue)).collect();
        let mut fds = Vec::new();
        for (queue, _) in self.queues.iter_mut().zip(waiting).filter(|(_, waiting)| *waiting) {
            match (queue.may_sleep(), queue.wait_fd()) {
                (true, Some(fd)) => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
                _ => return,
            }
        }
        // It may be interrupted: then it ends early.
        let timed_out = poll(&mut fds, Some(&PATIENCE)) == Ok(0);
        assert!(!timed_out, "seed {}: a request does not complete", self.workload.seed);
    }
}
