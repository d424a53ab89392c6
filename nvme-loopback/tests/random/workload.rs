//! Random work on a few slots of a disk, and what has to be true of it whatever the controller does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::model::{BLOCK, Effect, SLOT, Slot};
use super::{Case, Random};

/// Slots of each queue.
pub const SLOTS: usize = 6;
/// What a slot's memory is filled with while no request is about it.
const NOBODYS: u8 = 0x77;

/// A request.
pub struct Work<'a> {
    pub effect: &'a Effect,
    pub slot: usize,
    /// Its part of the slot.
    pub at: usize,
    pub len: usize,
    pub token: u64,
}

/// What became of it when it was submitted.
pub enum Taken {
    Pending,
    Done(Outcome),
    Full,
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// What was compared differs.
    Different,
    Error,
}

/// What is worked on: queue pairs, or a disk's queues. Each slot has memory of its own.
pub trait Side {
    /// Whether requests have to be for whole blocks.
    fn whole_blocks(&self) -> bool;
    /// Whether there is Compare.
    fn compares(&self) -> bool;
    fn write_memory(&mut self, slot: usize, at: usize, data: &[u8]);
    fn read_memory(&self, slot: usize, at: usize, len: usize) -> Vec<u8>;
    fn submit(&mut self, queue: usize, work: &Work<'_>) -> Taken;
    fn kick(&mut self, queue: usize);
    /// What has ended. `Err`: the queue is of no use any more.
    fn poll(&mut self, queue: usize, ended: &mut Vec<(u64, Outcome)>) -> Result<(), String>;
    /// Waits a little for something to end.
    fn sleep(&mut self, queue: usize);
    /// Does something beside the work, now and then.
    fn disturb(&mut self, random: &mut Random);
    /// Makes a queue anew; whatever was pending in it has ended when the old one has gone. The memory of `pending` slots may
    /// belong to the controller for longer, and is replaced. `Err`: there is none, and why.
    fn renew(&mut self, queue: usize, pending: &[usize]) -> Result<(), String>;
    /// Whether the controller was given up, and how that is said.
    fn failure(&self) -> Option<String>;
}

/// What came of the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub succeeded: u64,
    pub failed: u64,
}

struct Request {
    effect: Effect,
    queue: usize,
    slot: usize,
    at: usize,
    len: usize,
    began: Instant,
}

/// The work and what is known about it.
pub struct Workload<'a> {
    case: &'a Case,
    side: &'a mut dyn Side,
    /// In which a request has ended, whatever happens.
    deadline: Duration,
    random: Random,
    pub slots: Vec<Slot>,
    busy: Vec<bool>,
    pending: HashMap<u64, Request>,
    usable: Vec<bool>,
    issued: u64,
    tally: Tally,
}

impl<'a> Workload<'a> {
    pub fn new(case: &'a Case, side: &'a mut dyn Side, deadline: Duration) -> Self {
        let slots = case.slots();
        (0..slots).for_each(|slot| side.write_memory(slot, 0, &[NOBODYS; SLOT]));
        Self {
            case,
            side,
            deadline,
            random: Random(case.seed),
            slots: vec![Slot::new(); slots],
            busy: vec![false; slots],
            pending: HashMap::new(),
            usable: vec![true; case.queues.into()],
            issued: 0,
            tally: Tally::default(),
        }
    }

    /// Does all of it.
    pub fn run(&mut self) -> Result<Tally, TestCaseError> {
        let mut ended = Vec::new();
        while !(self.pending.is_empty()
            && (self.issued == self.case.requests || !self.usable.contains(&true)))
        {
            let mut progress = false;
            for queue in 0..self.usable.len() {
                while self.usable[queue] && self.issued < self.case.requests && !self.random.one_in(4) {
                    if !self.issue(queue)? {
                        break;
                    }
                }
                self.side.kick(queue);
                let polled = self.side.poll(queue, &mut ended);
                progress |= !ended.is_empty();
                for (token, outcome) in ended.drain(..) {
                    self.ended(token, outcome)?;
                }
                if let Err(why) = polled {
                    self.broken(queue, &why)?;
                }
            }
            if self.random.one_in(200) {
                self.side.disturb(&mut self.random);
            }
            if self.random.one_in(400) {
                let queue = self.random.below(self.usable.len() as u64) as usize;
                self.renew(queue)?;
            }
            if !progress {
                let queue = self.random.below(self.usable.len() as u64) as usize;
                self.side.sleep(queue);
                self.check_deadlines()?;
            }
        }
        Ok(self.tally)
    }

    /// Submits something; false: there is no room.
    fn issue(&mut self, queue: usize) -> Result<bool, TestCaseError> {
        let first = queue * SLOTS;
        let slot = first + self.random.below(SLOTS as u64) as usize;
        if self.busy[slot] {
            return Ok(false);
        }
        self.check_memory(slot)?;
        let (effect, at, len) = self.choose(slot);
        match &effect {
            Effect::Write(data) | Effect::Compare(data) => self.side.write_memory(slot, at, data),
            _ => {}
        }
        let token = self.issued;
        let work = Work { effect: &effect, slot, at, len, token };
        let taken = self.side.submit(queue, &work);
        if matches!(taken, Taken::Full) {
            self.side.write_memory(slot, 0, &[NOBODYS; SLOT]);
            return Ok(false);
        }
        self.issued += 1;
        self.busy[slot] = true;
        let request = Request { effect, queue, slot, at, len, began: Instant::now() };
        self.pending.insert(token, request);
        if let Taken::Done(outcome) = taken {
            self.ended(token, outcome)?;
        }
        Ok(true)
    }

