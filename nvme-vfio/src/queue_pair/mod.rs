//! An I/O queue pair: what a thread reads and writes through.

mod commands;
mod recovery;
mod replay;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_spec::identify::Sgls;
use nvme_spec::{CompletionQueueEntry, Status, SubmissionQueueEntry};

use crate::command_identifier::CommandIdentifiers;
use crate::controller::{Pulse, Shared};
use crate::deadline::{Deadlines, Verdict};
use crate::dma::{DmaRange, Held};
use crate::error::{Error, Fault};
use crate::io_queue::{IoQueue, Rings};
use crate::prp::{self, PrpError, PrpListPages};
use crate::recovery::inbox::Request;
use crate::sgl;
pub(crate) use commands::MAX_COPY_RANGES;
use replay::Sent;

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many commands as the queue's depth are in flight: poll, then try again.
    #[error("the queue is full")]
    Full,
    /// The data is not as long as the blocks.
    #[error("the command's blocks take {blocks} bytes, but its data has {data}")]
    Length {
        /// What the blocks take, in bytes.
        blocks: u64,
        /// What there is, in bytes.
        data: u64,
    },
    /// More data than the controller or this driver takes at once.
    #[error("{len} bytes are more than the largest transfer of {max}")]
    TooLong {
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u32,
    },
    /// A command for no blocks or ranges, or for more than its field can say.
    #[error("a command cannot be for {0} blocks or ranges")]
    Count(usize),
    /// The data cannot be described to the controller.
    #[error(transparent)]
    Data(#[from] PrpError),
    /// The queue pair has broken.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// An I/O submission queue and its completion queue, owned by one thread.
///
/// Commands are submitted, then [kicked](Self::kick) off together, then [polled](Self::poll) for. Neither allocates,
/// locks or makes a system call, unless the transport has to make one to ring a doorbell. Dropping it deletes the
/// queues, which ends what is in flight.
///
/// With [`crate::Options::recovery`] it outlives resets of the controller: see [`crate::recovery`].
///
/// # Memory
///
/// The memory that a command points into is the controller's from the command's submission until its token has come
/// back from [`Self::poll`], or this was dropped and the controller has obeyed, or the memory was taken away from the
/// controller ([`crate::DmaBuffer`] does so when dropped). A fault alone does not give it back: a controller that answers
/// nothing may still be writing.
pub struct QueuePair {
    queue: IoQueue,
    rings: Rings,
    commands: CommandIdentifiers,
    /// By command index.
    sent: Box<[Sent]>,
    /// Commands posted so far, and how many of them the controller has been told of, modulo 2^32.
    posted: u32,
    rung: u32,
    deadlines: Deadlines,
    state: State,
    pulse: Arc<Pulse>,
    /// [`Pulse::beats`] when everything was looked at.
    beats: u32,
    polls: u32,
    last_check: Instant,
    /// The completion queue entry that seemed passed over the last time.
    passed_over: Option<u16>,
    sgls: Sgls,
    depth: u16,
    qid: u16,
    max_transfer: u32,
    /// Whether the completion queue's head is always reported at once, because somebody sleeps on it.
    prompt: bool,
    lists: Lists,
}

/// Where a queue pair stands; see [`crate::recovery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Parked {
        /// Whether the old completion queue can be believed.
        trusted: bool,
        /// The generation in which new queues were asked for.
        asked: Option<u32>,
    },
    Broken(Fault),
}

/// A page list for each command: for its PRP list or ranges. It stays when the queues are made anew.
pub(crate) struct Lists {
    base: NonNull<u8>,
    iova: u64,
    /// In each list.
    pages: usize,
    page_size: u64,
    memory: Arc<Held>,
}

// SAFETY: the pointer is into memory that this owns and reaches by copying only; nothing is tied to a thread.
unsafe impl Send for Lists {}

impl Lists {
    /// The pages of a command.
    #[inline]
    fn of(&self, index: usize) -> PrpListPages {
        let offset = index * self.pages * self.page_size as usize;
        // SAFETY: there are `pages` pages for each of `depth` commands, of which `index` is one.
        let base = unsafe { self.base.add(offset) }.cast();
        let (pages, page_size) = (self.pages, self.page_size);
        PrpListPages { base, iova: self.iova + offset as u64, pages, page_size }
    }
}

/// Polls between two looks at deadlines and the controller's state, if no beat has called for them before.
const POLLS: u32 = 1 << 16;
/// At most so often is the clock looked at for that.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

