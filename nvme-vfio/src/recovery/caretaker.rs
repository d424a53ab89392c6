//! The thread that looks after a controller.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvme_spec::admin_command::Abort;
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};

use super::Condition;
use super::inbox::{Next, Request};
use super::link::{Delivery, Link};
use crate::admin::AdminData;
use crate::controller::Shared;
use crate::error::Error;
use crate::io_queue::Rings;
use crate::options::Recovery;

/// The caretaker's state.
pub(crate) struct Caretaker {
    shared: Arc<Shared>,
    options: Recovery,
    /// When the resets of the current window were.
    resets: VecDeque<Instant>,
}

/// Pauses between resets that did not help: each twice as long as the one before, from this to that.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

impl Caretaker {
    /// Starts the thread. It ends when the controller's inbox says so.
    pub(crate) fn spawn(shared: Arc<Shared>, options: Recovery) -> io::Result<JoinHandle<()>> {
        let caretaker = Self { shared, options, resets: VecDeque::new() };
        std::thread::Builder::new().name("nvme-caretaker".into()).spawn(|| caretaker.run())
    }

    fn run(mut self) {
        let interval = self.shared.heartbeat().interval();
        let mut next_beat = Instant::now() + interval;
        loop {
            if Instant::now() >= next_beat {
                self.look_around();
                next_beat = Instant::now() + interval;
            }
            match self.shared.inbox().next(self.shared.generation(), next_beat) {
                Next::Stop => return,
                Next::Nothing => {}
                Next::Fault(fault) => drop(self.recover(&fault, false)),
                Next::Request(Request::Abort { qid, cid, generation }) => self.abort(qid, cid, generation),
                Next::Request(Request::Queues { link, generation }) => self.make_queues(&link, generation),
                Next::Request(Request::Reset(answer)) => {
                    let result = self.recover("a reset was asked for", true);
                    // Fails only if nobody waits any more.
                    let _ = answer.send(result);
                }
            }
        }
    }

    /// A beat: whoever polls looks at deadlines, whoever sleeps is woken to do so.
    fn look_around(&mut self) {
        if self.is_wanted_back() {
            let _ = self.give_back();
            return;
        }
        if self.shared.condition() != Condition::Running {
            return;
        }
        if let Err(fault) = self.shared.health() {
            self.shared.inbox().report(self.shared.generation(), &fault);
            return;
        }
        self.shared.heartbeat().beat();
        self.shared.handle_events();
    }

    /// Has the controller abort a command. If it does not help, the command's deadline says so.
    fn abort(&self, qid: u16, cid: u16, generation: u32) {
        if generation != self.shared.generation() || self.shared.condition() != Condition::Running {
            return;
        }
        let limit = self.options.abort_timeout;
        let command = SubmissionQueueEntry::new(AdminOpcode::ABORT, 0);
        let command = command.with_dwords(Abort::new().with_sqid(qid).with_cid(cid));
        // Somebody may be waiting for a long admin command.
        let result = self
            .shared
            .admin_lock_within(limit)
            .map(|mut admin| admin.run_without_abort(command, AdminData::None, limit));
        let name = self.shared.registers().name();
        match result {
            Some(Ok(dw0)) if dw0 & Abort::NOT_ABORTED == 0 => {
                tracing::warn!("{name}: queue {qid}: command {cid} was aborted after its deadline");
            }
            Some(Ok(_)) => tracing::warn!("{name}: queue {qid}: command {cid} was not aborted"),
            Some(Err(error)) => tracing::warn!("queue {qid}: aborting command {cid}: {error}"),
            None => tracing::warn!("{name}: queue {qid}: the admin queue is too busy to abort command {cid}"),
        }
    }

