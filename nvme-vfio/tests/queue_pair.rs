//! The data path against a controller that does what the test says.

mod fake;

use std::time::Duration;

use fake::setup::Setup;
use fake::{Answer, Fake};
use nvme_spec::doorbell::Doorbell;
use nvme_spec::nvm_command::{
    CopyRanges, CopySourceRange, DatasetManagement, DatasetManagementRange, ReadWrite, WriteZeroes,
};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, NvmOpcode, Status};
use nvme_vfio::{Controller, Fault, Namespace, Options, QueuePair, SubmitError};
use proptest::prelude::*;
use zerocopy::FromBytes;

/// Faults are to be seen here, not recovered from.
fn plain() -> Options {
    Options { recovery: None, ..Options::default() }
}

fn setup(depth: u16) -> Setup {
    Setup::new(Fake::new(), Options { depth, ..plain() })
}

/// The same, with commands that complete when the test says so.
fn held(depth: u16) -> Setup {
    let setup = setup(depth);
    setup.fake.state().answer = Answer::Held;
    setup
}

fn poll(queue: &mut QueuePair) -> Vec<(u64, Result<(), Status>)> {
    let mut completed = Vec::new();
    let count = queue.poll(|token, result| completed.push((token, result))).unwrap();
    assert_eq!(count, completed.len());
    completed
}

fn fault(queue: &mut QueuePair) -> Fault {
    queue.poll(|_, _| panic!("nothing completes")).unwrap_err()
}

#[test]
fn tokens_come_back_with_how_their_commands_ended() {
    let Setup { fake, namespace, mut queue, .. } = setup(8);
    queue.flush(&namespace, u64::MAX).unwrap();
    queue.kick();
    assert_eq!(poll(&mut queue), [(u64::MAX, Ok(()))]);
    fake.state().answer = Answer::Now(Status::LBA_OUT_OF_RANGE.with_dnr());
    queue.flush(&namespace, 0).unwrap();
    queue.kick();
    assert_eq!(poll(&mut queue), [(0, Err(Status::LBA_OUT_OF_RANGE.with_dnr()))]);
}

#[test]
fn nothing_reaches_the_controller_before_the_kick_and_all_of_it_with_one_doorbell() {
    let Setup { fake, namespace, mut queue, .. } = setup(8);
    for token in 0..5 {
        queue.flush(&namespace, token).unwrap();
    }
    assert!(fake.doorbells(Doorbell::SubmissionQueueTail(1)).is_empty());
    queue.kick();
    queue.kick();
    assert_eq!(fake.doorbells(Doorbell::SubmissionQueueTail(1)), [5]);
    assert_eq!(poll(&mut queue).len(), 5);
}

#[test]
fn queues_wrap_around_and_phases_flip_for_many_laps() {
    for (depth, mqes) in [(1, 1023), (2, 1023), (7, 1023), (7, 7), (6, 7), (1, 1)] {
        let fake = Fake::with(|state| state.cap.set_mqes(mqes));
        let Setup { fake, namespace, mut queue, .. } = Setup::new(fake, Options { depth, ..plain() });
        let mut next = 0;
        for lap in 0..100 {
            let batch = 1 + lap % u64::from(depth);
            let tokens: Vec<u64> = (next..next + batch).collect();
            for token in &tokens {
                queue.flush(&namespace, *token).unwrap();
            }
            next += batch;
            queue.kick();
            let completed: Vec<u64> = poll(&mut queue).iter().map(|(token, _)| *token).collect();
            assert_eq!(completed, tokens, "depth {depth}, MQES {mqes}, lap {lap}");
            assert_eq!(poll(&mut queue), []);
        }
        assert_eq!(fake.state().commands.len() as u64, next);
    }
}