impl QueuePair {
    /// Memory for the lists of as many commands as the queues will hold.
    pub(crate) fn allocate_lists(shared: &Shared) -> Result<Lists, Error> {
        let page_size = shared.memory_page_size();
        // Besides PRP lists, a command's page holds its Dataset Management ranges.
        let pages = prp::list_pages(shared.max_transfer().into(), page_size).max(1);
        let depth = (u32::from(shared.options().depth.max(1))).min(shared.cap().maximum_queue_entries() - 1);
        let memory = shared.space().allocate(depth as usize * pages * page_size as usize)?;
        let (base, iova) = (memory.base(), memory.iova());
        Ok(Lists { base, iova, pages, page_size, memory: memory.hold() })
    }

    pub(crate) fn new(queue: IoQueue, rings: Rings, lists: Lists) -> Self {
        let shared = queue.shared();
        // One entry always stays free, and identifiers are 16 bits, of which FFFFh is left alone.
        let depth = (rings.submission.size() - 1) as u16;
        let options = shared.options();
        let abort_timeout =
            options.recovery.as_ref().map_or(Duration::MAX, |recovery| recovery.abort_timeout);
        Self {
            rings,
            commands: CommandIdentifiers::new(depth),
            sent: vec![Sent::default(); depth.into()].into(),
            posted: 0,
            rung: 0,
            deadlines: Deadlines::new(options.io_timeout, abort_timeout),
            state: State::Running,
            pulse: shared.pulse().clone(),
            beats: shared.pulse().beats(),
            polls: 0,
            last_check: Instant::now(),
            passed_over: None,
            sgls: shared.sgls(),
            depth,
            qid: queue.qid(),
            max_transfer: shared.max_transfer(),
            prompt: queue.wait_fd().is_some(),
            lists,
            queue,
        }
    }

