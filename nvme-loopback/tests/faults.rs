//! The driver against a controller that misbehaves by script: every fault ends as documented, within its deadline, and
//! what was written is what is read afterwards.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::{AdminOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Condition, Error, Fault, Options, QueuePair, Recovery, RecoveryCounters};
use rig::{Emulated, Rig, pattern};

const IO_TIMEOUT: Duration = Duration::from_millis(200);
const ABORT_TIMEOUT: Duration = Duration::from_millis(100);
/// Five times what a deadline, its Abort's and a reset take.
const TIMELY: Duration = Duration::from_secs(2);
/// Far more than that, even on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);

fn options() -> Options {
    let recovery = Recovery { abort_timeout: ABORT_TIMEOUT, resets: 4, window: Duration::from_secs(600) };
    Options {
        queues: 4,
        depth: 16,
        io_timeout: IO_TIMEOUT,
        admin_timeout: Duration::from_secs(2),
        recovery: Some(recovery),
        ..Options::default()
    }
}

fn rig(script: &str) -> Rig {
    Rig::faulty(script, Emulated::default(), options())
}

fn run(
    queue: &mut QueuePair,
    submit: impl FnOnce(&mut QueuePair) -> Result<(), nvme_vfio::SubmitError>,
) -> Result<(), Status> {
    submit(queue).unwrap();
    queue.kick();
    let mut ended = None;
    let start = Instant::now();
    while ended.is_none() {
        queue.poll(|_, result| assert!(ended.replace(result).is_none(), "ended twice")).unwrap();
        assert!(start.elapsed() < LONG, "it hangs");
        thread::yield_now();
    }
    ended.unwrap()
}

/// Writes 20 pieces and reads them back; how each command ended.
fn write_and_read_back(rig: &Rig) -> Vec<Result<(), Status>> {
    let namespace = rig.controller.namespace(1).unwrap();
    let mut queue = rig.controller.queue_pair().unwrap();
    let buffer = rig.controller.alloc_dma(8192).unwrap();
    let range = buffer.range(0..8192);
    let mut results = Vec::new();
    for piece in 0..20 {
        buffer.write_at(0, &pattern(piece, 8192));
        results.push(run(&mut queue, |queue| queue.write(&namespace, piece * 16, 16, range, false, 0)));
    }
    for piece in 0..20 {
        buffer.fill(0..8192, 0xee);
        let result = run(&mut queue, |queue| queue.read(&namespace, piece * 16, 16, range, 0));
        if result.is_ok() && results[piece as usize].is_ok() {
            let mut data = vec![0; 8192];
            buffer.read_at(0, &mut data);
            assert!(data == pattern(piece, 8192), "piece {piece}");
        }
        results.push(result);
    }
    results
}

/// Everything goes well in the end, with so many resets and so much else.
fn recovers(script: &str) -> RecoveryCounters {
    let start = Instant::now();
    let rig = rig(script);
    let results = write_and_read_back(&rig);
    assert!(results.iter().all(Result::is_ok), "{script}: {results:?}");
    assert_eq!(rig.controller.condition(), Condition::Running, "{script}");
    assert!(start.elapsed() < LONG, "{script}");
    rig.controller.recovery_counters()
}

/// The same, and it is not much later than deadlines allow.
fn recovers_in_time(script: &str) -> RecoveryCounters {
    let mut took = Vec::new();
    loop {
        let start = Instant::now();
        let counters = recovers(script);
        took.push(start.elapsed());
        if start.elapsed() < TIMELY {
            return counters;
        }
        // On a machine that is busy, one may be late; not one after the other.
        assert!(took.len() < 3, "{script}: {took:?}");
    }
}

#[test]
fn completions_that_do_not_come_as_they_should_cost_a_reset_and_no_data() {
    for opcode in ["write", "read"] {
        for what in ["drop", "ignore", "wrong-cid", "wrong-queue", "wrong-head", "wrong-phase"] {
            let script = format!("[[fault]]\nopcode = '{opcode}'\nnth = 3\ndo = '{what}'\n");
            let counters = recovers_in_time(&script);
            assert_eq!((counters.resets, counters.replayed, counters.failed), (1, 1, 0), "{opcode}: {what}");
            // Those that are seen to be wrong need no deadline.
            let silent = matches!(what, "drop" | "ignore" | "wrong-phase");
            assert_eq!(counters.expired, u64::from(silent), "{opcode}: {what}");
        }
    }
}

