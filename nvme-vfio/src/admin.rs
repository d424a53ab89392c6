//! The admin queue pair: one command at a time, with a deadline, and Asynchronous Event Requests beside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::admin_command::Abort;
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::doorbell::Doorbell as DoorbellIndex;
use nvme_spec::{ADMIN_QUEUE_ID, AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};

use crate::command_identifier::CommandIdentifiers;
use crate::dma::{DmaBuffer, DmaRange, DmaSpace};
use crate::doorbell::Doorbell;
use crate::error::{Error, Fault};
use crate::patience::Patience;
use crate::prp::{self, PrpListPages};
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::recovery::heartbeat::Heartbeat;
use crate::recovery::inbox::Inbox;
use crate::registers::Registers;
use crate::shadow_doorbell::ShadowDoorbells;

/// Entries of each admin queue.
pub(crate) const ENTRIES: u16 = 32;
/// Asynchronous Event Requests to keep outstanding, if the controller takes so many.
const EVENT_REQUESTS: u16 = 4;
/// Events that nobody has asked for yet; the oldest go first.
const EVENTS_KEPT: usize = 64;
/// Token of Asynchronous Event Requests. Other tokens count up from 0.
const EVENT_TOKEN: u64 = u64::MAX;

/// Data of an admin command.
#[derive(Debug)]
pub enum AdminData<'a> {
    /// None.
    None,
    /// The controller fills it.
    FromController(&'a mut [u8]),
    /// The controller reads it.
    ToController(&'a [u8]),
}

impl AdminData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::FromController(bytes) => bytes.len(),
            Self::ToController(bytes) => bytes.len(),
        }
    }
}

/// Whom to tell of commands that do not end, and that time passes meanwhile.
pub(crate) struct Watch {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) heartbeat: Arc<Heartbeat>,
    /// Resets before this admin queue.
    pub(crate) generation: u32,
    /// How long an Abort may take to end a command whose deadline has passed.
    pub(crate) abort_timeout: Duration,
}

/// Where an admin queue is.
pub(crate) struct Place<'a> {
    pub(crate) registers: &'a Registers,
    pub(crate) space: &'a Arc<DmaSpace>,
    pub(crate) memory_page_size: u64,
    /// CAP.DSTRD.
    pub(crate) dstrd: u8,
}

pub(crate) struct AdminQueue {
    watch: Option<Watch>,
    registers: Registers,
    space: Arc<DmaSpace>,
    memory_page_size: u64,
    submission: SubmissionQueue,
    completion: CompletionQueue,
    commands: CommandIdentifiers,
    next_token: u64,
    events: VecDeque<AsynchronousEvent>,
    event_requests: u16,
    /// A page for the PRP list, then data. Kept from one command to the next.
    bounce: Option<DmaBuffer>,
    /// Data of commands that were given up, by their token: the controller's until they end, or it has been disabled
    /// and this admin queue goes.
    given_up: Vec<(u64, DmaBuffer)>,
    /// Declared after the queues, which point into it.
    _memory: DmaBuffer,
}

impl AdminQueue {
    /// Allocates the queues and writes AQA, ASQ and ACQ. The controller is disabled.
    pub(crate) fn new(
        place: &Place<'_>,
        shadow: Option<&Arc<ShadowDoorbells>>,
        watch: Option<Watch>,
    ) -> Result<Self, Error> {
        let Place { registers, space, memory_page_size, dstrd } = *place;
        let page = memory_page_size as usize;
        let submission_len =
            (usize::from(ENTRIES) * size_of::<SubmissionQueueEntry>()).next_multiple_of(page);
        let completion_len = usize::from(ENTRIES) * size_of::<CompletionQueueEntry>();
        let memory = space.allocate(submission_len + completion_len)?;
        registers.set_admin_queue(
            (ENTRIES, ENTRIES),
            memory.iova(),
            memory.iova() + submission_len as u64,
        )?;
        let doorbell = |index| {
            // Controllers differ in whether they look at the admin queue's shadow or at its register: write both.
            let shadow = shadow.and_then(|shadow| shadow.shadow(index));
            Doorbell::new(registers.transport(), index, dstrd, shadow).always_rung()
        };
        let tail = doorbell(DoorbellIndex::SubmissionQueueTail(ADMIN_QUEUE_ID));
        let head = doorbell(DoorbellIndex::CompletionQueueHead(ADMIN_QUEUE_ID));
        let base = memory.base();
        // SAFETY: new, zeroed pages of which the queues take disjoint parts, aligned to pages; the struct keeps them
        // as long as the queues.
        let (submission, completion) = unsafe {
            (
                SubmissionQueue::new(base.cast(), ENTRIES.into(), tail),
                CompletionQueue::new(base.add(submission_len).cast(), ENTRIES.into(), head),
            )
        };
        Ok(Self {
            watch,
            registers: registers.clone(),
            space: space.clone(),
            memory_page_size,
            submission,
            completion,
            commands: CommandIdentifiers::new(ENTRIES - 1),
            next_token: 0,
            events: VecDeque::new(),
            event_requests: 0,
            bounce: None,
            given_up: Vec::new(),
            _memory: memory,
        })
    }