#[test]
fn a_full_queue_takes_no_more_until_one_completes() {
    let Setup { fake, namespace, mut queue, .. } = held(3);
    for token in 0..3 {
        queue.flush(&namespace, token).unwrap();
    }
    assert_eq!(queue.flush(&namespace, 3), Err(SubmitError::Full));
    queue.kick();
    assert_eq!(queue.flush(&namespace, 3), Err(SubmitError::Full));
    fake.complete(1, Status::SUCCESS);
    assert_eq!(poll(&mut queue), [(1, Ok(()))]);
    assert_eq!(queue.in_flight(), 2);
    queue.flush(&namespace, 3).unwrap();
    assert_eq!(queue.flush(&namespace, 4), Err(SubmitError::Full));
}

#[test]
fn completions_may_come_in_any_order() {
    let Setup { fake, namespace, mut queue, .. } = held(4);
    for token in 10..14 {
        queue.flush(&namespace, token).unwrap();
    }
    queue.kick();
    for place in [2, 0, 1, 0] {
        fake.complete(place, Status::SUCCESS);
    }
    let tokens: Vec<u64> = poll(&mut queue).iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [12, 10, 13, 11]);
}

#[test]
fn commands_in_flight_have_different_identifiers() {
    let Setup { fake, namespace, mut queue, .. } = held(100);
    for token in 0..100 {
        queue.flush(&namespace, token).unwrap();
    }
    queue.kick();
    let mut cids: Vec<u16> = fake.state().commands.iter().map(|command| command.cid).collect();
    cids.sort_unstable();
    cids.dedup();
    assert_eq!(cids.len(), 100);
}

#[test]
fn the_completion_queues_head_is_reported_before_the_controller_runs_out_of_entries() {
    let Setup { fake, namespace, mut queue, .. } = setup(4);
    for token in 0..1000 {
        queue.flush(&namespace, token).unwrap();
        queue.kick();
        poll(&mut queue);
    }
    // Queues of 5 and 10 entries: once in 5 commands is enough, as 4 more fit.
    let heads = fake.doorbells(Doorbell::CompletionQueueHead(1));
    assert_eq!(heads.len(), 200);
    assert_eq!(heads[..3], [5, 0, 5]);
}

#[test]
fn reads_and_writes_say_what_they_were_told() {
    let Setup { fake, controller, namespace, mut queue } = setup(4);
    let buffer = controller.alloc_dma(8192).unwrap();
    queue.read(&namespace, 0x1_2345_6789, 8, buffer.range(0..4096), 0).unwrap();
    queue.write(&namespace, 7, 1, buffer.range(4096..4608), true, 1).unwrap();
    queue.write_zeroes(&namespace, 8, 0x1_0000, true, false, 2).unwrap();
    queue.kick();
    let commands = fake.state().commands.clone();
    let (read, write) = (commands[0].dwords::<ReadWrite>(), commands[1].dwords::<ReadWrite>());
    assert_eq!((commands[0].opcode, commands[0].nsid), (NvmOpcode::READ.0, 1));
    assert_eq!((read.slba(), read.number_of_logical_blocks(), read.fua()), (0x1_2345_6789, 8, false));
    assert_eq!((commands[0].prp1, commands[0].prp2), (buffer.iova(), 0));
    assert_eq!((write.slba(), write.number_of_logical_blocks(), write.fua()), (7, 1, true));
    assert_eq!(commands[1].prp1, buffer.iova() + 4096);
    let zeroes = commands[2].dwords::<WriteZeroes>();
    assert_eq!((zeroes.number_of_logical_blocks(), zeroes.deac()), (0x1_0000, true));
}

#[test]
fn each_command_has_a_prp_list_of_its_own() {
    let Setup { fake, controller, namespace, mut queue } = held(8);
    let len = 64 << 10;
    let buffer = controller.alloc_dma(8 * len).unwrap();
    for (token, at) in (0..8).zip((0..).step_by(len)) {
        queue.read(&namespace, 0, (len / 512) as u32, buffer.range(at..at + len), token).unwrap();
    }
    queue.kick();
    let commands = fake.state().commands.clone();
    for (command, at) in commands.iter().zip((0..).step_by(len)) {
        let mut list = [0; 15 * 8];
        fake.read_memory(command.prp2, &mut list);
        let entries: Vec<u64> =
            list.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
        let pages: Vec<u64> = (1..16).map(|page| buffer.iova() + at + page * 4096).collect();
        assert_eq!(command.prp1, buffer.iova() + at);
        assert_eq!(entries, pages);
    }
}

