//! Creating and deleting I/O queues.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nvme_spec::admin_command::{CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue};
use nvme_spec::doorbell::Doorbell as DoorbellIndex;
use nvme_spec::{AdminOpcode, CompletionQueueEntry, SubmissionQueueEntry};
use rustix::event::EventfdFlags;

use crate::admin::{AdminData, AdminQueue};
use crate::controller::{Handle, Shared};
use crate::dma::Held;
use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::queue_pair::QueuePair;
use crate::recovery::link::Link;

/// The queues of a queue pair, as the controller knows them in one generation: between two resets.
pub(crate) struct Rings {
    pub(crate) submission: SubmissionQueue,
    pub(crate) completion: CompletionQueue,
    /// Resets before they were created.
    pub(crate) generation: u32,
    /// Declared after the queues, which point into it.
    memory: Arc<Held>,
}

impl Rings {
    /// Creates the queues, in new memory: whatever a controller may still do for commands from before a reset, it does
    /// elsewhere.
    pub(crate) fn create(
        shared: &Shared,
        admin: &mut AdminQueue,
        qid: u16,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let (submission_size, completion_size) = sizes(shared);
        let page = shared.memory_page_size() as usize;
        let submission_len =
            (submission_size as usize * size_of::<SubmissionQueueEntry>()).next_multiple_of(page);
        let completion_len = completion_size as usize * size_of::<CompletionQueueEntry>();
        let memory = shared.space().allocate(submission_len + completion_len)?;
        // Before the controller has the queues: from then on it looks at their shadows.
        let doorbell = |index| {
            let shadow = shared.shadow().and_then(|shadow| shadow.shadow(index));
            Doorbell::new(shared.registers().transport(), index, shared.cap().dstrd(), shadow)
        };
        let tail = doorbell(DoorbellIndex::SubmissionQueueTail(qid));
        let head = doorbell(DoorbellIndex::CompletionQueueHead(qid));
        create_completion_queue(
            shared,
            admin,
            (qid, completion_size, vector),
            memory.iova() + submission_len as u64,
        )?;
        if let Err(error) = create_submission_queue(shared, admin, (qid, submission_size), memory.iova()) {
            // The memory is about to go.
            let deleted = delete(shared, admin, AdminOpcode::DELETE_IO_COMPLETION_QUEUE, qid);
            deleted.unwrap_or_else(|error| tracing::warn!("deleting completion queue {qid}: {error}"));
            return Err(error);
        }
        // SAFETY: new, zeroed pages of which the queues take disjoint parts, aligned to pages; the struct keeps them as
        // long as the queues.
        let (submission, completion) = unsafe {
            (
                SubmissionQueue::new(memory.base().cast(), submission_size, tail),
                CompletionQueue::new(memory.base().add(submission_len).cast(), completion_size, head),
            )
        };
        Ok(Self { submission, completion, generation: shared.generation(), memory: memory.hold() })
    }

    /// What the queues are in.
    pub(crate) fn memory(&self) -> &Arc<Held> {
        &self.memory
    }
}

/// Entries of the submission and the completion queue. The latter has twice as many if that may be: then its doorbell
/// has to be rung only once in many commands.
fn sizes(shared: &Shared) -> (u32, u32) {
    let max = shared.cap().maximum_queue_entries();
    let submission = (u32::from(shared.options().depth.max(1)) + 1).min(max);
    (submission, (2 * submission).min(max))
}

fn create_completion_queue(
    shared: &Shared,
    admin: &mut AdminQueue,
    (qid, size, vector): (u16, u32, Option<u16>),
    iova: u64,
) -> Result<(), Error> {
    let dwords = CreateIoCompletionQueue::new()
        .with_qid(qid)
        .with_queue_size(size)
        .with_pc(true)
        .with_ien(vector.is_some())
        .with_iv(vector.unwrap_or(0));
    let command = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0);
    run(shared, admin, command.with_dwords(dwords).with_prp(iova, 0))
}

fn create_submission_queue(
    shared: &Shared,
    admin: &mut AdminQueue,
    (qid, size): (u16, u32),
    iova: u64,
) -> Result<(), Error> {
    let dwords =
        CreateIoSubmissionQueue::new().with_qid(qid).with_queue_size(size).with_pc(true).with_cqid(qid);
    let command = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0);
    run(shared, admin, command.with_dwords(dwords).with_prp(iova, 0))
}

fn delete(shared: &Shared, admin: &mut AdminQueue, opcode: AdminOpcode, qid: u16) -> Result<(), Error> {
    let dwords = DeleteIoQueue::new().with_qid(qid);
    run(shared, admin, SubmissionQueueEntry::new(opcode, 0).with_dwords(dwords))
}

fn run(shared: &Shared, admin: &mut AdminQueue, command: SubmissionQueueEntry) -> Result<(), Error> {
    admin.run(command, AdminData::None, shared.options().admin_timeout).map(drop)
}

/// The right to a queue identifier; dropping it gives it back.
struct QueueId {
    shared: Arc<Handle>,
    qid: u16,
}

impl QueueId {
    /// Takes the first of these identifiers that is free.
    fn take(shared: &Arc<Handle>, mut from: impl Iterator<Item = u16>) -> Option<Self> {
        let mut ids = shared.queue_ids();
        let qid = from.find(|qid| !ids.taken.contains(qid))?;
        ids.taken.insert(qid);
        Some(Self { shared: shared.clone(), qid })
    }
}

impl Drop for QueueId {
    fn drop(&mut self) {
        self.shared.queue_ids().taken.remove(&self.qid);
    }
}

/// A vector and the eventfd that it is connected to, until this is dropped.
struct Interrupt {
    shared: Arc<Handle>,
    vector: u16,
    eventfd: Arc<OwnedFd>,
}

