//! Recovery, step by step, from a controller that does what the test says.

mod fake;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake::setup::Setup;
use fake::{Answer, Fake, Step};
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::{AdminOpcode, CompletionQueueEntry, NvmOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::SubmitError;
use nvme_vfio::{AdminData, Condition, Error, Fault, Namespace, Options, QueuePair, Recovery};
use rustix::event::{PollFd, PollFlags, Timespec};

const IO_TIMEOUT: Duration = Duration::from_millis(100);
const ABORT_TIMEOUT: Duration = Duration::from_millis(60);
/// Far more than any of this takes, even on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);

fn options() -> Options {
    let recovery = Recovery { abort_timeout: ABORT_TIMEOUT, resets: 3, window: Duration::from_secs(600) };
    Options {
        io_timeout: IO_TIMEOUT,
        admin_timeout: Duration::from_millis(200),
        recovery: Some(recovery),
        ..Options::default()
    }
}

fn setup() -> Setup {
    Setup::new(Fake::new(), options())
}

/// The same, with commands that complete when the test says so.
fn held() -> Setup {
    let setup = setup();
    setup.fake.state().answer = Answer::Held;
    setup
}

type Ended = (u64, Result<(), Status>);

/// Polls until so many commands have ended.
fn wait(queue: &mut QueuePair, count: usize) -> Vec<Ended> {
    let mut ended = Vec::new();
    let start = Instant::now();
    while ended.len() < count {
        queue.poll(|token, result| ended.push((token, result))).unwrap();
        assert!(start.elapsed() < LONG, "{ended:?} of {count}");
        std::thread::yield_now();
    }
    ended
}

/// Sleeps until the queue wakes its owner.
fn sleep(queue: &QueuePair) {
    let fd = queue.wait_fd().unwrap();
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "not woken in 10 s");
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

/// Polls, with nothing that ends, until something is so.
fn wait_until(queue: &mut QueuePair, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        queue.poll(|token, result| panic!("command {token} ended: {result:?}")).unwrap();
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
}

impl Setup {
    fn read(&mut self, token: u64) {
        let command = SubmissionQueueEntry::new(NvmOpcode::READ, 0).with_nsid(1);
        self.queue.submit(command, token).unwrap();
        self.queue.kick();
    }

    fn compare(&mut self, token: u64) {
        let command = SubmissionQueueEntry::new(NvmOpcode::COMPARE, 0).with_nsid(1);
        self.queue.submit(command, token).unwrap();
        self.queue.kick();
    }

    /// From now on, the controller answers.
    fn answers(&self) {
        self.fake.state().answer = Answer::Now(Status::SUCCESS);
    }

    fn wait_for_reset(&mut self, count: u64) {
        let Self { controller, queue, .. } = self;
        let up = || controller.condition() == Condition::Running;
        wait_until(queue, || controller.recovery_counters().resets >= count && up());
    }
}

#[test]
fn an_abort_that_helps_ends_the_command_and_nothing_else() {
    let mut setup = held();
    setup.fake.state().aborts = true;
    let start = Instant::now();
    setup.read(7);
    assert_eq!(wait(&mut setup.queue, 1), [(7, Err(Status::ABORTED_BY_REQUEST))]);
    assert!(start.elapsed() >= IO_TIMEOUT);
    let counters = setup.controller.recovery_counters();
    assert_eq!((counters.expired, counters.resets), (1, 0));
    setup.answers();
    setup.read(8);
    assert_eq!(wait(&mut setup.queue, 1), [(8, Ok(()))]);
}

#[test]
fn a_command_that_comes_in_time_after_all_is_not_reset_for() {
    let mut setup = held();
    setup.read(7);
    let Setup { controller, queue, fake, .. } = &mut setup;
    wait_until(queue, || controller.recovery_counters().expired == 1);
    fake.complete(0, Status::SUCCESS);
    assert_eq!(wait(queue, 1), [(7, Ok(()))]);
    assert_eq!(controller.recovery_counters().resets, 0);
}

#[test]
fn a_read_that_an_abort_does_not_end_is_sent_once_more_after_a_reset() {
    let mut setup = held();
    setup.read(7);
    let first = setup.fake.state().commands[0].cid;
    setup.wait_for_reset(1);
    assert_eq!(setup.fake.admin_commands(AdminOpcode::ABORT), 1);
    let Setup { fake, queue, controller, .. } = &mut setup;
    wait_until(queue, || fake.state().commands.len() == 2);
    let again = fake.state().commands[1];
    assert_eq!(again.opcode, NvmOpcode::READ.0);
    assert_ne!(again.cid, first, "so that the first one's completion is not taken for it");
    fake.complete(0, Status::SUCCESS);
    assert_eq!(wait(queue, 1), [(7, Ok(()))]);
    assert_eq!(controller.recovery_counters().replayed, 1);
}

#[test]
fn a_command_that_leads_to_two_resets_is_ended_and_the_others_live() {
    let mut setup = held();
    setup.read(7);
    let ended = wait(&mut setup.queue, 1);
    assert_eq!(ended, [(7, Err(Status::COMMAND_ABORTED_BY_HOST))]);
    assert_eq!(setup.controller.recovery_counters().resets, 2);
    setup.answers();
    setup.read(8);
    assert_eq!(wait(&mut setup.queue, 1), [(8, Ok(()))]);
}

#[test]
fn what_is_not_sent_once_more_is_ended_and_not_before_the_controller_is_disabled() {
    let mut setup = held();
    setup.compare(1);
    setup.read(2);
    let Setup { fake, queue, .. } = &mut setup;
    fake.state().csts.set_cfs(true);
    fake.state().answer = Answer::Now(Status::SUCCESS);
    let mut ended = Vec::new();
    let start = Instant::now();
    while ended.len() < 2 {
        let disabled = |fake: &Fake| fake.state().steps.contains(&Step::FunctionReset);
        queue
            .poll(|token, result| {
                assert!(disabled(fake), "command {token} ended: {result:?}");
                ended.push((token, result));
            })
            .unwrap();
        assert!(start.elapsed() < LONG);
    }
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended, [(1, Err(Status::COMMAND_ABORTED_BY_HOST)), (2, Ok(()))]);
}

