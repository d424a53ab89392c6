//! The admin queue: deadlines, late completions, events.

mod fake;

use std::time::{Duration, Instant};

use fake::Fake;
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::{AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Controller, Error, Options};

fn open(fake: &Fake) -> Controller {
    let options = Options { admin_timeout: Duration::from_millis(200), recovery: None, ..Options::default() };
    Controller::open(fake.boxed(), options).unwrap()
}

fn keep_alive() -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(AdminOpcode::KEEP_ALIVE, 0)
}

#[test]
fn a_command_that_gets_no_answer_ends_with_its_deadline_and_the_next_one_works() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    let start = Instant::now();
    let error = controller.admin(keep_alive(), AdminData::None).unwrap_err().to_string();
    assert_eq!(error, "fake: Keep Alive took more than 200ms");
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&start.elapsed()));
    fake.state().ignored = None;
    controller.admin(keep_alive(), AdminData::None).unwrap();
}

#[test]
fn a_completion_after_the_deadline_is_taken_for_nothing_else() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    controller.admin(keep_alive(), AdminData::None).unwrap_err();
    fake.state().ignored = None;
    fake.complete(0, Status::INTERNAL_ERROR);
    controller.admin(keep_alive(), AdminData::None).unwrap();
}

#[test]
fn data_goes_both_ways_at_any_length() {
    let fake = Fake::new();
    let controller = open(&fake);
    // Identify is what the fake answers with data.
    let identify = SubmissionQueueEntry { cdw10: 1, ..SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0) };
    let mut data = vec![0; 100];
    controller.admin(identify, AdminData::FromController(&mut data)).unwrap();
    assert_eq!(data[77], 9, "MDTS");
    // Longer than the bounce buffer was.
    let long = vec![7; 1 << 20];
    let send = SubmissionQueueEntry::new(AdminOpcode::SECURITY_SEND, 0);
    controller.admin(send, AdminData::ToController(&long)).unwrap();
    let too_long = vec![0; 3 << 20];
    let error = controller.admin(send, AdminData::ToController(&too_long)).unwrap_err().to_string();
    assert_eq!(error, "fake: 3145728 bytes are too much for an admin command");
}

#[test]
fn event_requests_are_kept_outstanding_within_the_controllers_limit() {
    let fake = Fake::new();
    let controller = open(&fake);
    // AERL is 2: 3 of them.
    assert_eq!(fake.state().event_requests.len(), 3);
    fake.event(AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits());
    fake.event(AsynchronousEvent::SPARE_BELOW_THRESHOLD.into_bits());
    assert_eq!(
        controller.events().unwrap(),
        [AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED, AsynchronousEvent::SPARE_BELOW_THRESHOLD]
    );
    assert_eq!(fake.state().event_requests.len(), 3, "each goes out again");
    assert_eq!(controller.events().unwrap(), []);
}

#[test]
fn an_event_during_a_command_is_kept_for_later() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.event(AsynchronousEvent::TEMPERATURE_THRESHOLD.into_bits());
    controller.admin(keep_alive(), AdminData::None).unwrap();
    assert_eq!(controller.events().unwrap(), [AsynchronousEvent::TEMPERATURE_THRESHOLD]);
}

#[test]
fn an_unknown_identifier_on_the_admin_queue_is_an_error() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    fake.state().post_to(0, CompletionQueueEntry::new(30, 0, 0, Status::SUCCESS, false));
    let error = controller.admin(keep_alive(), AdminData::None).unwrap_err().to_string();
    assert_eq!(error, "fake: queue 0: a completion has command identifier 30, which is not in flight");
}

#[test]
fn a_fatal_error_ends_the_wait_for_a_command() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    fake.state().csts.set_cfs(true);
    let error = controller.admin(keep_alive(), AdminData::None).unwrap_err().to_string();
    assert_eq!(error, "fake: the controller reports a fatal error (CSTS.CFS)");
}

#[test]
fn a_reset_brings_back_an_admin_queue_that_was_stuck() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().ignored = Some(AdminOpcode::KEEP_ALIVE);
    controller.admin(keep_alive(), AdminData::None).unwrap_err();
    fake.state().ignored = None;
    controller.reset().unwrap();
    controller.admin(keep_alive(), AdminData::None).unwrap();
    assert_eq!(fake.state().event_requests.len(), 3);
}

#[test]
fn the_data_of_a_command_that_may_still_run_is_the_controllers_until_it_ends_or_is_disabled() {
    for ends in [true, false] {
        let fake = Fake::new();
        let controller = open(&fake);
        fake.state().ignored = Some(AdminOpcode::GET_LOG_PAGE);
        let get = SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 0);
        let short = Duration::from_millis(10);
        let error = controller.admin_within(get, AdminData::FromController(&mut [0; 64]), short).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let data = fake.state().held[0].1.prp1;
        // The next command has other memory.
        controller.namespace(1).unwrap();
        assert!(fake.state().is_mapped(data));
        if ends {
            fake.complete(0, Status::SUCCESS);
            controller.namespace(1).unwrap();
        } else {
            controller.reset().unwrap();
        }
        assert!(!fake.state().is_mapped(data), "{ends}");
    }
}

#[test]
fn events_that_never_end_keep_nobody() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().events_without_end = true;
    fake.event(AsynchronousEvent::TEMPERATURE_THRESHOLD.into_bits());
    assert!(!controller.events().unwrap().is_empty());
    controller.namespace(1).unwrap();
}

#[test]
fn namespaces_that_never_end_are_those_that_can_be() {
    let fake = Fake::new();
    let controller = open(&fake);
    fake.state().namespaces_without_end = true;
    assert_eq!(controller.namespace_ids().unwrap(), [1], "NN is 1");
    let fake = Fake::with(|state| {
        state.identify.nn = u32::MAX;
        state.namespaces_without_end = true;
    });
    let error = open(&fake).namespace_ids().unwrap_err().to_string();
    assert_eq!(error, "fake: it says that it has more than 65536 namespaces");
}