    /// The queues' identifier.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// How many commands can be in flight.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// How many commands are in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.commands.in_flight()
    }

    /// An eventfd that becomes readable when a completion may have come, to be slept on when polling finds nothing;
    /// the sleeper reads it, then polls. `None` without [`crate::Options::interrupts`].
    pub fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.queue.wait_fd()
    }

    /// Submits a command of which everything but the command identifier and the data pointer is set, with data.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    #[inline]
    pub fn submit_with_data(
        &mut self,
        command: SubmissionQueueEntry,
        data: &[DmaRange],
        token: u64,
    ) -> Result<(), SubmitError> {
        self.check_room()?;
        let index = self.commands.next().ok_or(SubmitError::Full)?;
        let list = self.lists.of(index);
        let command = match prp::build(data, &list) {
            Ok(prps) => command.with_prp(prps.prp1, prps.prp2),
            // Pieces that meet inside pages, or begin anywhere, are what SGLs are for.
            Err(error) => command.with_sgl(sgl::build(data, &list, self.sgls).ok_or(error)?),
        };
        self.post(command, token)
    }

    /// Submits a command as it is, but for its command identifier. What its data pointer says is the caller's
    /// business: the controller can reach nothing but DMA memory.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    #[inline]
    pub fn submit(&mut self, command: SubmissionQueueEntry, token: u64) -> Result<(), SubmitError> {
        self.check_room()?;
        self.post(command, token)
    }

    /// Lets the controller know of everything submitted since the last time. That it could not be told comes out in
    /// the next call of another kind.
    #[inline]
    pub fn kick(&mut self) {
        if self.state == State::Running {
            // What is wrong, if it stays so, comes out in the next poll.
            if self.is_stale() {
                let _ = self.stale();
            } else {
                self.rung = self.posted;
                if let Err(error) = self.rings.submission.ring() {
                    let _ = self.fault(self.doorbell_fault(&error));
                }
            }
            self.queue.link.set_outstanding(true);
        }
    }

    /// Takes what has completed: calls `completed` with each command's token and how it ended, and says how many
    /// there were. Every token comes back once, unless this is an error.
    ///
    /// With [`crate::Options::recovery`], commands that end without an answer of the controller's, and are not sent
    /// once more, end with [`Status::COMMAND_ABORTED_BY_HOST`] after a reset, and with [`Status::HOST_PATHING_ERROR`]
    /// once the controller was given up.
    ///
    /// # Errors
    ///
    /// The queue pair has broken, now or before: nothing that is in flight will complete. With recovery, nothing is.
    #[inline]
    pub fn poll(&mut self, mut completed: impl FnMut(u64, Result<(), Status>)) -> Result<usize, Fault> {
        self.poll_entries(|token, entry| completed(token, entry.result()))
    }

    /// As [`QueuePair::poll`], with the whole completion queue entry (for commands that return something in it).
    ///
    /// # Errors
    ///
    /// As [`QueuePair::poll`].
    #[inline]
    pub fn poll_entries(
        &mut self,
        mut completed: impl FnMut(u64, &CompletionQueueEntry),
    ) -> Result<usize, Fault> {
        if self.state != State::Running {
            return self.poll_parked(&mut completed);
        }
        let count = match self.take_completions(&mut completed) {
            Ok(count) => count,
            Err((fault, count)) => return self.fault_after(fault, count),
        };
        if count > 0 {
            // Then the doorbell is that of other queues, or about to be. What has completed, has.
            if self.is_stale() {
                let _ = self.stale();
                return Ok(count);
            }
            if let Err(error) = self.rings.completion.ring(self.depth.into(), self.prompt) {
                let fault = self.doorbell_fault(&error);
                return self.fault_after(fault, count);
            }
        }
        self.polls += 1;
        if self.pulse.beats() != self.beats || self.polls >= POLLS {
            self.look_around()?;
        }
        Ok(count)
    }

    /// Takes completions, up to one that cannot be.
    #[inline]
    fn take_completions(
        &mut self,
        mut completed: impl FnMut(u64, &CompletionQueueEntry),
    ) -> Result<usize, (Fault, usize)> {
        let mut count = 0;
        while let Some(entry) = self.rings.completion.take() {
            // One completion queue for one submission queue: there is nobody else that it could be for.
            if entry.sq_id != self.qid || u32::from(entry.sq_head) >= self.rings.submission.size() {
                let (qid, sqid, sqhd) = (self.qid, entry.sq_id, entry.sq_head);
                return Err((Fault::WrongQueue { qid, sqid, sqhd }, count));
            }
            let Some(token) = self.commands.complete(entry.cid) else {
                return Err((Fault::UnknownCid { qid: self.qid, cid: entry.cid }, count));
            };
            completed(token, &entry);
            count += 1;
        }
        Ok(count)
    }

    /// Looks at deadlines and at the state of the controller. Polling does so now and then; whoever sleeps on
    /// [`QueuePair::wait_fd`] without [`crate::Options::recovery`] has to, each time that the sleep was a long one.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::poll`].
    pub fn check(&mut self) -> Result<(), Fault> {
        match self.state {
            State::Broken(fault) => Err(fault),
            // The next poll sees to it.
            State::Parked { .. } => Ok(()),
            State::Running if self.is_stale() => self.stale(),
            State::Running => self.check_commands(),
        }
    }

    /// Whether the controller has been reset since its queues were created.
    #[inline]
    fn is_stale(&self) -> bool {
        self.queue.generation != self.pulse.generation()
    }

    fn check_commands(&mut self) -> Result<(), Fault> {
        // Reading a register may cost a message or an exit, and here is no beat to wait for.
        let recovers = self.recovers();
        let now = Instant::now();
        if self.commands.in_flight() == 0 || (!recovers && now - self.last_check < CHECK_INTERVAL) {
            return Ok(());
        }
        self.last_check = now;
        let passed_over = self.rings.completion.passed_over();
        if let Some(entry) = passed_over.filter(|_| passed_over == self.passed_over) {
            return self.fault(Fault::Phase { qid: self.qid, entry });
        }
        // Entries may become visible out of order, for a moment.
        self.passed_over = passed_over;
        let shared = self.queue.shared();
        let limit = shared.options().io_timeout;
        match self.deadlines.look(&mut self.commands, now) {
            Verdict::InTime if recovers => Ok(()),
            Verdict::InTime => match shared.health() {
                Ok(()) => Ok(()),
                Err(fault) => self.fault(fault),
            },
            Verdict::Expired(cid) if recovers => {
                shared.counters().expired.fetch_add(1, Ordering::Relaxed);
                let (qid, generation) = (self.qid, self.queue.generation);
                shared.inbox().ask(Request::Abort { qid, cid, generation });
                Ok(())
            }
            Verdict::Expired(cid) | Verdict::TooLate(cid) => {
                self.fault(Fault::Expired { qid: self.qid, cid, limit })
            }
        }
    }

    #[inline]
    fn check_room(&self) -> Result<(), SubmitError> {
        match self.state {
            State::Broken(fault) => Err(fault.into()),
            State::Running | State::Parked { .. } => Ok(()),
        }
    }

    #[inline]
    fn post(&mut self, mut command: SubmissionQueueEntry, token: u64) -> Result<(), SubmitError> {
        let (index, cid) = self.commands.take(token).ok_or(SubmitError::Full)?;
        command.cid = cid;
        self.posted = self.posted.wrapping_add(1);
        self.sent[index].keep(&command, self.posted);
        if self.state == State::Running {
            self.rings.submission.post(&command);
        }
        Ok(())
    }

    #[cold]
    fn doorbell_fault(&self, error: &std::io::Error) -> Fault {
        Fault::Doorbell {
            qid: self.qid,
            errno: error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()),
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.queue.close([self.rings.memory(), &self.lists.memory]);
    }
}
