//! A queue pair's part in recovery: what its owner does, in polls, without waiting. [`crate::recovery`] has the states.

use std::sync::atomic::Ordering;

use nvme_spec::{CompletionQueueEntry, Status};

use super::{QueuePair, State};
use crate::error::Fault;
use crate::io_queue::Rings;
use crate::recovery::Condition;
use crate::recovery::inbox::Request;
use crate::recovery::link::Delivery;

/// What commands that have ended are told to.
type Completed<'a> = &'a mut dyn FnMut(u64, &CompletionQueueEntry);

impl QueuePair {
    pub(super) fn recovers(&self) -> bool {
        self.queue.shared().options().recovery.is_some()
    }

    /// It cannot go on like this. With recovery, it will be put right.
    #[cold]
    pub(super) fn fault(&mut self, fault: Fault) -> Result<(), Fault> {
        if !self.recovers() {
            self.state = State::Broken(fault);
            return Err(fault);
        }
        if let Fault::Expired { cid, .. } = fault
            && let Some(index) = (0..self.sent.len()).find(|index| self.commands.at(*index) == Some(cid))
        {
            self.sent[index].take_blame();
        }
        let transport = self.queue.shared().registers().transport();
        if transport.lost().is_none() {
            // What comes of that is said once, by the caretaker.
            tracing::warn!("{}: {fault}", transport.name());
        }
        self.queue.shared().inbox().report(self.queue.generation, &fault);
        // A completion too late is one as well; one that should not be there puts the others in doubt.
        let trusted =
            !matches!(fault, Fault::UnknownCid { .. } | Fault::WrongQueue { .. } | Fault::Phase { .. });
        self.state = State::Parked { trusted, asked: None };
        Ok(())
    }

    /// [`QueuePair::fault`] after so many completions, which count if nothing is lost.
    #[cold]
    pub(super) fn fault_after(&mut self, fault: Fault, count: usize) -> Result<usize, Fault> {
        self.fault(fault).map(|()| count)
    }

    /// The controller has been reset, or is being.
    #[cold]
    pub(super) fn stale(&mut self) -> Result<(), Fault> {
        if !self.recovers() {
            self.state = State::Broken(Fault::Reset);
            return Err(Fault::Reset);
        }
        self.state = State::Parked { trusted: true, asked: None };
        Ok(())
    }

    /// The caretaker has counted a beat, or there has been none for long.
    #[cold]
    pub(super) fn look_around(&mut self) -> Result<(), Fault> {
        (self.beats, self.polls) = (self.pulse.beats(), 0);
        self.queue.link.set_outstanding(self.commands.in_flight() > 0);
        self.check()
    }

    /// A poll of a queue pair that does not run: what has become of it?
    #[cold]
    pub(super) fn poll_parked(&mut self, completed: Completed<'_>) -> Result<usize, Fault> {
        let (trusted, asked) = match self.state {
            State::Broken(fault) => return Err(fault),
            State::Running => return Ok(0),
            State::Parked { trusted, asked } => (trusted, asked),
        };
        let generation = self.pulse.generation();
        match self.pulse.condition() {
            Condition::Failed => {
                let fault = self.pulse.failure().unwrap_or(Fault::Reset);
                // One that was shut down in order has said what it has done.
                let trusted = trusted && fault == Fault::TakenBack;
                let count = if trusted { self.take_last(&mut *completed) } else { 0 };
                return match self.end_all(fault, completed) {
                    Ok(ended) => Ok(count + ended),
                    Err(_) if count > 0 => Ok(count),
                    Err(fault) => Err(fault),
                };
            }
            Condition::Recovering => return Ok(0),
            // Not begun yet.
            Condition::Running if generation == self.queue.generation => return Ok(0),
            Condition::Running => {}
        }
        if asked != Some(generation) {
            self.state = State::Parked { trusted, asked: Some(generation) };
            let link = self.queue.link.clone();
            self.queue.shared().inbox().ask(Request::Queues { link, generation });
            return Ok(0);
        }
        match self.queue.link.fetch() {
            // Made before yet another reset, after which they will be asked for again.
            Delivery::Rings(rings) if rings.generation != generation => Ok(0),
            Delivery::Rings(rings) => Ok(self.go_on(*rings, trusted, completed)),
            Delivery::Refused => self.end_all(Fault::NotRemade { qid: self.qid }, completed),
            Delivery::Nothing | Delivery::Closed => Ok(0),
        }
    }

    /// Takes what had completed before the controller was stopped.
    fn take_last(&mut self, completed: Completed<'_>) -> usize {
        match self.take_completions(completed) {
            Ok(count) | Err((_, count)) => count,
        }
    }

    /// Goes on with new queues. Since they exist, the controller does nothing of what was in flight any more.
    fn go_on(&mut self, rings: Rings, trusted: bool, completed: Completed<'_>) -> usize {
        let mut count = 0;
        if trusted {
            count += self.take_last(&mut *completed);
        }
        self.queue.generation = rings.generation;
        self.rings = rings;
        self.state = State::Running;
        self.passed_over = None;
        let (mut replayed, mut failed) = (0, 0);
        for index in 0..self.sent.len() {
            let Some(cid) = self.commands.at(index) else { continue };
            let sent = &mut self.sent[index];
            if sent.goes_out_again(self.rung) {
                replayed += u64::from(sent.was_seen(self.rung));
                sent.command.cid = self.commands.retag(index);
                self.rings.submission.post(&sent.command);
            } else {
                failed += 1;
                self.end(cid, Status::COMMAND_ABORTED_BY_HOST, completed);
            }
        }
        self.count(replayed, failed);
        // By `kick`, all of them will have been seen.
        self.kick();
        count + failed as usize
    }

    /// Ends all that is in flight, and everything. The controller has been stopped.
    fn end_all(&mut self, fault: Fault, completed: Completed<'_>) -> Result<usize, Fault> {
        self.state = State::Broken(fault);
        let mut count = 0;
        for index in 0..self.sent.len() {
            if let Some(cid) = self.commands.at(index) {
                self.end(cid, Status::HOST_PATHING_ERROR, completed);
                count += 1;
            }
        }
        self.count(0, count as u64);
        if count > 0 { Ok(count) } else { Err(fault) }
    }

    fn end(&mut self, cid: u16, status: Status, completed: Completed<'_>) {
        if let Some(token) = self.commands.complete(cid) {
            completed(token, &CompletionQueueEntry::new(cid, self.qid, 0, status, false));
        }
    }

    fn count(&self, replayed: u64, failed: u64) {
        let counters = self.queue.shared().counters();
        counters.replayed.fetch_add(replayed, Ordering::Relaxed);
        counters.failed.fetch_add(failed, Ordering::Relaxed);
    }
}