#[test]
fn dataset_management_ranges_are_where_the_command_says() {
    let Setup { fake, namespace, mut queue, .. } = held(2);
    let ranges: Vec<_> =
        (0..256).map(|slba| DatasetManagementRange { context_attributes: 0, length_lbas: 8, slba }).collect();
    let deallocate = DatasetManagement::new().with_ad(true);
    queue.dataset_management(&namespace, deallocate, &ranges, 0).unwrap();
    queue.dataset_management(&namespace, deallocate, &ranges[..1], 1).unwrap();
    queue.kick();
    let command = fake.state().commands[0];
    let dwords: DatasetManagement = command.dwords();
    assert_eq!((dwords.number_of_ranges(), dwords.ad()), (256, true));
    let mut data = [0; 4096];
    fake.read_memory(command.prp1, &mut data);
    assert_eq!(<[DatasetManagementRange; 256]>::read_from_bytes(&data).unwrap(), ranges[..]);
    let too_many = vec![ranges[0]; 257];
    assert_eq!(queue.dataset_management(&namespace, deallocate, &too_many, 2), Err(SubmitError::Count(257)));
    assert_eq!(queue.dataset_management(&namespace, deallocate, &[], 2), Err(SubmitError::Count(0)));
}

#[test]
fn copy_ranges_are_where_the_command_says() {
    let Setup { fake, namespace, mut queue, .. } = held(2);
    let ranges: Vec<_> = (0..128).map(|range| CopySourceRange::new(range * 16, 8)).collect();
    queue.copy(&namespace, 4096, &ranges, true, 0).unwrap();
    queue.kick();
    let command = fake.state().commands[0];
    let dwords: CopyRanges = command.dwords();
    assert_eq!((command.opcode, dwords.sdlba()), (NvmOpcode::COPY.0, 4096));
    assert_eq!((dwords.number_of_ranges(), dwords.descriptor_format(), dwords.fua()), (128, 0, true));
    let mut data = [0; 4096];
    fake.read_memory(command.prp1, &mut data);
    assert_eq!(<[CopySourceRange; 128]>::read_from_bytes(&data).unwrap(), ranges[..]);
    let too_many = vec![ranges[0]; 129];
    assert_eq!(queue.copy(&namespace, 0, &too_many, false, 1), Err(SubmitError::Count(129)));
    assert_eq!(namespace.copy_limits(), None, "this controller names none");
}

#[test]
fn what_cannot_be_a_command_is_refused_and_takes_no_room() {
    let Setup { controller, namespace, mut queue, .. } = setup(1);
    let buffer = controller.alloc_dma(4 << 20).unwrap();
    let wrong = SubmitError::Length { blocks: 4096, data: 512 };
    assert_eq!(queue.read(&namespace, 0, 8, buffer.range(0..512), 0), Err(wrong));
    let long = SubmitError::TooLong { len: 2 << 20, max: 1 << 20 };
    assert_eq!(queue.read(&namespace, 0, 4096, buffer.range(0..2 << 20), 0), Err(long));
    assert_eq!(queue.read(&namespace, 0, 0, buffer.range(0..0), 0), Err(SubmitError::Count(0)));
    let unaligned = queue.read(&namespace, 0, 1, buffer.range(2..514), 0).unwrap_err();
    assert!(unaligned.to_string().ends_with("is not a multiple of 4"), "{unaligned}");
    let pieces = [buffer.range(0..256), buffer.range(8192..8448)];
    assert!(matches!(queue.write(&namespace, 0, 1, pieces, false, 0), Err(SubmitError::Data(_))));
    assert_eq!(queue.verify(&namespace, 0, 0x1_0001, 0), Err(SubmitError::Count(0x1_0001)));
    queue.read(&namespace, 0, 8, buffer.range(0..4096), 0).unwrap();
}

