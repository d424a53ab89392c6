//! The admin commands about queues (NVM Express Base Specification 2.0, 5.4 to 5.7): create and delete, and those that
//! need to know the queues: Abort, Doorbell Buffer Config.

use super::control::{Control, Then};
use super::registers::MAX_QUEUE_ENTRIES;
use crate::memory::{Access, MemoryMap};
use crate::reactor::completion_queue::CompletionQueueParameters;
use crate::reactor::message::{ControllerIndex, ShardRequest};
use crate::reactor::submission_queue::SubmissionQueueParameters;
use nvme_spec::admin_command::{
    Abort, CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue, DoorbellBufferConfig,
};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};
use std::collections::BTreeMap;

/// The I/O queues that exist, by identifier.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    completion: BTreeMap<u16, Completion>,
    submission: BTreeMap<u16, Submission>,
}

#[derive(Debug)]
struct Completion {
    reactor: usize,
    vector: Option<u16>,
}

#[derive(Debug)]
struct Submission {
    reactor: usize,
    cqid: u16,
    /// Its deletion is under way.
    deleting: bool,
}

impl Queues {
    pub(super) fn clear(&mut self) {
        self.completion.clear();
        self.submission.clear();
    }

    pub(super) fn any(&self) -> bool {
        !self.completion.is_empty() || !self.submission.is_empty()
    }

    pub(super) fn has_vector(&self, vector: u16) -> bool {
        self.completion.values().any(|cq| cq.vector == Some(vector))
    }
}