    /// Runs a command to its end, and gives what its completion says in dword 0. If it does not end in time it is
    /// aborted; if that does not end it either, that is reported as a fault of the controller.
    pub(crate) fn run(
        &mut self,
        command: SubmissionQueueEntry,
        data: AdminData<'_>,
        limit: Duration,
    ) -> Result<u32, Error> {
        self.execute(command, data, limit, true)
    }

    /// The same for an Abort, say, which is just given up.
    pub(crate) fn run_without_abort(
        &mut self,
        command: SubmissionQueueEntry,
        data: AdminData<'_>,
        limit: Duration,
    ) -> Result<u32, Error> {
        self.execute(command, data, limit, false)
    }

    fn execute(
        &mut self,
        mut command: SubmissionQueueEntry,
        data: AdminData<'_>,
        limit: Duration,
        abort: bool,
    ) -> Result<u32, Error> {
        if data.len() > 0 {
            command = self.attach(command, &data)?;
        }
        let (name, token) = (AdminOpcode(command.opcode), self.next_token);
        let entry = self.wait(command, limit, abort).inspect_err(|_| {
            // The command may still be running: its data must not land in the next one's, nor, where there is no IOMMU,
            // in whatever becomes of the memory.
            if self.commands.holds(token) {
                self.given_up.extend(self.bounce.take().map(|bounce| (token, bounce)));
            }
        })?;
        if let Err(status) = entry.result() {
            return Err(Error::Command { name: self.registers.name(), command: name.to_string(), status });
        }
        if let (AdminData::FromController(bytes), Some(bounce)) = (data, &self.bounce) {
            bounce.read_at(self.memory_page_size as usize, bytes);
        }
        Ok(entry.dw0)
    }

    /// Points a command to the bounce buffer, with the data in it if it is for the controller.
    fn attach(
        &mut self,
        command: SubmissionQueueEntry,
        data: &AdminData<'_>,
    ) -> Result<SubmissionQueueEntry, Error> {
        let page = self.memory_page_size as usize;
        let too_long = |registers: &Registers| Error::Unsupported {
            name: registers.name(),
            what: format!("{} bytes are too much for an admin command", data.len()),
        };
        let len = u32::try_from(data.len()).map_err(|_| too_long(&self.registers))?;
        let bounce = match self.bounce.take() {
            Some(bounce) if bounce.len() - page >= data.len() => bounce,
            _ => self.space.allocate(page + data.len().next_multiple_of(page))?,
        };
        if let AdminData::ToController(bytes) = data {
            bounce.write_at(page, bytes);
        }
        let list = PrpListPages {
            base: bounce.base().cast(),
            iova: bounce.iova(),
            pages: 1,
            page_size: page as u64,
        };
        let range = DmaRange { iova: bounce.iova() + page as u64, len };
        self.bounce = Some(bounce);
        let prps = prp::build(&[range], &list).map_err(|_| too_long(&self.registers))?;
        Ok(command.with_prp(prps.prp1, prps.prp2))
    }

    /// Submits a command and waits for its completion.
    fn wait(
        &mut self,
        mut command: SubmissionQueueEntry,
        limit: Duration,
        abort: bool,
    ) -> Result<CompletionQueueEntry, Error> {
        let token = self.submit(&mut command)?;
        if let Some(entry) = self.wait_for(token, limit)? {
            return Ok(entry);
        }
        // What the controller is like is the better answer, if it has one.
        self.registers.check()?;
        if let Some(watch) = self.watch.as_ref().filter(|_| abort) {
            let abort_timeout = watch.abort_timeout;
            if let Some(entry) = self.abort(&command, token, abort_timeout)?
                && !entry.result().is_err_and(|status| status.is(Status::ABORTED_BY_REQUEST))
            {
                return Ok(entry);
            }
        }
        let (name, what) = (self.registers.name(), AdminOpcode(command.opcode).to_string());
        Err(Error::Timeout { name, what, limit })
    }

    /// Has a command aborted and waits for its completion. If there is none, the controller has a fault.
    fn abort(
        &mut self,
        command: &SubmissionQueueEntry,
        token: u64,
        limit: Duration,
    ) -> Result<Option<CompletionQueueEntry>, Error> {
        let dwords = Abort::new().with_sqid(ADMIN_QUEUE_ID).with_cid(command.cid);
        self.submit(&mut SubmissionQueueEntry::new(AdminOpcode::ABORT, 0).with_dwords(dwords))?;
        let entry = self.wait_for(token, limit)?;
        if let (None, Some(watch)) = (entry, &self.watch) {
            let fault = Fault::Expired { qid: ADMIN_QUEUE_ID, cid: command.cid, limit };
            watch.inbox.report(watch.generation, &fault);
        }
        Ok(entry)
    }