#[test]
fn a_completion_of_a_command_that_is_not_in_flight_breaks_the_queue_pair() {
    for cid in [0, 3, 5, u16::MAX] {
        let Setup { fake, namespace, mut queue, .. } = held(5);
        queue.flush(&namespace, 0).unwrap();
        queue.flush(&namespace, 1).unwrap();
        queue.kick();
        fake.complete(0, Status::SUCCESS);
        poll(&mut queue);
        fake.post(CompletionQueueEntry::new(cid, 1, 1, Status::SUCCESS, false));
        let expected = Fault::UnknownCid { qid: 1, cid };
        assert_eq!(fault(&mut queue), expected);
        assert_eq!(fault(&mut queue), expected, "it stays broken");
        assert_eq!(queue.flush(&namespace, 2), Err(SubmitError::Fault(expected)));
        assert_eq!(queue.check(), Err(expected));
    }
}

#[test]
fn a_completion_for_another_queue_breaks_the_queue_pair() {
    for (sqid, sqhd) in [(0, 0), (2, 0), (1, 6), (1, u16::MAX)] {
        let Setup { fake, namespace, mut queue, .. } = held(5);
        queue.flush(&namespace, 0).unwrap();
        queue.kick();
        let cid = fake.state().commands[0].cid;
        fake.state().post_to(1, CompletionQueueEntry::new(cid, sqid, sqhd, Status::SUCCESS, false));
        assert_eq!(fault(&mut queue), Fault::WrongQueue { qid: 1, sqid, sqhd });
    }
}

#[test]
fn a_command_that_never_completes_expires() {
    let io_timeout = Duration::from_millis(300);
    let mut setup = Setup::new(Fake::new(), Options { io_timeout, ..plain() });
    setup.fake.state().answer = Answer::Held;
    setup.queue.flush(&setup.namespace, 0).unwrap();
    setup.queue.kick();
    let start = std::time::Instant::now();
    let fault = loop {
        assert!(start.elapsed() < Duration::from_secs(10), "the deadline was 300 ms");
        if let Err(fault) = setup.queue.poll(|_, _| panic!("nothing completes")) {
            break fault;
        }
    };
    assert!(start.elapsed() >= io_timeout);
    assert_eq!(fault, Fault::Expired { qid: 1, cid: 0, limit: io_timeout });
}

/// Polls until the queue pair notices that something is wrong.
fn notices(mut setup: Setup) -> Fault {
    setup.fake.state().answer = Answer::Held;
    setup.queue.flush(&setup.namespace, 0).unwrap();
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(10), "it is looked at every 50 ms or so");
        if let Err(fault) = setup.queue.poll(|_, _| panic!("nothing completes")) {
            return fault;
        }
    }
}

#[test]
fn a_fatal_error_is_noticed_while_polling() {
    let setup = setup(4);
    setup.fake.state().csts.set_cfs(true);
    assert_eq!(notices(setup), Fault::Fatal);
}

#[test]
fn a_removal_is_noticed_while_polling() {
    let setup = setup(4);
    setup.fake.state().gone = true;
    assert_eq!(notices(setup), Fault::Gone);
}

#[test]
fn a_controller_that_is_not_ready_any_more_is_noticed_while_polling() {
    let setup = setup(4);
    setup.fake.state().csts.set_rdy(false);
    assert_eq!(notices(setup), Fault::Reset);
}

#[test]
fn after_a_reset_old_queue_pairs_are_broken_and_new_ones_work() {
    let Setup { fake, controller, namespace, mut queue } = held(4);
    queue.flush(&namespace, 0).unwrap();
    queue.kick();
    controller.reset().unwrap();
    fake.state().answer = Answer::Now(Status::SUCCESS);
    assert_eq!(queue.check(), Err(Fault::Reset));
    assert_eq!(fault(&mut queue), Fault::Reset);

    // The old pair keeps its identifier until it is dropped: nothing that it still does can hit the new one.
    let options = Options { queues: 2, ..plain() };
    drop((queue, controller));
    let controller = Controller::open(fake.boxed(), options).unwrap();
    let old = controller.queue_pair().unwrap();
    controller.reset().unwrap();
    let mut new = controller.queue_pair().unwrap();
    assert_eq!((old.qid(), new.qid()), (1, 2));
    let steps = fake.state().steps.len();
    drop(old);
    assert_eq!(fake.state().steps.len(), steps, "the reset has deleted the old queues already");
    new.flush(&namespace, 5).unwrap();
    new.kick();
    assert_eq!(poll(&mut new), [(5, Ok(()))]);
    assert_eq!(controller.queue_pair().unwrap().qid(), 1);
}

