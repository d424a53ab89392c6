//! Commands that cannot be carried out end with the specification's status, and the controller goes on.

mod rig;

use nvme_spec::admin_command::{CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue};
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::{AdminOpcode, CommandFlags, NvmOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Controller, Error, Options, QueuePair};
use rig::{Emulated, PLACES, Rig, run};

fn opened(check: impl Fn(&Controller, &mut QueuePair)) {
    for place in PLACES {
        let options = Options { queues: 2, ..Options::default() };
        let rig = Rig::new(place, Emulated::default(), options);
        let mut queue = rig.controller.queue_pair().unwrap();
        check(&rig.controller, &mut queue);
        // It still works.
        let namespace = rig.controller.namespace(1).unwrap();
        assert_eq!(run(&mut queue, |queue| queue.flush(&namespace, 0)), Ok(()));
    }
}

/// A status without the bits that do not tell what happened.
fn code(result: Result<(), Status>) -> Result<(), Status> {
    result.map_err(Status::code)
}

fn io(queue: &mut QueuePair, command: SubmissionQueueEntry) -> Result<(), Status> {
    code(run(queue, |queue| queue.submit(command, 0)))
}

fn admin(controller: &Controller, command: SubmissionQueueEntry) -> Result<(), Status> {
    match controller.admin(command, AdminData::None) {
        Ok(_) => Ok(()),
        Err(Error::Command { status, .. }) => Err(status.code()),
        Err(error) => panic!("{error}"),
    }
}

fn read(slba: u64, blocks: u32) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(NvmOpcode::READ, 0)
        .with_nsid(1)
        .with_dwords(ReadWrite::new().with_slba(slba).with_number_of_logical_blocks(blocks))
}

#[test]
fn blocks_outside_the_namespace() {
    opened(|controller, queue| {
        let capacity = controller.namespace(1).unwrap().capacity_lbas();
        let buffer = controller.alloc_dma(4096).unwrap();
        for (slba, blocks) in [(capacity, 1), (capacity - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
            let command = read(slba, blocks).with_prp(buffer.iova(), 0);
            assert_eq!(io(queue, command), Err(Status::LBA_OUT_OF_RANGE), "{blocks} at {slba}");
        }
        let last = read(capacity - 1, 1).with_prp(buffer.iova(), 0);
        assert_eq!(io(queue, last), Ok(()));
    });
}

#[test]
fn opcodes_that_there_are_not() {
    opened(|controller, queue| {
        let unknown = SubmissionQueueEntry::new(0x7d, 0).with_nsid(1);
        assert_eq!(io(queue, unknown), Err(Status::INVALID_OPCODE));
        assert_eq!(admin(controller, SubmissionQueueEntry::new(0xbf, 0)), Err(Status::INVALID_OPCODE));
    });
}

#[test]
fn namespaces_that_there_are_not() {
    opened(|controller, queue| {
        for nsid in [0, 2, 1000, 0xffff_fffe] {
            let command = SubmissionQueueEntry { nsid, ..read(0, 1) };
            assert_eq!(io(queue, command), Err(Status::INVALID_NAMESPACE), "{nsid}");
        }
        let error = controller.namespace(7).map(drop).unwrap_err().to_string();
        assert!(error.contains("namespace 7"), "{error}");
    });
}

#[test]
fn data_where_there_is_no_memory() {
    opened(|controller, queue| {
        let buffer = controller.alloc_dma(4096).unwrap();
        for prp1 in [0, 0x1000, u64::MAX - 4095, 1 << 46] {
            assert_eq!(
                io(queue, read(0, 1).with_prp(prp1, 0)),
                Err(Status::DATA_TRANSFER_ERROR),
                "{prp1:#x}"
            );
        }
        // A list of which an entry, and a list that itself, is nowhere.
        let nowhere = 1 << 46;
        let two = read(0, 16).with_prp(buffer.iova(), nowhere);
        assert_eq!(io(queue, two), Err(Status::DATA_TRANSFER_ERROR));
        let list = read(0, 64).with_prp(buffer.iova(), nowhere);
        assert_eq!(io(queue, list), Err(Status::DATA_TRANSFER_ERROR));
    });
}

#[test]
fn memory_that_was_taken_back() {
    opened(|controller, queue| {
        let buffer = controller.alloc_dma(4096).unwrap();
        let command = read(0, 1).with_prp(buffer.iova(), 0);
        assert_eq!(io(queue, command), Ok(()));
        drop(buffer);
        assert_eq!(io(queue, command), Err(Status::DATA_TRANSFER_ERROR));
    });
}

#[test]
fn prp_entries_with_offsets_where_there_may_be_none() {
    opened(|controller, queue| {
        let buffer = controller.alloc_dma(16384).unwrap();
        let command = read(0, 16).with_prp(buffer.iova(), buffer.iova() + 4096 + 512);
        assert_eq!(io(queue, command), Err(Status::PRP_OFFSET_INVALID));
        let command = read(0, 1).with_prp(buffer.iova() + 2, 0);
        assert_eq!(io(queue, command), Err(Status::PRP_OFFSET_INVALID));
    });
}

#[test]
fn more_data_than_the_maximum_transfer() {
    opened(|controller, queue| {
        let buffer = controller.alloc_dma(4096).unwrap();
        let command = read(0, 2049).with_prp(buffer.iova(), buffer.iova());
        assert_eq!(io(queue, command), Err(Status::INVALID_FIELD));
    });
}

#[test]
fn fields_with_reserved_values() {
    opened(|controller, queue| {
        let buffer = controller.alloc_dma(4096).unwrap();
        let mut command = read(0, 1).with_prp(buffer.iova(), 0);
        command.flags = CommandFlags::new().with_psdt(3);
        assert_eq!(io(queue, command), Err(Status::INVALID_FIELD));
        let identify =
            SubmissionQueueEntry { cdw10: 0xef, ..SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0) };
        assert_eq!(admin(controller, identify), Err(Status::INVALID_FIELD));
        let log =
            SubmissionQueueEntry { cdw10: 0xbe, ..SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 0) };
        assert_eq!(admin(controller, log), Err(Status::INVALID_LOG_PAGE));
    });
}