    /// Submits a command, and gives the token that stands for it.
    fn submit(&mut self, command: &mut SubmissionQueueEntry) -> Result<u64, Error> {
        let token = self.next_token;
        self.next_token += 1;
        let Some((_, cid)) = self.commands.take(token) else {
            let what = "too many admin commands were given up and may still be running";
            return Err(Error::Unsupported { name: self.registers.name(), what: what.into() });
        };
        command.cid = cid;
        self.submission.post(command);
        self.ring()?;
        Ok(token)
    }

    /// Waits for the completion of the command with this token; `None` if it does not come in time.
    fn wait_for(&mut self, token: u64, limit: Duration) -> Result<Option<CompletionQueueEntry>, Error> {
        let mut patience = Patience::new(limit);
        loop {
            if let Some(entry) = self.take(Some(token))? {
                return Ok(Some(entry));
            }
            if patience.look_around() {
                self.registers.check()?;
                if let Some(watch) = &self.watch {
                    self.check_watch(watch)?;
                }
            }
            if !patience.wait() {
                return Ok(None);
            }
        }
    }

    /// What the caretaker does at a beat, who may be waiting here or for this lock; and whether there is anything left
    /// to wait for.
    fn check_watch(&self, watch: &Watch) -> Result<(), Error> {
        watch.heartbeat.beat_if_due();
        let name = self.registers.name();
        if self.registers.transport().is_wanted_back() {
            return Err(Error::TakenBack { name });
        }
        if watch.inbox.is_faulted(watch.generation) {
            return Err(Error::Queue { name, fault: Fault::Reset });
        }
        Ok(())
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.submission.ring().map_err(|source| {
            let doing = "ringing the admin queue's doorbell".into();
            Error::Transport { name: self.registers.name(), doing, source }
        })
    }

    /// Takes completions, until one for this token; the others are events and commands that were given up. As many as the
    /// queue holds at most: a controller that has always another event does not keep anybody here.
    fn take(&mut self, wanted: Option<u64>) -> Result<Option<CompletionQueueEntry>, Error> {
        let mut found = None;
        let mut left = ENTRIES;
        while found.is_none()
            && left > 0
            && let Some(entry) = self.completion.take()
        {
            left -= 1;
            // What it did to one entry it may do to others: the queue is of no use any more.
            let fault = |fault| {
                self.watch.iter().for_each(|watch| watch.inbox.report(watch.generation, &fault));
                Error::Queue { name: self.registers.name(), fault }
            };
            let (sqid, sqhd, cid) = (entry.sq_id, entry.sq_head, entry.cid);
            if sqid != ADMIN_QUEUE_ID || sqhd >= ENTRIES {
                return Err(fault(Fault::WrongQueue { qid: ADMIN_QUEUE_ID, sqid, sqhd }));
            }
            match self.commands.complete(cid) {
                None => return Err(fault(Fault::UnknownCid { qid: ADMIN_QUEUE_ID, cid })),
                Some(EVENT_TOKEN) => self.event(&entry)?,
                Some(token) if Some(token) == wanted => found = Some(entry),
                Some(token) => {
                    // One that was given up, or its Abort.
                    self.given_up.retain(|(given_up, _)| *given_up != token);
                    tracing::debug!("{}: admin command {cid} ended", self.registers.name());
                }
            }
        }
        self.completion.ring(ENTRIES.into(), true).map_err(|source| {
            let doing = "ringing the admin completion queue's doorbell".into();
            Error::Transport { name: self.registers.name(), doing, source }
        })?;
        Ok(found)
    }

    /// Keeps Asynchronous Event Requests outstanding, as many as AERL (0's based) allows.
    pub(crate) fn request_events(&mut self, aerl: u8) -> Result<(), Error> {
        while self.event_requests < EVENT_REQUESTS.min(u16::from(aerl) + 1) {
            self.request_event()?;
            self.event_requests += 1;
        }
        self.ring()
    }

    fn request_event(&mut self) -> Result<(), Error> {
        if let Some((_, cid)) = self.commands.take(EVENT_TOKEN) {
            let command = SubmissionQueueEntry::new(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, cid);
            self.submission.post(&command);
        }
        Ok(())
    }

    /// An Asynchronous Event Request has completed: an event, after which the next request goes out; or an error,
    /// after which there is one less outstanding.
    fn event(&mut self, entry: &CompletionQueueEntry) -> Result<(), Error> {
        match entry.result() {
            Ok(()) => {
                let event = AsynchronousEvent::from_bits(entry.dw0);
                tracing::debug!("{}: {event:?}", self.registers.name());
                if self.events.len() == EVENTS_KEPT {
                    self.events.pop_front();
                }
                self.events.push_back(event);
                self.request_event()?;
                self.ring()
            }
            Err(status) => {
                self.event_requests = self.event_requests.saturating_sub(1);
                if !status.is(Status::ABORTED_BY_REQUEST) {
                    let name = self.registers.name();
                    tracing::warn!("{name}: Asynchronous Event Request: {status}");
                }
                Ok(())
            }
        }
    }

    /// The events that have come since the last time.
    pub(crate) fn events(&mut self) -> Result<Vec<AsynchronousEvent>, Error> {
        self.take(None)?;
        Ok(self.events.drain(..).collect())
    }
}