#[test]
fn a_stale_queue_pair_rings_no_doorbell() {
    let Setup { fake, controller, namespace, mut queue } = setup(4);
    queue.flush(&namespace, 0).unwrap();
    controller.reset().unwrap();
    queue.kick();
    assert!(fake.doorbells(Doorbell::SubmissionQueueTail(1)).is_empty());
    assert_eq!(fault(&mut queue), Fault::Reset);
}

#[test]
fn dropping_a_queue_pair_deletes_the_submission_queue_before_the_completion_queue() {
    let Setup { fake, queue, controller, .. } = setup(4);
    drop(queue);
    let admin: Vec<AdminOpcode> = fake
        .state()
        .steps
        .iter()
        .filter_map(|step| match step {
            fake::Step::Admin(opcode) => Some(*opcode),
            _ => None,
        })
        .collect();
    let expected = [AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, AdminOpcode::DELETE_IO_COMPLETION_QUEUE];
    assert_eq!(admin, expected);
    drop(controller);
}

#[test]
fn dropping_a_queue_pair_of_a_controller_that_was_reset_by_others_does_not_wait_for_it() {
    let Setup { fake, queue, .. } = setup(4);
    fake.state().csts.set_rdy(false);
    fake.state().ignored = Some(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE);
    let start = std::time::Instant::now();
    drop(queue);
    assert!(start.elapsed() < Options::default().admin_timeout / 2);
}

#[test]
fn a_completion_queue_without_a_submission_queue_is_deleted_again() {
    let fake = Fake::new();
    let controller = Controller::open(fake.boxed(), plain()).unwrap();
    let refused = (AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, Status::INVALID_QUEUE_SIZE);
    fake.state().refused = Some(refused);
    let error = controller.queue_pair().map(drop).unwrap_err().to_string();
    assert_eq!(error, "fake: Create I/O Submission Queue: Invalid Queue Size");
    fake.state().refused = None;
    assert!(fake.state().steps.contains(&fake::Step::Admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE)));
    assert_eq!(controller.queue_pair().unwrap().qid(), 1);
}

#[test]
fn interrupts_without_vectors_are_refused() {
    let options = Options { interrupts: true, ..plain() };
    let controller = Controller::open(Fake::new().boxed(), options).unwrap();
    let error = controller.queue_pair().map(drop).unwrap_err().to_string();
    assert!(error.contains("no interrupt vector for queue 1"), "{error}");
}

fn interrupt_vectors(vectors: u32, queues: u16) -> (Fake, Controller) {
    let fake = Fake::with(|state| state.vectors = vectors);
    let options = Options { interrupts: true, queues, ..plain() };
    let controller = Controller::open(fake.boxed(), options).unwrap();
    (fake, controller)
}

#[test]
fn each_queue_has_a_vector_of_its_own_which_it_gives_back() {
    let (fake, controller) = interrupt_vectors(3, 3);
    let pairs = [controller.queue_pair().unwrap(), controller.queue_pair().unwrap()];
    assert!(pairs.iter().all(|pair| pair.wait_fd().is_some()));
    assert_eq!(fake.state().connected, [(1, true), (2, true)]);
    let error = controller.queue_pair().map(drop).unwrap_err().to_string();
    assert!(error.contains("no interrupt vector for queue 3 of a controller with 3"), "{error}");
    drop(pairs);
    assert_eq!(fake.state().connected[2..], [(1, false), (2, false)]);
}

#[test]
fn a_single_vector_goes_to_the_first_queue() {
    let (fake, controller) = interrupt_vectors(1, 2);
    let _pair = controller.queue_pair().unwrap();
    assert_eq!(fake.state().connected, [(0, true)]);
    controller.queue_pair().map(drop).unwrap_err();
}