impl Control {
    /// Executes one of these commands.
    pub(super) fn queue_command(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) {
        let result = match AdminOpcode(sqe.opcode) {
            AdminOpcode::CREATE_IO_COMPLETION_QUEUE => self.create_cq(index, sqe),
            AdminOpcode::CREATE_IO_SUBMISSION_QUEUE => self.create_sq(index, sqe),
            AdminOpcode::DELETE_IO_COMPLETION_QUEUE => self.delete_cq(index, sqe),
            AdminOpcode::DELETE_IO_SUBMISSION_QUEUE => self.delete_sq(index, sqe),
            AdminOpcode::DOORBELL_BUFFER_CONFIG => self.doorbell_buffers(index, sqe),
            AdminOpcode::ABORT => {
                let dw0 = self.abort(index, sqe);
                return self.complete(index, sqe, Ok(dw0));
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        };
        if let Err(status) = result {
            self.complete(index, sqe, Err(status));
        }
    }

    /// Completes the command when the reactor has done its part, successfully unless that failed.
    fn completes(&self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Then {
        let sqe = *sqe;
        Box::new(move |control, result| {
            let result = result.map(|()| 0).map_err(|_| Status::INTERNAL_ERROR);
            control.complete(index, &sqe, result);
        })
    }

    fn create_cq(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let command: CreateIoCompletionQueue = sqe.dwords();
        let reactors = self.reactors.len();
        let controller = &mut self.controllers[index];
        let (id, size) = (command.qid(), command.queue_size());
        let granted = controller.admin.features().number_of_queues();
        if id == 0
            || u32::from(id) > granted.completion_queues()
            || controller.queues.completion.contains_key(&id)
        {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if command.ien() && command.iv() > controller.shared.io_queues {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
        }
        let cc = controller.shared.registers.cc();
        let layout =
            Layout { contiguous: command.pc(), size, base: sqe.prp1, page_size: cc.memory_page_size() };
        let entry = size_of::<CompletionQueueEntry>();
        layout.check(&controller.map, entry, cc.iocqes(), Access::Write)?;
        let parameters = CompletionQueueParameters {
            id,
            size,
            base: sqe.prp1,
            vector: command.iv(),
            interrupts: command.ien(),
        };
        // The admin queue is at home; I/O queues go round the reactors from there.
        let reactor = (controller.shared.home + usize::from(id) - 1) % reactors;
        let vector = command.ien().then_some(command.iv());
        controller.queues.completion.insert(id, Completion { reactor, vector });
        let then = self.completes(index, sqe);
        self.ask(index, reactor, ShardRequest::AddCompletionQueue(parameters), then);
        Ok(())
    }

    fn create_sq(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let command: CreateIoSubmissionQueue = sqe.dwords();
        let controller = &mut self.controllers[index];
        let (id, size, cqid) = (command.qid(), command.queue_size(), command.cqid());
        let granted = controller.admin.features().number_of_queues();
        if id == 0
            || u32::from(id) > granted.submission_queues()
            || controller.queues.submission.contains_key(&id)
        {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if cqid == 0 || u32::from(cqid) > granted.completion_queues() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        let Some(cq) = controller.queues.completion.get(&cqid) else {
            return Err(Status::COMPLETION_QUEUE_INVALID.with_dnr());
        };
        let cc = controller.shared.registers.cc();
        let layout =
            Layout { contiguous: command.pc(), size, base: sqe.prp1, page_size: cc.memory_page_size() };
        let entry = size_of::<SubmissionQueueEntry>();
        layout.check(&controller.map, entry, cc.iosqes(), Access::Read)?;
        let reactor = cq.reactor;
        controller.queues.submission.insert(id, Submission { reactor, cqid, deleting: false });
        let parameters = SubmissionQueueParameters { id, size, base: sqe.prp1, cqid };
        let then = self.completes(index, sqe);
        self.ask(index, reactor, ShardRequest::AddSubmissionQueue(parameters), then);
        Ok(())
    }

    fn delete_sq(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let command: DeleteIoQueue = sqe.dwords();
        let controller = &mut self.controllers[index];
        let id = command.qid();
        let Some(sq) = controller.queues.submission.get_mut(&id).filter(|sq| !sq.deleting) else {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        };
        sq.deleting = true;
        let (reactor, sqe) = (sq.reactor, *sqe);
        let then: Then = Box::new(move |control, _| {
            control.controllers[index].queues.submission.remove(&id);
            control.complete(index, &sqe, Ok(0));
        });
        self.ask(index, reactor, ShardRequest::DeleteSubmissionQueue(id), then);
        Ok(())
    }

    fn delete_cq(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let command: DeleteIoQueue = sqe.dwords();
        let controller = &mut self.controllers[index];
        let id = command.qid();
        if controller.queues.submission.values().any(|sq| sq.cqid == id) {
            return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
        }
        let Some(cq) = controller.queues.completion.remove(&id) else {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        };
        let then = self.completes(index, sqe);
        self.ask(index, cq.reactor, ShardRequest::DeleteCompletionQueue(id), then);
        Ok(())
    }

    /// Dword 0 of the completion: bit 0 says that the command was not aborted. Commands of I/O queues are at the disk
    /// as soon as they are fetched, and disks finish what they began; what can be aborted are event requests.
    fn abort(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> u32 {
        let command: Abort = sqe.dwords();
        let controller = &mut self.controllers[index];
        if command.sqid() != 0 || !controller.admin.abort_event_request(command.cid()) {
            return Abort::NOT_ABORTED;
        }
        let (cid, status) = (command.cid(), Status::ABORTED_BY_REQUEST);
        controller.to_home(ShardRequest::CompleteParked { cid, status, dw0: 0 });
        0
    }

    fn doorbell_buffers(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) -> Result<(), Status> {
        let command: DoorbellBufferConfig = sqe.dwords();
        let controller = &self.controllers[index];
        let page_size = controller.shared.registers.cc().memory_page_size();
        for base in [command.shadow_doorbells, command.event_idx] {
            if base & (page_size - 1) != 0 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            for access in [Access::Read, Access::Write] {
                let page = controller.map.translate(base, 4096, access, &mut 0);
                page.map_err(|_| Status::INVALID_FIELD.with_dnr())?;
            }
        }
        let (doorbells, event_indexes) = (command.shadow_doorbells, command.event_idx);
        let request = || ShardRequest::ShadowDoorbells { doorbells, event_indexes };
        let then = self.completes(index, sqe);
        self.ask_all(index, request, then);
        Ok(())
    }
}

/// What both Create commands say of a queue.
struct Layout {
    contiguous: bool,
    size: u32,
    base: u64,
    page_size: u64,
}

impl Layout {
    fn check(
        &self,
        map: &MemoryMap,
        entry_size: usize,
        entry_shift: u8,
        access: Access,
    ) -> Result<(), Status> {
        if self.size < 2 || self.size > MAX_QUEUE_ENTRIES || 1 << entry_shift != entry_size {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        // CAP.CQR is 1: queues are contiguous.
        if !self.contiguous {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if self.base & (self.page_size - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        let len = self.size as usize * entry_size;
        map.translate(self.base, len, access, &mut 0).map_err(|_| Status::DATA_TRANSFER_ERROR.with_dnr())?;
        Ok(())
    }
}