    fn choose(&mut self, slot: usize) -> (Effect, usize, usize) {
        let uncertain = self.slots[slot].possibilities() as u64;
        // Before there are too many of them, and often enough otherwise.
        if uncertain > 8 || (uncertain > 1 && self.random.one_in(2)) {
            return (Effect::Read, 0, SLOT);
        }
        let unit = if self.side.whole_blocks() || self.random.one_in(2) { BLOCK } else { 1 };
        let units = (SLOT / unit) as u64;
        let first = self.random.below(units);
        let count = 1 + self.random.below(units - first);
        let (at, len) = (first as usize * unit, count as usize * unit);
        let effect = match self.random.below(20) {
            0 => Effect::Flush,
            1 => Effect::Discard,
            2 | 3 => Effect::Zeroes,
            4 | 5 if self.side.compares() => {
                let mut data =
                    self.slots[slot].certain().map_or(vec![1; len], |image| image[at..at + len].to_vec());
                if self.random.one_in(2) {
                    data[len - 1] ^= 0xff;
                }
                Effect::Compare(data)
            }
            4..12 => Effect::Read,
            _ => Effect::Write(crate::rig::pattern(self.random.next(), len)),
        };
        (effect, at, len)
    }

    /// A request has ended: once, in time, and with the truth.
    fn ended(&mut self, token: u64, outcome: Outcome) -> Result<(), TestCaseError> {
        let Some(request) = self.pending.remove(&token) else {
            return Err(TestCaseError::fail(format!("request {token} has ended once more")));
        };
        let Request { effect, slot: number, at, len, began, .. } = request;
        prop_assert!(began.elapsed() < self.deadline, "a request has taken {:?}", began.elapsed());
        let slot = &mut self.slots[number];
        let succeeded = outcome == Outcome::Success;
        match &effect {
            Effect::Read if succeeded => {
                let data = self.side.read_memory(number, at, len);
                let wrong = slot.impossible(at, &data);
                prop_assert_eq!(wrong, None, "slot {} read as what was never there", number);
                slot.was_read(at, &data);
            }
            Effect::Compare(data) => {
                let different = slot.impossible(at, data).is_some();
                prop_assert!(
                    !(succeeded && different),
                    "slot {}: what differs was found to be the same",
                    number
                );
                let same = slot.certain().is_some_and(|image| image[at..at + len] == data[..]);
                prop_assert!(
                    !(outcome == Outcome::Different && same),
                    "slot {}: the same was found to differ",
                    number
                );
            }
            _ => {}
        }
        slot.ended(&effect, at, len, succeeded);
        *if outcome == Outcome::Error { &mut self.tally.failed } else { &mut self.tally.succeeded } += 1;
        self.release(number);
        Ok(())
    }

    /// Whatever writes to this memory from now on has no right to.
    fn release(&mut self, slot: usize) {
        self.side.write_memory(slot, 0, &[NOBODYS; SLOT]);
        self.busy[slot] = false;
    }

    fn check_memory(&self, slot: usize) -> Result<(), TestCaseError> {
        let found = self.side.read_memory(slot, 0, SLOT);
        let wrong = found.iter().position(|byte| *byte != NOBODYS);
        prop_assert_eq!(
            wrong,
            None,
            "the memory of slot {} was written after the request for it had ended",
            slot
        );
        Ok(())
    }

    /// After everything: nothing has been written that nobody asked for.
    pub fn check_all_memory(&self) -> Result<(), TestCaseError> {
        (0..self.busy.len()).filter(|slot| !self.busy[*slot]).try_for_each(|slot| self.check_memory(slot))
    }

    /// A queue says that it is of no use any more: then all that was pending in it has ended.
    fn broken(&mut self, queue: usize, why: &str) -> Result<(), TestCaseError> {
        if !self.usable[queue] {
            return Ok(());
        }
        let lost = self.pending.values().filter(|request| request.queue == queue).count();
        prop_assert_eq!(lost, 0, "the queue has ended ({}), and requests have not", why);
        self.renew(queue)
    }

    fn renew(&mut self, queue: usize) -> Result<(), TestCaseError> {
        if !self.usable[queue] {
            return Ok(());
        }
        let tokens: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, request)| request.queue == queue)
            .map(|(token, _)| *token)
            .collect();
        let dropped: Vec<Request> = tokens.iter().filter_map(|token| self.pending.remove(token)).collect();
        let slots: Vec<usize> = dropped.iter().map(|request| request.slot).collect();
        let began = Instant::now();
        let renewed = self.side.renew(queue, &slots);
        prop_assert!(
            began.elapsed() < self.deadline,
            "a queue has taken {:?} to be made anew",
            began.elapsed()
        );
        for request in &dropped {
            self.slots[request.slot].ended(&request.effect, request.at, request.len, false);
            self.slots[request.slot].history.push("(its queue was dropped)".into());
            self.release(request.slot);
        }
        self.usable[queue] = renewed.is_ok();
        if let Err(why) = renewed {
            prop_assert!(!why.is_empty());
        }
        Ok(())
    }

    fn check_deadlines(&self) -> Result<(), TestCaseError> {
        for (token, request) in &self.pending {
            let time = request.began.elapsed();
            prop_assert!(time < self.deadline, "request {} hangs: {:?}", token, time);
        }
        Ok(())
    }

    /// Once the controller was given up, everything fails, at once and with a reason.
    pub fn check_failure(&mut self) -> Result<(), TestCaseError> {
        let Some(why) = self.side.failure() else { return Ok(()) };
        prop_assert!(why.contains("given up after") && !why.contains('\n'), "{}", why);
        for queue in 0..self.usable.len() {
            let began = Instant::now();
            prop_assert!(self.side.renew(queue, &[]).is_err(), "a queue on a controller that was given up");
            prop_assert!(began.elapsed() < Duration::from_secs(5));
        }
        Ok(())
    }
}