#[test]
fn with_interrupts_the_completion_queues_head_is_reported_at_once() {
    let (fake, controller) = interrupt_vectors(2, 1);
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    for token in 0..3 {
        queue.flush(&namespace, token).unwrap();
        queue.kick();
        poll(&mut queue);
    }
    assert_eq!(fake.doorbells(Doorbell::CompletionQueueHead(1)), [1, 2, 3]);
}

#[test]
fn a_polling_controller_with_shadow_doorbells_is_not_rung() {
    let fake = Fake::with(|state| {
        state.identify.oacs.set_doorbell_buffer_config(true);
        state.polls_shadows = true;
    });
    let Setup { fake, namespace, mut queue, .. } = Setup::new(fake, Options { depth: 7, ..plain() });
    for token in 0..1000 {
        queue.flush(&namespace, token).unwrap();
        queue.kick();
        fake.state().poll_shadows();
        assert_eq!(poll(&mut queue), [(token, Ok(()))]);
    }
    let rung = fake.doorbells(Doorbell::SubmissionQueueTail(1)).len();
    assert!(rung <= 1, "rung {rung} times");
}

/// Runs commands one after another, as many as take the queues around several times.
fn many_laps(fake: &Fake, namespace: &Namespace, queue: &mut QueuePair) {
    for token in 0..100 {
        queue.flush(namespace, token).unwrap();
        queue.kick();
        fake.state().poll_shadows();
        assert_eq!(poll(queue), [(token, Ok(()))]);
    }
}

#[test]
fn a_controller_that_forbids_ringing_is_never_rung_with_no_queue_that_it_has() {
    let fake = Fake::with(|state| {
        state.identify.oacs.set_doorbell_buffer_config(true);
        state.never_rung = true;
    });
    let Setup { fake, controller, namespace, mut queue } = Setup::new(fake, Options { depth: 2, ..plain() });
    for _ in 0..3 {
        many_laps(&fake, &namespace, &mut queue);
        drop(queue);
        queue = controller.queue_pair().unwrap();
    }
    drop(queue);
    controller.reset().unwrap();
    many_laps(&fake, &namespace, &mut controller.queue_pair().unwrap());
    assert!(fake.doorbells(Doorbell::SubmissionQueueTail(1)).is_empty());
    assert!(fake.doorbells(Doorbell::CompletionQueueHead(1)).is_empty());
}

#[test]
fn a_new_queue_is_not_found_where_the_last_one_ended() {
    let fake = Fake::with(|state| {
        state.identify.oacs.set_doorbell_buffer_config(true);
        state.polls_shadows = true;
    });
    let Setup { fake, controller, namespace, mut queue } = Setup::new(fake, Options { depth: 6, ..plain() });
    many_laps(&fake, &namespace, &mut queue);
    drop(queue);
    queue = controller.queue_pair().unwrap();
    many_laps(&fake, &namespace, &mut queue);
    drop(queue);
    controller.reset().unwrap();
    let _queue = controller.queue_pair().unwrap();
    assert_eq!(fake.state().found_in_shadows, [0; 2 * 2 + 3 * 2]);
}

#[test]
fn a_sleeping_controller_with_shadow_doorbells_is_rung() {
    let fake = Fake::with(|state| state.identify.oacs.set_doorbell_buffer_config(true));
    let Setup { fake, namespace, mut queue, .. } = Setup::new(fake, Options { depth: 7, ..plain() });
    for token in 0..1000 {
        queue.flush(&namespace, token).unwrap();
        queue.kick();
        assert_eq!(poll(&mut queue), [(token, Ok(()))]);
    }
    assert_eq!(fake.doorbells(Doorbell::SubmissionQueueTail(1)).len(), 1000);
}