#[test]
fn a_duplicate_completion_costs_a_reset_and_is_not_taken_for_the_next_command() {
    let counters = recovers_in_time("[[fault]]\nopcode = 'read'\nnth = 3\ndo = 'duplicate'\n");
    assert_eq!(counters.resets, 1);
}

#[test]
fn a_completion_that_is_late_but_within_its_deadline_costs_nothing() {
    let counters = recovers("[[fault]]\nnth = 3\ndo = 'delay'\nby = '50ms'\n");
    assert_eq!(counters, RecoveryCounters::default());
}

#[test]
fn a_completion_that_is_late_by_less_than_an_abort_takes_costs_an_abort() {
    let counters = recovers("[[fault]]\nnth = 3\ndo = 'delay'\nby = '260ms'\n");
    // On a busy machine it may come after the Abort's deadline too.
    assert_eq!(counters.expired, 1);
}

#[test]
fn a_completion_that_is_too_late_is_not_taken_for_anything_after_the_reset() {
    let counters = recovers_in_time("[[fault]]\nopcode = 'write'\nnth = 3\ndo = 'delay'\nby = '2s'\n");
    assert_eq!((counters.resets, counters.replayed), (1, 1));
}

#[test]
fn a_completion_passed_over_is_noticed_by_what_comes_behind_it() {
    let rig = rig("[[fault]]\nnth = 3\ndo = 'wrong-phase'\n");
    let namespace = rig.controller.namespace(1).unwrap();
    let mut queue = rig.controller.queue_pair().unwrap();
    for token in 0..10 {
        queue.flush(&namespace, token).unwrap();
    }
    queue.kick();
    let mut ended = Vec::new();
    let start = Instant::now();
    while ended.len() < 10 {
        queue.poll(|token, result| ended.push((token, result))).unwrap();
        assert!(start.elapsed() < LONG);
    }
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended, (0..10).map(|token| (token, Ok(()))).collect::<Vec<_>>());
    let counters = rig.controller.recovery_counters();
    assert_eq!((counters.resets, counters.expired), (1, 0), "no deadline had to pass");
}

#[test]
fn a_fatal_error_costs_a_reset_and_no_data() {
    let counters = recovers_in_time("[[fault]]\nopcode = 'write'\nnth = 7\ndo = 'fatal'\n");
    assert_eq!((counters.resets, counters.replayed, counters.expired), (1, 1, 0));
}

#[test]
fn a_controller_that_does_not_let_itself_be_disabled_has_its_function_reset() {
    let script = "ready-timeout = '500ms'\n[[fault]]\nnth = 3\ndo = 'fatal'\n\
                  [[fault]]\nwhen = 'disable'\ndo = 'always-ready'\n";
    let counters = recovers(script);
    assert_eq!((counters.resets, counters.replayed), (1, 1));
}

#[test]
fn a_controller_that_is_away_for_a_moment_comes_back() {
    let counters = recovers_in_time("[[fault]]\nnth = 5\ndo = 'gone'\nlasting = '50ms'\n");
    assert!((1..=4).contains(&counters.resets), "{counters:?}");
}

#[test]
fn a_controller_that_is_not_ready_once_gets_another_reset() {
    let script = "ready-timeout = '500ms'\n[[fault]]\nnth = 3\ndo = 'fatal'\n\
                  [[fault]]\nwhen = 'enable'\nnth = 2\ndo = 'never-ready'\n";
    assert_eq!(recovers(script).resets, 2);
}

#[test]
fn an_error_status_is_the_commands_and_nobody_elses() {
    let rig = rig("[[fault]]\nopcode = 'read'\nnth = 3\ndo = 'fail'\nstatus = 'unrecovered-read-error'\n");
    let results = write_and_read_back(&rig);
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].1.unwrap_err().is(Status::UNRECOVERED_READ_ERROR));
    assert_eq!(failed[0].0, 22);
    assert_eq!(rig.controller.recovery_counters(), RecoveryCounters::default());
}