#[test]
fn what_had_completed_before_the_reset_has() {
    let mut setup = held();
    setup.compare(1);
    setup.fake.state().csts.set_cfs(true);
    // Not polled: the completion lies in the queue when the reset comes.
    setup.fake.complete(0, Status::COMPARE_FAILURE);
    let start = Instant::now();
    while setup.controller.recovery_counters().resets == 0 {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    assert_eq!(wait(&mut setup.queue, 1), [(1, Err(Status::COMPARE_FAILURE))]);
}

#[test]
fn commands_submitted_while_it_recovers_go_out_afterwards_whatever_they_are() {
    let mut setup = held();
    setup.fake.state().gets_ready = false;
    setup.fake.state().csts.set_cfs(true);
    let Setup { controller, queue, .. } = &mut setup;
    wait_until(queue, || controller.condition() == Condition::Recovering);
    setup.compare(3);
    setup.answers();
    setup.fake.state().gets_ready = true;
    assert_eq!(wait(&mut setup.queue, 1), [(3, Ok(()))]);
    assert_eq!(setup.controller.recovery_counters().replayed, 0);
}

#[test]
fn wrong_completions_lead_to_a_reset_and_are_taken_for_nothing() {
    let wrong = |fake: &Fake, entry| fake.state().post_to(1, entry);
    let entry = |cid, sqid, head| CompletionQueueEntry::new(cid, sqid, head, Status::SUCCESS, false);
    for case in 0..4 {
        let mut setup = held();
        setup.read(7);
        let cid = setup.fake.state().commands[0].cid;
        match case {
            0 => wrong(&setup.fake, entry(cid ^ 1, 1, 1)),
            1 => wrong(&setup.fake, entry(cid, 2, 1)),
            2 => wrong(&setup.fake, entry(cid, 1, 9999)),
            _ => {
                // An entry left out, as by a Phase Tag that was not flipped, and one behind it.
                setup.fake.skip(1);
                setup.fake.complete(0, Status::SUCCESS);
            }
        }
        setup.answers();
        assert_eq!(wait(&mut setup.queue, 1), [(7, Ok(()))], "case {case}");
        let counters = setup.controller.recovery_counters();
        assert_eq!((counters.resets, counters.replayed, counters.expired), (1, 1, 0), "case {case}");
    }
}

#[test]
fn a_second_completion_is_not_taken_for_the_next_command() {
    let mut setup = held();
    setup.read(1);
    let cid = setup.fake.state().commands[0].cid;
    setup.fake.complete(0, Status::SUCCESS);
    assert_eq!(wait(&mut setup.queue, 1), [(1, Ok(()))]);
    setup.read(2);
    setup.fake.post(CompletionQueueEntry::new(cid, 1, 2, Status::SUCCESS, false));
    setup.wait_for_reset(1);
    setup.answers();
    assert_eq!(wait(&mut setup.queue, 1).len(), 1);
}

#[test]
fn a_controller_that_has_gone_ends_everything_within_its_resets() {
    let mut setup = held();
    setup.read(1);
    setup.compare(2);
    setup.fake.state().gone = true;
    let mut ended = wait(&mut setup.queue, 2);
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended, [1, 2].map(|token| (token, Err(Status::HOST_PATHING_ERROR))));
    let fault = Fault::GivenUp { resets: 3 };
    assert_eq!(setup.queue.poll(|_, _| ()), Err(fault));
    assert_eq!(setup.queue.flush(&setup.namespace, 3), Err(SubmitError::Fault(fault)));
    assert_eq!(setup.controller.condition(), Condition::Failed);
    assert_eq!(
        setup.controller.failure().unwrap(),
        "fake: given up after 3 resets in 600s: fake: the controller has gone (its registers read as all ones)"
    );
    let error = setup.controller.namespace(1).unwrap_err().to_string();
    assert_eq!(error, "fake: the controller was given up after 3 resets");
    assert!(setup.controller.queue_pair().is_err());
    assert!(setup.controller.reset().is_err());
}

