//! Asynchronous events, from what raises them to their completion.

use super::*;

const NAMESPACE_NOTICES: u32 = 1 << 8;
const TEMPERATURE_WARNING: u32 = 1 << 1;

fn request(cid: u16) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, cid)
}

/// A bench with all the requests that there may be.
fn listening() -> Bench {
    let mut bench = Bench::new();
    for cid in 0..u16::from(EVENT_REQUEST_LIMIT) {
        assert_eq!(bench.execute(request(cid)), Outcome::Parked);
    }
    bench
}

#[test]
fn one_request_too_many_ends_with_its_own_status() {
    let mut bench = listening();
    assert_eq!(bench.fail(request(9)), Status::AER_LIMIT_EXCEEDED);
}

#[test]
fn a_bad_doorbell_is_reported_and_logged() {
    let mut bench = listening();
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellValue, Some(5));
    assert_eq!(bench.events(), [(0, 0x0001_0100)]);
    let entry = bench.log(0x01, 64);
    assert_eq!((u16_at(&entry, 8), u16_at(&entry, 10)), (5, 0xffff), "SQID, no command");
}

#[test]
fn a_bad_doorbell_is_not_forgotten_while_nobody_listens() {
    let mut bench = Bench::new();
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.execute(request(4)), Outcome::Parked);
    assert_eq!(bench.events(), [(4, 0x0001_0000)]);
}

#[test]
fn reading_the_log_page_unmasks_unless_the_event_is_retained() {
    let mut bench = listening();
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events().len(), 1);
    let retain = admin_command::GetLogPage::new().with_lid(1).with_number_of_bytes(64).with_rae(true);
    bench.succeed(get_log(1, 64).with_dwords(retain));
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events(), []);
    bench.log(0x01, 64);
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events().len(), 1);
}

#[test]
fn namespace_changes_are_told_to_those_who_asked() {
    let mut bench = listening();
    bench.admin.namespace_changed(3);
    assert_eq!(bench.events(), []);
    bench.succeed(set_feature(0x0b, NAMESPACE_NOTICES));
    assert_eq!(bench.events(), [(0, 0x0004_0002)], "the change that is still to be read");
    bench.log(0x04, 4096);
    bench.admin.namespace_changed(1);
    assert_eq!(bench.events(), [(1, 0x0004_0002)]);
}

#[test]
fn a_threshold_moved_past_the_temperature_warns() {
    let mut bench = listening();
    bench.succeed(set_feature(0x0b, TEMPERATURE_WARNING));
    assert_eq!(bench.events(), []);
    bench.succeed(set_feature(0x04, 313));
    assert_eq!(bench.events(), [(0, 0x0002_0101)]);
    assert_eq!(bench.log(0x02, 512)[0], 1 << 1, "critical warning");
    bench.succeed(set_feature(0x04, 313));
    assert_eq!(bench.events(), [], "told already, and nothing has changed");
    bench.succeed(set_feature(0x04, 343));
    assert_eq!(bench.log(0x02, 512)[0], 0);
    bench.succeed(set_feature(0x04, 1 << 20 | 313));
    assert_eq!(bench.events(), [(1, 0x0002_0101)], "under temperature");
}

#[test]
fn a_warning_that_holds_when_it_is_enabled_is_told() {
    let mut bench = listening();
    bench.succeed(set_feature(0x04, 300));
    assert_eq!(bench.events(), []);
    bench.succeed(set_feature(0x0b, TEMPERATURE_WARNING));
    assert_eq!(bench.events(), [(0, 0x0002_0101)]);
}

#[test]
fn an_event_switched_off_before_it_was_reported_is_dropped() {
    let mut bench = Bench::new();
    bench.succeed(set_feature(0x0b, NAMESPACE_NOTICES));
    bench.admin.namespace_changed(1);
    bench.succeed(set_feature(0x0b, 0));
    assert_eq!(bench.execute(request(1)), Outcome::Parked);
    assert_eq!(bench.events(), []);
}

#[test]
fn a_reset_forgets_requests_and_events() {
    let mut bench = listening();
    bench.admin.reset();
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events(), []);
    bench.admin.reset();
    assert_eq!(bench.execute(request(1)), Outcome::Parked);
    assert_eq!(bench.events(), []);
}

#[test]
fn an_aborted_request_is_forgotten() {
    let mut bench = listening();
    assert!(bench.admin.abort_event_request(0));
    assert!(!bench.admin.abort_event_request(0));
    bench.admin.bad_doorbell(AsyncEvent::InvalidDoorbellRegister, None);
    assert_eq!(bench.events(), [(1, 0x0001_0000)]);
}