/// Every command ends with Host Pathing Error, and then everything says why.
fn fails_for_good(script: &str, why: &str) {
    let start = Instant::now();
    let rig = rig(script);
    let namespace = rig.controller.namespace(1).unwrap();
    let mut queues: Vec<QueuePair> = (0..2).map(|_| rig.controller.queue_pair().unwrap()).collect();
    for queue in &mut queues {
        for token in 0..10 {
            queue.flush(&namespace, token).unwrap();
        }
        queue.kick();
    }
    for queue in &mut queues {
        let (mut ended, mut lost) = (0, 0);
        let fault = loop {
            match queue.poll(|_, result| {
                ended += 1;
                lost += u64::from(result == Err(Status::HOST_PATHING_ERROR));
            }) {
                Ok(_) => thread::yield_now(),
                Err(fault) => break fault,
            }
            assert!(start.elapsed() < LONG, "{script}: it hangs");
        };
        assert!(matches!(fault, Fault::GivenUp { .. }), "{script}: {fault}");
        assert_eq!(ended, 10, "{script}: each ends once");
        assert!(lost > 0, "{script}");
    }
    assert_eq!(rig.controller.condition(), Condition::Failed);
    let failure = rig.controller.failure().unwrap();
    assert!(failure.contains(why), "{script}: {failure}");
    assert!(rig.controller.namespace(1).is_err());
    drop((queues, rig));
    assert!(start.elapsed() < LONG, "{script}: nothing waits for it");
}

#[test]
fn a_controller_that_has_gone_for_good_fails_for_good() {
    fails_for_good("[[fault]]\nnth = 4\ndo = 'gone'\n", "the controller has gone");
}

#[test]
fn a_controller_that_never_gets_ready_again_fails_for_good() {
    let script = "ready-timeout = '500ms'\n[[fault]]\nnth = 4\ndo = 'fatal'\n\
                  [[fault]]\nwhen = 'enable'\nnth = 2\ntimes = 0\ndo = 'never-ready'\n";
    fails_for_good(script, "given up after 4 resets in 600s: loopback: CSTS.RDY = 1 took more than");
}

#[test]
fn a_controller_that_fails_again_and_again_fails_for_good() {
    fails_for_good("[[fault]]\ntimes = 0\ndo = 'fatal'\n", "CSTS.CFS");
}

#[test]
fn a_controller_that_answers_identify_with_another_serial_number_after_a_reset_fails_for_good() {
    let script = "[[fault]]\nnth = 4\ndo = 'fatal'\n\
                  [[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnth = 3\ndo = 'corrupt'\noffset = 4\n\
                  bytes = [0x58, 0x59]\n";
    fails_for_good(script, "another controller has taken its place: XY");
}

#[test]
fn identify_data_that_cannot_be_is_refused() {
    let refusal = |offset: usize, bytes: &str, opcode_nth: u32| {
        let script = format!(
            "[[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnth = {opcode_nth}\ndo = 'corrupt'\n\
             offset = {offset}\nbytes = {bytes}\n"
        );
        let script = nvme_emu::FaultScript::parse(&script).unwrap();
        let (engine, function) = Emulated::default().start_with(Some(script));
        let transport = nvme_loopback::Loopback::new("loopback", function).unwrap();
        let opened = nvme_vfio::Controller::open(Box::new(transport), options());
        let error = opened.and_then(|controller| controller.namespace(1)).unwrap_err().to_string();
        drop(engine);
        error
    };
    // SQES and CQES, of the controller.
    assert!(refusal(512, "[0x77]", 1).contains("submission queue entries of 2^7 bytes are not supported"));
    assert!(refusal(513, "[0x55]", 1).contains("completion queue entries of 2^5 bytes are not supported"));
    // NSZE, and the formatted LBA size, of the namespace.
    let zero = "[0, 0, 0, 0, 0, 0, 0, 0]";
    assert!(refusal(0, zero, 2).contains("namespace 1 is not active"));
    let formats: Vec<String> = (0..64).map(|_| "0, 0, 60, 0".to_owned()).collect();
    let formats = format!("[{}]", formats.join(", "));
    assert!(refusal(128, &formats, 2).contains("namespace 1 has blocks of 2^60 bytes"));
}