#[test]
fn the_memory_of_a_controller_that_cannot_be_stopped_is_taken_away_before_anything_ends() {
    let mut setup = held();
    let buffer = setup.controller.alloc_dma(4096).unwrap();
    setup.queue.read(&setup.namespace, 0, 8, buffer.range(0..4096), 1).unwrap();
    setup.queue.kick();
    setup.fake.state().gone = true;
    let start = Instant::now();
    let mut ended = 0;
    while ended == 0 {
        ended += setup.queue.poll(|_, _| assert!(!setup.fake.state().is_mapped(buffer.iova()))).unwrap();
        assert!(start.elapsed() < LONG);
    }
    assert!(setup.controller.alloc_dma(4096).is_err());
}

#[test]
fn a_controller_that_does_not_get_ready_any_more_is_given_up() {
    let recovery = Recovery { resets: 1, ..options().recovery.unwrap() };
    let mut setup = Setup::new(Fake::new(), Options { recovery: Some(recovery), ..options() });
    setup.fake.state().answer = Answer::Held;
    setup.read(1);
    setup.fake.state().gets_ready = false;
    setup.fake.state().csts.set_cfs(true);
    assert_eq!(wait(&mut setup.queue, 1), [(1, Err(Status::HOST_PATHING_ERROR))]);
    let failure = setup.controller.failure().unwrap();
    assert!(failure.ends_with("CSTS.RDY = 1 took more than 1s"), "{failure}");
    assert!(!setup.fake.state().cc.en(), "it is disabled");
}

