//! Creating and deleting I/O queues.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nvme_spec::admin_command::{CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue};
use nvme_spec::doorbell::Doorbell as DoorbellIndex;
use nvme_spec::{AdminOpcode, CompletionQueueEntry, SubmissionQueueEntry};
use rustix::event::EventfdFlags;

use crate::controller::Shared;
use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::prp;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::queue_pair::{QueueMemory, QueuePair};

/// The right to a queue identifier, and what the controller has been told about it; dropping it takes all back.
pub(crate) struct IoQueue {
    shared: Arc<Shared>,
    qid: u16,
    generation: u32,
    /// The vector and the eventfd that it is connected to.
    interrupt: Option<(u16, OwnedFd)>,
    completion_created: bool,
    submission_created: bool,
}

/// Creates a queue pair.
pub(crate) fn create(shared: &Arc<Shared>) -> Result<QueuePair, Error> {
    let mut queue = IoQueue::new(shared)?;
    if shared.options().interrupts {
        queue.connect_interrupt()?;
    }
    let (submission_size, completion_size) = sizes(shared);
    let page = shared.memory_page_size() as usize;
    let submission_len =
        (submission_size as usize * size_of::<SubmissionQueueEntry>()).next_multiple_of(page);
    let completion_len =
        (completion_size as usize * size_of::<CompletionQueueEntry>()).next_multiple_of(page);
    // Besides PRP lists, a command's page holds its Dataset Management ranges.
    let list_pages = prp::list_pages(shared.max_transfer().into(), page as u64).max(1);
    let lists = submission_len + completion_len;
    let memory = shared.space().allocate(lists + (submission_size as usize - 1) * list_pages * page)?;

    queue.create_completion_queue(completion_size, memory.iova() + submission_len as u64)?;
    queue.create_submission_queue(submission_size, memory.iova())?;

    let doorbell = |index| {
        let shadow = shared.shadow().and_then(|shadow| shadow.shadow(index));
        Doorbell::new(shared.registers().transport(), index, shared.cap().dstrd(), shadow)
    };
    let tail = doorbell(DoorbellIndex::SubmissionQueueTail(queue.qid));
    let head = doorbell(DoorbellIndex::CompletionQueueHead(queue.qid));
    // SAFETY: new, zeroed pages of which the queues take disjoint parts, aligned to pages; the queue pair keeps them
    // as long as the queues.
    let (submission, completion) = unsafe {
        (
            SubmissionQueue::new(memory.base().cast(), submission_size, tail),
            CompletionQueue::new(memory.base().add(submission_len).cast(), completion_size, head),
        )
    };
    let prompt = queue.interrupt.is_some();
    let memory = QueueMemory { memory, lists, list_pages };
    Ok(QueuePair::new(queue, submission, completion, memory, prompt))
}

/// Entries of the submission and the completion queue. The latter has twice as many if that may be: then its doorbell
/// has to be rung only once in many commands.
fn sizes(shared: &Shared) -> (u32, u32) {
    let max = shared.cap().maximum_queue_entries();
    let submission = (u32::from(shared.options().depth.max(1)) + 1).min(max);
    (submission, (2 * submission).min(max))
}

impl IoQueue {
    fn new(shared: &Arc<Shared>) -> Result<Self, Error> {
        let mut ids = shared.queue_ids();
        let free = (1..=ids.granted).find(|qid| !ids.taken.contains(qid));
        let Some(qid) = free else {
            let granted = ids.granted;
            return Err(shared.unsupported(format!("all {granted} I/O queues are in use")));
        };
        ids.taken.insert(qid);
        Ok(Self {
            shared: shared.clone(),
            qid,
            generation: shared.generation(),
            interrupt: None,
            completion_created: false,
            submission_created: false,
        })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }

    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(|(_, eventfd)| eventfd.as_fd())
    }

    /// Whether the controller has been reset since.
    #[inline]
    pub(crate) fn is_stale(&self) -> bool {
        self.generation != self.shared.generation()
    }

    /// Gives the queue a vector of its own: the first is the admin queue's, which nobody sleeps on, so that a
    /// controller with a single vector has it for its first queue.
    fn connect_interrupt(&mut self) -> Result<(), Error> {
        let transport = self.shared.registers().transport();
        let vectors = transport.interrupt_vectors();
        let vector = if vectors == 1 { self.qid - 1 } else { self.qid };
        if u32::from(vector) >= vectors {
            let what = format!(
                "there is no interrupt vector for queue {} of a controller with {vectors}; use fewer queues, or poll",
                self.qid
            );
            return Err(self.shared.unsupported(what));
        }
        let connect = || {
            let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            transport.set_interrupts(vector.into(), &[Some(eventfd.as_fd())])?;
            Ok(eventfd)
        };
        let eventfd = connect().map_err(|source| {
            let doing = format!("connecting interrupt vector {vector}");
            Error::Transport { name: transport.name().into(), doing, source }
        })?;
        self.interrupt = Some((vector, eventfd));
        Ok(())
    }

    fn create_completion_queue(&mut self, size: u32, iova: u64) -> Result<(), Error> {
        let interrupt = self.interrupt.as_ref().map(|(vector, _)| *vector);
        let dwords = CreateIoCompletionQueue::new()
            .with_qid(self.qid)
            .with_queue_size(size)
            .with_pc(true)
            .with_ien(interrupt.is_some())
            .with_iv(interrupt.unwrap_or(0));
        let command = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0);
        self.shared.run(self.generation, [command.with_dwords(dwords).with_prp(iova, 0)])?;
        self.completion_created = true;
        Ok(())
    }

    fn create_submission_queue(&mut self, size: u32, iova: u64) -> Result<(), Error> {
        let dwords = CreateIoSubmissionQueue::new()
            .with_qid(self.qid)
            .with_queue_size(size)
            .with_pc(true)
            .with_cqid(self.qid);
        let command = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0);
        self.shared.run(self.generation, [command.with_dwords(dwords).with_prp(iova, 0)])?;
        self.submission_created = true;
        Ok(())
    }

    /// Has the controller end what is in flight and forget the queues.
    fn delete(&mut self) -> Result<(), Error> {
        let delete = |opcode, created: bool| {
            let dwords = DeleteIoQueue::new().with_qid(self.qid);
            created.then(|| SubmissionQueueEntry::new(opcode, 0).with_dwords(dwords))
        };
        let submission = delete(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, self.submission_created);
        let completion = delete(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, self.completion_created);
        self.shared.run(self.generation, submission.into_iter().chain(completion))
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        // A reset has deleted the queues; a controller that is not well would only be waited for.
        if !self.is_stale() && self.shared.health().is_ok() {
            let deleted = self.delete();
            if let Err(error) = deleted {
                tracing::warn!("deleting queue {}: {error}", self.qid);
            }
        }
        if let Some((vector, _)) = self.interrupt {
            let disconnected = self.shared.registers().transport().set_interrupts(vector.into(), &[None]);
            if let Err(error) = disconnected {
                tracing::debug!("disconnecting interrupt vector {vector}: {error}");
            }
        }
        self.shared.queue_ids().taken.remove(&self.qid);
    }
}