#[test]
fn a_comparison_that_fails() {
    opened(|controller, queue| {
        let namespace = controller.namespace(1).unwrap();
        let buffer = controller.alloc_dma(4096).unwrap();
        buffer.fill(0..4096, 3);
        let data = buffer.range(0..4096);
        assert_eq!(run(queue, |queue| queue.write(&namespace, 0, 8, data, false, 0)), Ok(()));
        assert_eq!(run(queue, |queue| queue.compare(&namespace, 0, 8, data, 0)), Ok(()));
        buffer.fill(4095..4096, 4);
        let compared = run(queue, |queue| queue.compare(&namespace, 0, 8, data, 0));
        assert_eq!(code(compared), Err(Status::COMPARE_FAILURE));
        assert_eq!(run(queue, |queue| queue.verify(&namespace, 0, 8, 0)), Ok(()));
    });
}

#[test]
fn queues_created_and_deleted_in_the_wrong_order() {
    opened(|controller, _queue| {
        let delete_completion = SubmissionQueueEntry::new(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 0);
        let delete_submission = SubmissionQueueEntry::new(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0);
        let with_qid =
            |command: SubmissionQueueEntry, qid| command.with_dwords(DeleteIoQueue::new().with_qid(qid));
        // Queue 1 is in use.
        let in_use = admin(controller, with_qid(delete_completion, 1));
        assert_eq!(in_use, Err(Status::INVALID_QUEUE_DELETION));
        for qid in [0, 2, 99, u16::MAX] {
            let deleted = admin(controller, with_qid(delete_submission, qid));
            assert_eq!(deleted, Err(Status::INVALID_QUEUE_IDENTIFIER), "{qid}");
            let deleted = admin(controller, with_qid(delete_completion, qid));
            assert_eq!(deleted, Err(Status::INVALID_QUEUE_IDENTIFIER), "{qid}");
        }
    });
}

#[test]
fn queues_that_cannot_be() {
    opened(|controller, _queue| {
        let memory = controller.alloc_dma(4096).unwrap();
        let completion = |qid, entries| {
            let dwords = CreateIoCompletionQueue::new().with_qid(qid).with_queue_size(entries).with_pc(true);
            SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0)
                .with_dwords(dwords)
                .with_prp(memory.iova(), 0)
        };
        assert_eq!(admin(controller, completion(0, 16)), Err(Status::INVALID_QUEUE_IDENTIFIER));
        assert_eq!(admin(controller, completion(1, 16)), Err(Status::INVALID_QUEUE_IDENTIFIER));
        assert_eq!(admin(controller, completion(3, 16)), Err(Status::INVALID_QUEUE_IDENTIFIER));
        assert_eq!(admin(controller, completion(2, 1)), Err(Status::INVALID_QUEUE_SIZE));
        let too_long = controller.capabilities().maximum_queue_entries() + 1;
        assert_eq!(admin(controller, completion(2, too_long)), Err(Status::INVALID_QUEUE_SIZE));
        let submission =
            CreateIoSubmissionQueue::new().with_qid(2).with_queue_size(16).with_pc(true).with_cqid(2);
        let submission = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0)
            .with_dwords(submission)
            .with_prp(memory.iova(), 0);
        assert_eq!(admin(controller, submission), Err(Status::COMPLETION_QUEUE_INVALID));
    });
}