/// What the driver takes from Identify Controller, with other bytes in it.
#[test]
fn identify_data_that_is_odd_is_worked_with_as_far_as_it_can_be() {
    let with = |offset: usize, bytes: &str| {
        rig(&format!(
            "[[fault]]\nqueue = 'admin'\nopcode = 'identify'\ndo = 'corrupt'\noffset = {offset}\n\
             bytes = {bytes}\n"
        ))
    };
    // MDTS: 2, none, and 255 as powers of two.
    for (mdts, max) in [(1, 8192), (0, 1 << 20), (255, 1 << 20)] {
        let rig = with(77, &format!("[{mdts}]"));
        assert_eq!(rig.controller.max_transfer(), max, "{mdts}");
        assert!(write_and_read_back(&rig).iter().all(Result::is_ok), "{mdts}");
    }
    // RTD3E: more than an hour to shut down, for a controller that does so at once.
    let start = Instant::now();
    drop(with(88, "[255, 255, 255, 255]"));
    assert!(start.elapsed() < LONG);
    // NN: how far the list of namespaces is believed.
    for (nn, nsids) in [("[0, 0, 0, 0]", vec![]), ("[255, 255, 255, 255]", vec![1])] {
        let rig = with(516, nn);
        assert_eq!(rig.controller.namespace_ids().unwrap(), nsids, "{nn}");
        assert!(write_and_read_back(&rig).iter().all(Result::is_ok), "{nn}");
    }
    // ELPE and AERL, which counts what is 0's based.
    let rig = with(259, "[255, 0, 0, 255]");
    assert!(write_and_read_back(&rig).iter().all(Result::is_ok));
}

#[test]
fn an_ignored_abort_changes_nothing() {
    let counters = recovers_in_time(
        "[[fault]]\nnth = 3\ndo = 'drop'\n[[fault]]\nqueue = 'admin'\nopcode = 'abort'\ntimes = 0\n\
         do = 'ignore'\n",
    );
    assert_eq!((counters.resets, counters.replayed), (1, 1));
}

#[test]
fn an_admin_command_without_an_answer_is_late_and_the_next_one_works() {
    let rig = rig("[[fault]]\nqueue = 'admin'\nopcode = 'get-features'\ndo = 'drop'\n");
    let get = SubmissionQueueEntry { cdw10: 7, ..SubmissionQueueEntry::new(AdminOpcode::GET_FEATURES, 0) };
    let start = Instant::now();
    let error = rig.controller.admin(get, AdminData::None).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let results = write_and_read_back(&rig);
    assert!(results.iter().all(Result::is_ok));
    rig.controller.admin(get, AdminData::None).unwrap();
    assert_eq!(rig.controller.recovery_counters().resets, 1);
    assert!(start.elapsed() < LONG);
}

#[test]
fn admin_completions_that_cannot_be_cost_a_reset() {
    for what in ["wrong-cid", "wrong-queue", "wrong-head", "duplicate"] {
        let script = format!("[[fault]]\nqueue = 'admin'\nopcode = 'get-features'\ndo = '{what}'\n");
        let rig = rig(&script);
        let get =
            SubmissionQueueEntry { cdw10: 7, ..SubmissionQueueEntry::new(AdminOpcode::GET_FEATURES, 0) };
        // It is what the command's completion, or the next look at the queue, says.
        let _ = rig.controller.admin(get, AdminData::None);
        let start = Instant::now();
        while rig.controller.recovery_counters().resets == 0 {
            assert!(start.elapsed() < LONG, "{what}");
            thread::yield_now();
        }
        assert!(write_and_read_back(&rig).iter().all(Result::is_ok), "{what}");
    }
}

#[test]
fn a_reset_that_is_spoilt_half_way_is_tried_again() {
    for spoilt in ["identify", "set-features", "create-io-completion-queue", "create-io-submission-queue"] {
        // The first are those that opening takes.
        let nth = if spoilt.starts_with("create") { 2 } else { 3 };
        let script = format!(
            "[[fault]]\nnth = 3\ndo = 'fatal'\n\
             [[fault]]\nqueue = 'admin'\nopcode = '{spoilt}'\nnth = {nth}\ndo = 'ignore'\n"
        );
        let counters = recovers(&script);
        assert!(counters.resets >= 2, "{spoilt}: {counters:?}");
    }
}