impl Interrupt {
    /// How many queues can have a vector of their own: the first is the admin queue's, which nobody sleeps on, so that a
    /// controller with a single vector has it for its first queue.
    fn most(vectors: u32) -> u16 {
        let most = if vectors == 1 { 1 } else { vectors.saturating_sub(1) };
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    /// Gives one of those queues its vector.
    fn connect(shared: &Arc<Handle>, qid: u16) -> Result<Self, Error> {
        let transport = shared.registers().transport();
        let vector = if transport.interrupt_vectors() == 1 { qid - 1 } else { qid };
        let connect = || {
            let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            transport.set_interrupts(vector.into(), &[Some(eventfd.as_fd())])?;
            Ok(eventfd)
        };
        let eventfd = connect().map_err(|source| {
            let doing = format!("connecting interrupt vector {vector}");
            Error::Transport { name: transport.name().into(), doing, source }
        })?;
        Ok(Self { shared: shared.clone(), vector, eventfd: Arc::new(eventfd) })
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let transport = self.shared.registers().transport();
        if let Err(error) = transport.set_interrupts(self.vector.into(), &[None]) {
            tracing::debug!("disconnecting interrupt vector {}: {error}", self.vector);
        }
    }
}

/// What a queue pair holds of its controller; dropping it, after [`IoQueue::close`], gives all back.
pub(crate) struct IoQueue {
    /// Resets before the queues were created that the controller has now.
    pub(crate) generation: u32,
    pub(crate) link: Arc<Link>,
    interrupt: Option<Interrupt>,
    id: QueueId,
}

/// How many queue pairs there can be: as many as were granted and, if they have interrupts, as there are vectors for.
pub(crate) fn most(shared: &Shared) -> u16 {
    let granted = shared.queue_ids().granted;
    if shared.options().interrupts {
        granted.min(Interrupt::most(shared.registers().transport().interrupt_vectors()))
    } else {
        granted
    }
}

/// Creates a queue pair.
pub(crate) fn create(shared: &Arc<Handle>) -> Result<QueuePair, Error> {
    let most = most(shared);
    let Some(id) = QueueId::take(shared, 1..=most) else {
        let (granted, vectors) =
            (shared.queue_ids().granted, shared.registers().transport().interrupt_vectors());
        let what = if most < granted {
            let qid = most + 1;
            format!(
                "there is no interrupt vector for queue {qid} of a controller with {vectors}; use fewer queues, or poll"
            )
        } else {
            format!("all {granted} I/O queues are in use")
        };
        return Err(shared.unsupported(what));
    };
    let interrupt = shared.options().interrupts.then(|| Interrupt::connect(shared, id.qid)).transpose()?;
    create_with(shared, id, interrupt)
}

/// Creates a queue pair without an interrupt, of the identifiers that are handed out last.
pub(crate) fn create_polled(shared: &Arc<Handle>) -> Result<QueuePair, Error> {
    let granted = shared.queue_ids().granted;
    let id = QueueId::take(shared, (1..=granted).rev());
    let id = id.ok_or_else(|| shared.unsupported(format!("all {granted} I/O queues are in use")))?;
    create_with(shared, id, None)
}

fn create_with(shared: &Arc<Handle>, id: QueueId, interrupt: Option<Interrupt>) -> Result<QueuePair, Error> {
    let vector = interrupt.as_ref().map(|interrupt| interrupt.vector);
    let lists = QueuePair::allocate_lists(shared)?;
    let rings = {
        let mut admin = shared.admin();
        shared.check_usable()?;
        Rings::create(shared, &mut admin, id.qid, vector)?
    };
    let eventfd = interrupt.as_ref().map(|interrupt| interrupt.eventfd.clone());
    let link = Arc::new(Link::new(id.qid, vector, eventfd));
    shared.links().insert(id.qid, link.clone());
    let queue = IoQueue { generation: rings.generation, link, interrupt, id };
    Ok(QueuePair::new(queue, rings, lists))
}

impl IoQueue {
    pub(crate) fn shared(&self) -> &Shared {
        &self.id.shared
    }

    pub(crate) fn qid(&self) -> u16 {
        self.id.qid
    }

    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(|interrupt| interrupt.eventfd.as_fd())
    }

    /// Has the controller end what is in flight and forget the queues. What it may go on looking at, because it did not, is
    /// kept: `memory`, of which the queue pair is about to let go.
    pub(crate) fn close(&self, memory: [&Arc<Held>; 2]) {
        self.shared().links().remove(&self.qid());
        // New rings that the queue pair did not come to fetch exist all the same; they go when the controller has
        // forgotten them.
        let undelivered = self.link.close();
        let generation = undelivered.as_ref().map_or(self.generation, |rings| rings.generation);
        if !self.delete(generation) {
            let undelivered = undelivered.iter().map(|rings| rings.memory());
            self.shared().keep(memory.into_iter().chain(undelivered).cloned());
        }
    }

    /// Whether the controller does nothing with the queues of this generation any more, because it has forgotten them or
    /// has been stopped.
    fn delete(&self, generation: u32) -> bool {
        // A reset holds this lock too.
        let mut admin = self.shared().admin();
        if self.shared().was_stopped_since(generation) {
            return true;
        }
        // A controller that is not well would only be waited for.
        if generation != self.shared().generation() || self.shared().health().is_err() {
            return false;
        }
        let deleted = delete(self.shared(), &mut admin, AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, self.qid())
            .and_then(|()| {
                delete(self.shared(), &mut admin, AdminOpcode::DELETE_IO_COMPLETION_QUEUE, self.qid())
            });
        deleted.inspect_err(|error| tracing::warn!("deleting queue {}: {error}", self.qid())).is_ok()
    }
}