    /// Makes queues for a parked queue pair. Where a reset comes in between, its owner will ask again.
    fn make_queues(&mut self, link: &Arc<Link>, generation: u32) {
        if generation != self.shared.generation() || self.shared.condition() != Condition::Running {
            return;
        }
        let Some(mut admin) = self.shared.admin_lock_within(self.options.abort_timeout) else {
            // Somebody runs a long command.
            return self.shared.inbox().ask(Request::Queues { link: link.clone(), generation });
        };
        let made = link.deliver(|| match Rings::create(&self.shared, &mut admin, link.qid, link.vector) {
            Ok(rings) => Ok(Delivery::Rings(Box::new(rings))),
            Err(error @ (Error::Command { .. } | Error::Unsupported { .. })) => {
                tracing::error!(
                    "queue {} cannot be made again, and stays broken until the drive is opened again: {error}",
                    link.qid
                );
                Ok(Delivery::Refused)
            }
            Err(error) => Err(error),
        });
        drop(admin);
        if let Err(error) = made {
            // Then it is not well after all.
            return self.shared.inbox().report(generation, &error);
        }
        self.shared.pulse().count_beat();
        link.wake();
    }

    /// Resets the controller until it is up again, or there are no resets left. One that was asked for is not counted.
    fn recover(&mut self, fault: &str, mut asked_for: bool) -> Result<(), Error> {
        self.shared.check_usable()?;
        let name = self.shared.registers().name();
        if self.lost().is_none() {
            tracing::warn!("{name}: {fault}; resetting the controller");
        }
        // Whoever waits for an admin command gives up.
        self.shared.inbox().report(self.shared.generation(), &fault);
        let mut why = fault.to_owned();
        let mut pause = PAUSES.0;
        self.shared.set_condition(Condition::Recovering);
        while self.lost().is_none() && (std::mem::take(&mut asked_for) || self.may_reset()) {
            if self.is_wanted_back() {
                return self.give_back();
            }
            self.shared.counters().resets.fetch_add(1, Ordering::Relaxed);
            match self.shared.restart() {
                Ok(()) => {
                    tracing::info!("{name}: the controller is back");
                    self.shared.set_condition(Condition::Running);
                    self.wake_all();
                    self.shared.look_at_namespaces();
                    return Ok(());
                }
                // Whatever this error says, that one says why.
                Err(_) if self.lost().is_some() => break,
                Err(error) => {
                    tracing::warn!("reset: {error}");
                    let final_word = matches!(error, Error::Replaced { .. });
                    why = error.to_string();
                    if final_word || self.shared.inbox().is_stopped() {
                        break;
                    }
                }
            }
            self.shared.inbox().pause(pause);
            pause = (2 * pause).min(PAUSES.1);
        }
        self.give_up(&why)
    }

    /// Counts a reset, if there is one left.
    fn may_reset(&mut self) -> bool {
        let now = Instant::now();
        while self.resets.front().is_some_and(|reset| now.duration_since(*reset) >= self.options.window) {
            self.resets.pop_front();
        }
        if self.resets.len() >= self.options.resets as usize {
            return false;
        }
        self.resets.push_back(now);
        true
    }

    /// Ends DMA, then everything else.
    fn give_up(&self, why: &str) -> Result<(), Error> {
        let name = self.shared.registers().name();
        let resets = self.resets.len() as u32;
        self.shared.stop(self.options.abort_timeout);
        let error = match self.lost() {
            Some(why) => Error::Lost { name, why },
            None => Error::GivenUp { name, resets, window: self.options.window, why: why.to_owned() },
        };
        tracing::error!("{error}");
        self.shared.set_failure(&error);
        self.wake_all();
        Err(error)
    }

    fn lost(&self) -> Option<String> {
        self.shared.registers().transport().lost()
    }

    fn is_wanted_back(&self) -> bool {
        self.shared.registers().transport().is_wanted_back()
    }

    /// Gives the controller back, shut down if it still was in use; everything in flight ends.
    fn give_back(&self) -> Result<(), Error> {
        let error = Error::TakenBack { name: self.shared.registers().name() };
        tracing::error!("{error}");
        // Whoever waits for an admin command gives up.
        self.shared.inbox().report(self.shared.generation(), &error);
        let failed = self.shared.condition() == Condition::Failed;
        if !failed {
            self.shared.set_condition(Condition::Recovering);
        }
        self.shared.give_back();
        if !failed {
            self.shared.set_failure(&error);
            self.wake_all();
        }
        Err(error)
    }

    fn wake_all(&self) {
        self.shared.pulse().count_beat();
        self.shared.links().values().for_each(|link| link.wake());
    }
}
