//! A controller that whoever lent it wants back, as the kernel does when its driver is unbound from it.

mod fake;

use std::time::{Duration, Instant};

use fake::{Answer, Fake, Step};
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::registers::{ControllerConfiguration, ShutdownNotification};
use nvme_spec::{AdminOpcode, NvmOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::{Condition, Controller, Error, Fault, Options, QueuePair, Recovery};

/// Far more than any of this takes, even on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);

fn open(fake: &Fake) -> Controller {
    // The controller is looked at every eighth of that.
    let options = Options { io_timeout: Duration::from_millis(400), ..Options::default() };
    let controller = Controller::open(fake.boxed(), options).unwrap();
    fake.state().steps.clear();
    controller
}

fn read(queue: &mut QueuePair, token: u64) {
    queue.submit(SubmissionQueueEntry::new(NvmOpcode::READ, 0).with_nsid(1), token).unwrap();
    queue.kick();
}

fn want_back(fake: &Fake, controller: &Controller) {
    fake.state().wanted_back = true;
    let start = Instant::now();
    while controller.condition() != Condition::Failed {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
}

#[test]
fn it_is_shut_down_in_order_and_without_memory_when_it_is_given_back() {
    let fake = Fake::new();
    let controller = open(&fake);
    let _buffer = controller.alloc_dma(4096).unwrap();
    want_back(&fake, &controller);
    let steps = fake.state().steps.clone();
    let cc = |step: &Step| match step {
        Step::Write { register: "CC", value } => Some(ControllerConfiguration::from_bits(*value as u32)),
        _ => None,
    };
    let written: Vec<_> = steps.iter().filter_map(cc).map(|cc| (cc.en(), cc.shn())).collect();
    assert_eq!(written, [(true, ShutdownNotification::Normal), (false, ShutdownNotification::None)]);
    assert_eq!(steps.last(), Some(&Step::GivenBack));
}

#[test]
fn what_had_completed_has_and_everything_else_ends_with_the_reason() {
    let fake = Fake::new();
    let controller = open(&fake);
    let mut queue = controller.queue_pair().unwrap();
    fake.state().answer = Answer::Held;
    read(&mut queue, 7);
    read(&mut queue, 8);
    fake.complete(0, Status::SUCCESS);
    want_back(&fake, &controller);

    let mut ended = Vec::new();
    let fault = loop {
        if let Err(fault) = queue.poll(|token, result| ended.push((token, result))) {
            break fault;
        }
    };
    assert_eq!(fault, Fault::TakenBack);
    assert_eq!(ended, [(7, Ok(())), (8, Err(Status::HOST_PATHING_ERROR))]);
    let failure = controller.failure().expect("it says why");
    assert!(failure.starts_with("fake: the controller was taken back"), "{failure}");
    for error in [controller.namespace(1).map(drop), controller.reset()] {
        assert!(matches!(error, Err(Error::Queue { fault: Fault::TakenBack, .. })), "{error:?}");
    }
}

#[test]
fn it_is_given_back_while_it_owes_the_answer_to_an_admin_command() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::GET_LOG_PAGE);
    fake.event(AsynchronousEvent::TEMPERATURE_THRESHOLD.into_bits());
    let start = Instant::now();
    while fake.admin_commands(AdminOpcode::GET_LOG_PAGE) == 0 {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    want_back(&fake, &controller);
    assert!(controller.failure().is_some_and(|why| why.contains("taken back")));
}

#[test]
fn one_that_was_given_up_is_given_back_as_well() {
    let fake = Fake::new();
    let options = Options {
        io_timeout: Duration::from_millis(400),
        recovery: Some(Recovery { resets: 0, ..Recovery::default() }),
        ..Options::default()
    };
    let controller = Controller::open(fake.boxed(), options).unwrap();
    fake.state().csts.set_cfs(true);
    let start = Instant::now();
    while controller.condition() != Condition::Failed {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    fake.state().wanted_back = true;
    while fake.state().steps.last() != Some(&Step::GivenBack) {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    assert!(controller.failure().is_some_and(|why| why.contains("given up")), "that is why it failed");
}