/// What a controller without manners may do next.
#[derive(Clone, Debug)]
enum Turn {
    Submit,
    /// Completes a command in flight, as it should.
    Complete(prop::sample::Index),
    /// Posts anything.
    Post(u16, u16, u16, u16),
    Poll,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => Just(Turn::Submit),
        6 => any::<prop::sample::Index>().prop_map(Turn::Complete),
        1 => (0..12u16, 0..3u16, 0..12u16, any::<u16>()).prop_map(|(a, b, c, d)| Turn::Post(a, b, c, d)),
        4 => Just(Turn::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a model: what is in flight, what was posted for it, and whether rubbish was.
    #[test]
    fn each_command_ends_at_most_once_whatever_the_controller_posts(
        turns in prop::collection::vec(turn(), 1..300)
    ) {
        let Setup { fake, namespace, mut queue, .. } = held(5);
        let mut next = 0;
        let mut in_flight = Vec::new();
        let mut posted = Vec::new();
        for turn in turns {
            match turn {
                Turn::Submit => match queue.flush(&namespace, next) {
                    Ok(()) => {
                        queue.kick();
                        in_flight.push(next);
                        next += 1;
                    }
                    Err(error) => {
                        prop_assert_eq!(error, SubmitError::Full);
                        prop_assert_eq!(in_flight.len() + posted.len(), 5);
                    }
                },
                Turn::Complete(which) if !in_flight.is_empty() => {
                    let place = which.index(in_flight.len());
                    fake.complete(place, Status::SUCCESS);
                    posted.push(in_flight.remove(place));
                }
                Turn::Complete(_) => {}
                Turn::Post(cid, sqid, sqhd, status) => {
                    let status = Status::from_bits(status);
                    fake.state().post_to(1, CompletionQueueEntry::new(cid, sqid, sqhd, status, false));
                    // What was posted properly before comes out; then either the rubbish passes for a completion of
                    // something in flight, or the queue pair breaks, for good.
                    let mut completed = Vec::new();
                    let polled = queue.poll(|token, _| completed.push(token));
                    prop_assert!(completed.starts_with(&posted));
                    let extra = &completed[posted.len()..];
                    match polled {
                        Ok(_) => {
                            prop_assert_eq!(extra.len(), 1);
                            prop_assert!(in_flight.contains(&extra[0]));
                            prop_assert!(sqid == 1 && sqhd < 6);
                        }
                        Err(fault) => {
                            prop_assert!(extra.is_empty());
                            prop_assert_eq!(queue.poll(|_, _| ()), Err(fault));
                        }
                    }
                    return Ok(());
                }
                Turn::Poll => {
                    prop_assert_eq!(queue.in_flight(), in_flight.len() + posted.len());
                    let tokens: Vec<u64> = poll(&mut queue).iter().map(|(token, _)| *token).collect();
                    prop_assert_eq!(tokens, std::mem::take(&mut posted));
                }
            }
        }
    }
}

#[test]
fn the_memory_of_queues_that_the_controller_did_not_forget_is_its_own_until_it_is_disabled() {
    let Setup { fake, controller, queue, .. } = Setup::new(Fake::new(), plain());
    let queues = fake.state().queues(1);
    fake.state().csts.set_cfs(true);
    drop(queue);
    assert!(queues.iter().all(|iova| fake.state().is_mapped(*iova)));
    controller.reset().unwrap();
    assert!(!queues.iter().any(|iova| fake.state().is_mapped(*iova)));
    // One that obeys gives it back at once.
    let queue = controller.queue_pair().unwrap();
    let queues = fake.state().queues(1);
    drop(queue);
    assert!(!queues.iter().any(|iova| fake.state().is_mapped(*iova)));
}

#[test]
fn a_doorbell_is_not_rung_for_queues_from_before_a_reset() {
    let (fake, controller) = interrupt_vectors(2, 1);
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.queue_pair().unwrap();
    queue.flush(&namespace, 7).unwrap();
    queue.kick();
    // Completed, and not polled for.
    controller.reset().unwrap();
    fake.state().steps.clear();
    let mut ended = Vec::new();
    queue.poll(|token, result| ended.push((token, result))).unwrap();
    assert_eq!(ended, [(7, Ok(()))], "it has completed all the same");
    assert!(fake.doorbells(Doorbell::CompletionQueueHead(1)).is_empty());
    assert_eq!(queue.poll(|_, _| ()), Err(Fault::Reset));
}