#[test]
fn resets_are_counted_within_their_window_only() {
    let recovery = Recovery { window: Duration::from_millis(1), ..options().recovery.unwrap() };
    let mut setup = Setup::new(Fake::new(), Options { recovery: Some(recovery), ..options() });
    for count in 1..6 {
        setup.fake.state().csts.set_cfs(true);
        setup.wait_for_reset(count);
        setup.read(count);
        assert_eq!(wait(&mut setup.queue, 1), [(count, Ok(()))]);
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut setup = self::setup();
    for count in 1..4 {
        setup.fake.state().csts.set_cfs(true);
        setup.wait_for_reset(count);
    }
    setup.controller.reset().unwrap();
    setup.fake.state().csts.set_cfs(true);
    let start = Instant::now();
    let fault = loop {
        assert!(start.elapsed() < LONG);
        if let Err(fault) = setup.queue.poll(|_, _| ()) {
            break fault;
        }
    };
    assert_eq!(fault, Fault::GivenUp { resets: 3 });
    let failure = "fake: given up after 3 resets in 600s: the controller reports a fatal error (CSTS.CFS)";
    assert_eq!(setup.controller.failure(), Some(failure));
}

#[test]
fn another_controller_in_its_place_is_not_used() {
    let mut setup = held();
    setup.read(1);
    setup.fake.state().identify.sn = nvme_spec::identify::AsciiField::new("OTHER").unwrap();
    setup.fake.state().csts.set_cfs(true);
    assert_eq!(wait(&mut setup.queue, 1), [(1, Err(Status::HOST_PATHING_ERROR))]);
    let failure = setup.controller.failure().unwrap();
    assert!(failure.contains("another controller has taken its place: OTHER"), "{failure}");
    assert_eq!(setup.controller.recovery_counters().resets, 1);
}

#[test]
fn a_reset_that_was_asked_for_keeps_queue_pairs() {
    let Setup { fake, controller, mut queue, namespace } = setup();
    for token in 0..3 {
        queue.flush(&namespace, token).unwrap();
        controller.reset().unwrap();
        queue.kick();
        assert_eq!(wait(&mut queue, 1), [(token, Ok(()))]);
    }
    assert_eq!(fake.admin_commands(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE), 3);
}

#[test]
fn queues_that_the_controller_does_not_create_again_are_broken_for_good() {
    let mut setup = held();
    setup.read(1);
    let refused = (AdminOpcode::CREATE_IO_COMPLETION_QUEUE, Status::INVALID_QUEUE_IDENTIFIER);
    setup.fake.state().refused = Some(refused);
    setup.controller.reset().unwrap();
    assert_eq!(wait(&mut setup.queue, 1), [(1, Err(Status::HOST_PATHING_ERROR))]);
    assert_eq!(setup.queue.poll(|_, _| ()), Err(Fault::NotRemade { qid: 1 }));
    assert_eq!(setup.controller.condition(), Condition::Running);
}

#[test]
fn a_queue_pair_dropped_at_any_point_of_recovery_leaves_nothing_behind() {
    for polls in 0..12 {
        let Setup { fake, controller, mut queue, namespace } = setup();
        queue.flush(&namespace, 0).unwrap();
        controller.reset().unwrap();
        for _ in 0..polls {
            queue.poll(|_, _| ()).unwrap();
            std::thread::sleep(Duration::from_micros(300));
        }
        drop(queue);
        // Its identifier is free, at the controller too.
        let mut queue = controller.queue_pair().unwrap();
        queue.flush(&namespace, 1).unwrap();
        queue.kick();
        assert_eq!(wait(&mut queue, 1), [(1, Ok(()))], "{polls} polls");
        drop((queue, controller));
        assert!(!fake.state().cc.en());
    }
}

#[test]
fn who_sleeps_is_woken_by_a_deadline_and_by_recovery() {
    let fake = Fake::with(|state| state.vectors = 2);
    let mut setup = Setup::new(fake, Options { interrupts: true, ..options() });
    setup.fake.state().answer = Answer::Held;
    setup.read(7);
    let start = Instant::now();
    let mut ended = Vec::new();
    while ended.is_empty() {
        assert!(start.elapsed() < LONG);
        // Never polls but when woken.
        sleep(&setup.queue);
        setup.queue.poll(|token, result| ended.push((token, result))).unwrap();
        if setup.controller.recovery_counters().resets == 1 {
            setup.answers();
        }
        // The fake signals nothing.
        if setup.queue.in_flight() == 1 && setup.fake.state().commands.len() == 2 {
            std::thread::sleep(Duration::from_millis(5));
            setup.queue.poll(|token, result| ended.push((token, result))).unwrap();
        }
    }
    assert_eq!(ended.len(), 1);
}

#[test]
fn deadlines_are_kept_while_the_controller_owes_the_answer_to_an_admin_command() {
    let fake = Fake::with(|state| state.vectors = 2);
    let long = Options { admin_timeout: 3 * LONG, interrupts: true, ..options() };
    let mut setup = Setup::new(fake, long);
    setup.fake.state().ignored = Some(AdminOpcode::GET_LOG_PAGE);
    setup.fake.state().answer = Answer::Held;
    setup.fake.event(AsynchronousEvent::TEMPERATURE_THRESHOLD.into_bits());
    let start = Instant::now();
    while setup.fake.admin_commands(AdminOpcode::GET_LOG_PAGE) == 0 {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    setup.read(7);
    let mut ended = Vec::new();
    while ended.is_empty() {
        assert!(start.elapsed() < LONG);
        // Never polls but when woken.
        sleep(&setup.queue);
        setup.queue.poll(|token, result| ended.push((token, result))).unwrap();
    }
    assert_eq!(ended, [(7, Err(Status::COMMAND_ABORTED_BY_HOST))], "after two resets");
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
}

#[test]
fn an_admin_command_that_an_abort_does_not_end_leads_to_a_reset() {
    let mut setup = setup();
    setup.fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    let keep_alive = SubmissionQueueEntry::new(AdminOpcode::KEEP_ALIVE, 0);
    let error = setup.controller.admin(keep_alive, AdminData::None).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    setup.wait_for_reset(1);
    setup.fake.state().ignored = None;
    setup.controller.admin(keep_alive, AdminData::None).unwrap();
    setup.read(1);
    assert_eq!(wait(&mut setup.queue, 1), [(1, Ok(()))]);
}

#[test]
fn an_admin_command_that_an_abort_ends_is_late_and_nothing_else() {
    let setup = setup();
    setup.fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    setup.fake.state().aborts = true;
    let keep_alive = SubmissionQueueEntry::new(AdminOpcode::KEEP_ALIVE, 0);
    let error = setup.controller.admin(keep_alive, AdminData::None).unwrap_err().to_string();
    assert_eq!(error, "fake: Keep Alive took more than 200ms");
    assert_eq!(setup.controller.recovery_counters().resets, 0);
}

#[test]
fn a_reset_does_not_wait_for_a_long_admin_command() {
    let mut setup = setup();
    setup.fake.state().ignored = Some(AdminOpcode::FORMAT_NVM);
    let controller = setup.controller.clone();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let format = scope.spawn(move || {
            let format = SubmissionQueueEntry::new(AdminOpcode::FORMAT_NVM, 0);
            controller.admin_within(format, AdminData::None, LONG)
        });
        let fake = setup.fake.clone();
        wait_until(&mut setup.queue, || fake.admin_commands(AdminOpcode::FORMAT_NVM) == 1);
        setup.fake.state().answer = Answer::Held;
        setup.read(1);
        setup.wait_for_reset(1);
        assert!(matches!(format.join().unwrap(), Err(Error::Queue { fault: Fault::Reset, .. })));
    });
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn a_namespace_that_changes_is_identified_anew_and_its_watchers_are_told() {
    let Setup { fake, controller, namespace, .. } = setup();
    let (sender, receiver) = mpsc::channel();
    let watch = controller.watch_namespace(&namespace, move |now| {
        sender.send(now.map(Namespace::capacity).map_err(ToString::to_string)).unwrap();
    });
    let changed = AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits();
    fake.state().namespace.nsze = 12345;
    fake.event(changed);
    assert_eq!(receiver.recv_timeout(LONG).unwrap(), Ok(12345 * 512));
    assert!(fake.admin_commands(AdminOpcode::GET_LOG_PAGE) > 0, "or there would be no other event");
    fake.state().namespace.nsze = 0;
    fake.event(changed);
    let gone = receiver.recv_timeout(LONG).unwrap();
    assert_eq!(gone, Err("fake: namespace 1 is not active".into()));
    assert_eq!(controller.events().unwrap().len(), 2);
    drop(watch);
    fake.state().namespace.nsze = 5;
    fake.event(changed);
    assert_eq!(receiver.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_namespace_that_changes_with_a_reset_is_noticed() {
    let Setup { fake, controller, namespace, .. } = setup();
    let (sender, receiver) = mpsc::channel();
    let _watch =
        controller.watch_namespace(&namespace, move |now| sender.send(now.unwrap().capacity()).unwrap());
    fake.state().namespace.nsze = 77;
    controller.reset().unwrap();
    assert_eq!(receiver.recv_timeout(LONG).unwrap(), 77 * 512);
}

#[test]
fn the_log_page_of_each_event_is_read_so_that_the_next_one_comes() {
    let Setup { fake, controller: _controller, .. } = setup();
    let events = [
        AsynchronousEvent::TEMPERATURE_THRESHOLD,
        AsynchronousEvent::PERSISTENT_INTERNAL_ERROR,
        AsynchronousEvent::TELEMETRY_LOG_CHANGED,
    ];
    for (count, event) in (1..).zip(events) {
        fake.event(event.into_bits());
        let start = Instant::now();
        while fake.admin_commands(AdminOpcode::GET_LOG_PAGE) < count {
            assert!(start.elapsed() < LONG);
            std::thread::yield_now();
        }
    }
    assert_eq!(fake.state().event_requests.len(), 3, "each goes out again");
}
