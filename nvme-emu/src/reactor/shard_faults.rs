//! Where a shard misbehaves by script ([`crate::faults`]): cold, and not there at all without one.

use super::completion_queue::CompletionQueue;
use super::shard::{Shard, slba};
use crate::controller::shared::Finding;
use crate::faults::Verdict;
use crate::faults::script::Tamper;
use nvme_spec::{CompletionQueueEntry, SubmissionQueueEntry};

impl Shard {
    /// Asks about the command at the head of a queue, for whose completion a place is reserved. True: it has been dealt
    /// with.
    #[cold]
    pub(super) fn misbehaves(&mut self, index: usize, sqe: &SubmissionQueueEntry) -> bool {
        let (Some(point), Some(sq)) = (&mut self.faults, &mut self.sqs[index]) else { return false };
        let verdict = point.on_command((index, sq.parameters.id, sq.head()), sqe);
        if point.faults.has_event() {
            self.shared.found(Finding::ScriptedEvent);
        }
        match verdict {
            Verdict::Execute | Verdict::Corrupt(..) => false,
            Verdict::Ignore => {
                sq.advance();
                let cq = sq.cq();
                self.cqs[cq].as_mut().map(CompletionQueue::release);
                true
            }
            Verdict::Fail(status) => {
                self.advance(index);
                self.finish(index, sqe.cid, Err((status, sqe.nsid, slba(sqe))));
                true
            }
        }
    }

    /// Posts a completion, or does with it what the script says.
    #[cold]
    pub(super) fn post_as_scripted(&mut self, cq: usize, mut entry: CompletionQueueEntry) {
        let (Some(point), Some(cq)) = (&mut self.faults, &mut self.cqs[cq]) else { return };
        match point.faults.on_completion(&entry) {
            None => {}
            Some(Tamper::Drop) => return,
            Some(Tamper::Delay(time)) => return point.delay(time, cq.parameters.id, entry),
            Some(Tamper::Duplicate) => cq.post(entry),
            Some(Tamper::WrongCid(mask)) => entry.cid ^= mask,
            Some(Tamper::WrongQueue(sqid)) => entry.sq_id = sqid,
            Some(Tamper::WrongHead) => entry.sq_head = u16::MAX,
            // The queue inverts it where it has to.
            Some(Tamper::WrongPhase) => entry.status |= 1,
        }
        cq.post(entry);
        self.post_soon();
    }

    /// Posts completions that have been late for long enough.
    pub(super) fn post_late(&mut self) {
        while let Some((cqid, entry)) = self.faults.as_mut().and_then(|point| point.due()) {
            let cq = self.cqs.iter_mut().flatten().find(|cq| cq.parameters.id == cqid);
            if let Some(cq) = cq.filter(|_| !self.draining) {
                cq.post(entry);
                self.post_soon();
            }
        }
    }
}
