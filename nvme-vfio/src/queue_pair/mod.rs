//! An I/O queue pair: what a thread reads and writes through.

mod commands;

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nvme_spec::identify::Sgls;
use nvme_spec::{CompletionQueueEntry, Status, SubmissionQueueEntry};

use crate::command_identifier::CommandIdentifiers;
use crate::dma::{DmaBuffer, DmaRange};
use crate::error::Fault;
use crate::io_queue::IoQueue;
use crate::prp::{self, PrpError, PrpListPages};
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::sgl;

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
pub struct QueuePair {
    submission: SubmissionQueue,
    completion: CompletionQueue,
    commands: CommandIdentifiers,
    /// For each command identifier, so many bytes for its PRP list or ranges.
    lists: NonNull<u8>,
    lists_iova: u64,
    list_pages: usize,
    page_size: u64,
    sgls: Sgls,
    depth: u16,
    qid: u16,
    max_transfer: u32,
    /// Whether the completion queue's head is always reported at once, because somebody sleeps on it.
    prompt: bool,
    fault: Option<Fault>,
    idle_polls: u32,
    last_check: Instant,
    /// Gives the queues back when dropped; declared before the memory.
    queue: IoQueue,
    _memory: DmaBuffer,
}

// SAFETY: the pointer is into memory that this owns and reaches by copying only; nothing is tied to a thread.
unsafe impl Send for QueuePair {}

/// Polls without a completion between two looks at deadlines and the controller's state.
const IDLE_POLLS: u32 = 1 << 16;
/// At most so often are registers read to see how the controller is.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The memory of a queue pair.
pub(crate) struct QueueMemory {
    pub(crate) memory: DmaBuffer,
    /// Where the PRP lists are in it.
    pub(crate) lists: usize,
    /// Pages in each of them.
    pub(crate) list_pages: usize,
}

impl QueuePair {
    pub(crate) fn new(
        queue: IoQueue,
        submission: SubmissionQueue,
        completion: CompletionQueue,
        memory: QueueMemory,
        prompt: bool,
    ) -> Self {
        let shared = queue.shared();
        let (page_size, max_transfer) = (shared.memory_page_size(), shared.max_transfer());
        let sgls = shared.sgls();
        // One entry always stays free, and identifiers are 16 bits, of which FFFFh is left alone.
        let depth = (submission.size() - 1) as u16;
        let QueueMemory { memory, lists, list_pages } = memory;
        // SAFETY: whoever made the memory says that the lists are inside it.
        let base = unsafe { memory.base().add(lists) };
        Self {
            submission,
            completion,
            commands: CommandIdentifiers::new(depth),
            lists: base,
            lists_iova: memory.iova() + lists as u64,
            list_pages,
            page_size,
            sgls,
            depth,
            qid: queue.qid(),
            max_transfer,
            prompt,
            fault: None,
            idle_polls: 0,
            last_check: Instant::now(),
            queue,
            _memory: memory,
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
        let cid = self.commands.next().ok_or(SubmitError::Full)?;
        let list = self.list(cid);
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
        if self.fault.is_none() {
            if self.queue.is_stale() {
                self.fault = Some(Fault::Reset);
            } else if let Err(error) = self.submission.ring() {
                self.fault = Some(self.doorbell_fault(&error));
            }
        }
    }

    /// Takes what has completed: calls `completed` with each command's token and how it ended, and says how many
    /// there were.
    ///
    /// # Errors
    ///
    /// The queue pair has broken, now or before: nothing that is in flight will complete.
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
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut count = 0;
        while let Some(entry) = self.completion.take() {
            // One completion queue for one submission queue: there is nobody else that it could be for.
            if entry.sq_id != self.qid || u32::from(entry.sq_head) >= self.submission.size() {
                let (qid, sqid, sqhd) = (self.qid, entry.sq_id, entry.sq_head);
                return Err(self.broken(Fault::WrongQueue { qid, sqid, sqhd }));
            }
            let Some(token) = self.commands.complete(entry.cid) else {
                return Err(self.broken(Fault::UnknownCid { qid: self.qid, cid: entry.cid }));
            };
            completed(token, &entry);
            count += 1;
        }
        if count > 0 {
            self.idle_polls = 0;
            if let Err(error) = self.completion.ring(self.depth.into(), self.prompt) {
                let fault = self.doorbell_fault(&error);
                return Err(self.broken(fault));
            }
        } else {
            self.idle_polls += 1;
            if self.idle_polls >= IDLE_POLLS {
                self.idle_polls = 0;
                self.check()?;
            }
        }
        Ok(count)
    }

    /// Looks at deadlines and at the state of the controller. Polling does so now and then; whoever sleeps on
    /// [`QueuePair::wait_fd`] has to, each time that the sleep was a long one.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::poll`].
    pub fn check(&mut self) -> Result<(), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.queue.is_stale() {
            return Err(self.broken(Fault::Reset));
        }
        // Reading a register may cost a message or an exit.
        let now = Instant::now();
        if self.commands.in_flight() == 0 || now - self.last_check < CHECK_INTERVAL {
            return Ok(());
        }
        self.last_check = now;
        let limit = self.queue.shared().io_timeout();
        if let Some(cid) = self.commands.expired(now, limit) {
            return Err(self.broken(Fault::Expired { qid: self.qid, cid, limit }));
        }
        self.queue.shared().health().map_err(|fault| self.broken(fault))
    }

    #[inline]
    fn check_room(&self) -> Result<(), SubmitError> {
        match self.fault {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        }
    }

    #[inline]
    fn post(&mut self, mut command: SubmissionQueueEntry, token: u64) -> Result<(), SubmitError> {
        command.cid = self.commands.take(token).ok_or(SubmitError::Full)?;
        self.submission.post(&command);
        Ok(())
    }

    /// The PRP list pages of a command.
    #[inline]
    fn list(&self, cid: u16) -> PrpListPages {
        let offset = usize::from(cid) * self.list_pages * self.page_size as usize;
        // SAFETY: there are `list_pages` pages for each of `depth` identifiers, of which `cid` is one.
        let base = unsafe { self.lists.add(offset) }.cast();
        let (pages, page_size) = (self.list_pages, self.page_size);
        PrpListPages { base, iova: self.lists_iova + offset as u64, pages, page_size }
    }

    #[cold]
    fn broken(&mut self, fault: Fault) -> Fault {
        self.fault = Some(fault);
        fault
    }

    #[cold]
    fn doorbell_fault(&self, error: &std::io::Error) -> Fault {
        Fault::Doorbell {
            qid: self.qid,
            errno: error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()),
        }
    }
}