#[test]
fn events_are_acted_on() {
    let rig = rig("[[fault]]\nopcode = 'flush'\ndo = 'event'\nevent = 'temperature'\n\
         [[fault]]\nopcode = 'flush'\ndo = 'event'\nevent = 'persistent-internal-error'\n\
         [[fault]]\nopcode = 'flush'\ndo = 'event'\nevent = 'namespace-attribute-changed'\n\
         [[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnamespace = 1\nnth = 2\ntimes = 0\ndo = 'corrupt'\n\
         offset = 0\nbytes = [1, 0, 0]\n\
         [[fault]]\nqueue = 'admin'\nopcode = 'get-log-page'\nnth = 3\ndo = 'event'\n\
         event = 'telemetry-log-changed'\n");
    let namespace = rig.controller.namespace(1).unwrap();
    let (sender, receiver) = mpsc::channel();
    let _watch = rig.controller.watch_namespace(&namespace, move |now| {
        sender.send(now.unwrap().capacity_lbas()).unwrap();
    });
    let mut queue = rig.controller.queue_pair().unwrap();
    assert_eq!(run(&mut queue, |queue| queue.flush(&namespace, 0)), Ok(()));
    assert_eq!(receiver.recv_timeout(LONG).unwrap(), 1);
    // The last one says that the log pages of those before it have been read.
    let mut events = Vec::new();
    let start = Instant::now();
    while events.len() < 4 {
        events.extend(rig.controller.events().unwrap());
        assert!(start.elapsed() < LONG, "{events:?}");
        thread::yield_now();
    }
    events.sort_by_key(|event| event.into_bits());
    assert_eq!(
        events,
        [
            AsynchronousEvent::PERSISTENT_INTERNAL_ERROR,
            AsynchronousEvent::TEMPERATURE_THRESHOLD,
            AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED,
            AsynchronousEvent::TELEMETRY_LOG_CHANGED
        ]
    );
    assert_eq!(rig.controller.recovery_counters(), RecoveryCounters::default());
}

#[test]
fn resets_under_load_lose_nothing_on_any_queue_pair() {
    // Faults of four kinds, on four queue pairs with a thread each.
    let script = "[[fault]]\nqueue = 1\nnth = 300\ndo = 'fatal'\n[[fault]]\nqueue = 2\nnth = 900\ndo = 'drop'\n\
                  [[fault]]\nqueue = 3\nnth = 1500\ndo = 'wrong-cid'\n\
                  [[fault]]\nqueue = 4\nnth = 2100\ndo = 'duplicate'\n";
    let rig = rig(script);
    let namespace = rig.controller.namespace(1).unwrap();
    let stop = AtomicBool::new(false);
    let done: [AtomicU64; 4] = Default::default();
    let start = Instant::now();
    thread::scope(|scope| {
        for (worker, done) in (0..).zip(&done) {
            let (controller, namespace, stop) = (&rig.controller, &namespace, &stop);
            let mut queue = controller.queue_pair().unwrap();
            scope.spawn(move || {
                let buffer = controller.alloc_dma(16 * 4096).unwrap();
                let slba = |slot: u64| (worker * 16_u64 + slot) * 8;
                let range = |slot: u64| buffer.range(slot as usize * 4096..(slot as usize + 1) * 4096);
                // Each of 8 slots is written, read back and compared, over and over.
                let mut round = [0_u64; 8];
                for slot in 0..8 {
                    buffer.write_at(slot as usize * 4096, &pattern(slot, 4096));
                    queue.write(namespace, slba(slot), 8, range(slot), false, slot).unwrap();
                }
                queue.kick();
                let mut ended = Vec::with_capacity(8);
                while !stop.load(Ordering::Relaxed) || queue.in_flight() > 0 {
                    queue.poll(|slot, result| ended.push((slot, result))).unwrap();
                    for (slot, result) in ended.drain(..) {
                        assert_eq!(result, Ok(()));
                        done.fetch_add(1, Ordering::Relaxed);
                        let at = slot as usize * 4096;
                        let step = &mut round[slot as usize];
                        if *step % 2 == 1 {
                            let mut data = vec![0; 4096];
                            buffer.read_at(at, &mut data);
                            assert!(data == pattern(slot + (*step / 2) * 8, 4096), "queue {}", queue.qid());
                        }
                        *step += 1;
                        if stop.load(Ordering::Relaxed) {
                            continue;
                        }
                        if *step % 2 == 1 {
                            buffer.fill(at..at + 4096, 0xee);
                            queue.read(namespace, slba(slot), 8, range(slot), slot).unwrap();
                        } else {
                            buffer.write_at(at, &pattern(slot + (*step / 2) * 8, 4096));
                            queue.write(namespace, slba(slot), 8, range(slot), false, slot).unwrap();
                        }
                    }
                    queue.kick();
                    assert!(start.elapsed() < 3 * LONG, "it hangs");
                    thread::yield_now();
                }
            });
        }
        // Past the last fault, on each of them.
        while done.iter().any(|done| done.load(Ordering::Relaxed) < 2300) && start.elapsed() < 2 * LONG {
            thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) >= 2300), "{done:?}");
    // Those that come together are put right together.
    let resets = rig.controller.recovery_counters().resets;
    assert!((2..=4).contains(&resets), "{resets}");
}
