//! Get and Set Features.

use super::*;
use nvme_spec::feature::NumberOfQueues;

const CURRENT: u8 = 0;
const DEFAULT: u8 = 1;
const SAVED: u8 = 2;
const CAPABILITIES: u8 = 3;

/// Features and values that a host can give them.
const VALUES: [(u8, u32); 10] = [
    (0x01, 0x0403_0203), // Arbitration
    (0x02, 0x0000_0020), // Power Management: a workload hint
    (0x04, 0x0000_0180), // Temperature Threshold: over, composite
    (0x04, 0x0010_0080), // Temperature Threshold: under, composite
    (0x06, 0x0000_0000), // Volatile Write Cache: off
    (0x07, 0x0003_0001), // Number of Queues: 4 and 2
    (0x08, 0x0000_0a04), // Interrupt Coalescing
    (0x0a, 0x0000_0001), // Write Atomicity Normal
    (0x0b, 0x0000_0102), // Asynchronous Event Configuration
    (0x19, 0x0000_0000), // I/O Command Set Profile
];

#[test]
fn what_is_set_is_current_until_a_reset() {
    for (fid, value) in VALUES {
        let mut bench = Bench::new();
        let selector = if fid == 0x04 { value & 0x003f_0000 } else { 0 };
        let default = bench.succeed(get_feature(fid, CURRENT, selector));
        bench.succeed(set_feature(fid, value));
        let expected = if fid == 0x04 { value & 0xffff } else { value };
        assert_eq!(bench.succeed(get_feature(fid, CURRENT, selector)), expected, "{fid:02x}h");
        assert_eq!(bench.succeed(get_feature(fid, DEFAULT, selector)), default, "{fid:02x}h");
        assert_eq!(bench.succeed(get_feature(fid, SAVED, selector)), default, "{fid:02x}h");
        bench.admin.reset();
        assert_eq!(bench.succeed(get_feature(fid, CURRENT, selector)), default, "{fid:02x}h");
    }
}

#[test]
fn no_feature_can_be_saved() {
    let mut bench = Bench::new();
    for (fid, value) in VALUES {
        let save = admin_command::SetFeatures::new().with_fid(fid).with_sv(true);
        let sqe = set_feature(fid, value).with_dwords(save);
        assert_eq!(bench.fail(sqe), Status::FEATURE_NOT_SAVEABLE, "{fid:02x}h");
        assert_eq!(bench.succeed(get_feature(fid, CAPABILITIES, 0)) & 1, 0, "{fid:02x}h");
    }
}

#[test]
fn capabilities_say_what_is_changeable_and_a_namespaces() {
    let mut bench = Bench::new();
    assert_eq!(bench.succeed(get_feature(0x01, CAPABILITIES, 0)), 4);
    assert_eq!(bench.succeed(get_feature(0x05, CAPABILITIES, 0)), 6);
}

#[test]
fn unknown_features_and_selections_are_an_invalid_field() {
    let mut bench = Bench::new();
    for fid in [0x00, 0x03, 0x0c, 0x0d, 0x0f, 0x10, 0x16, 0x80, 0xff] {
        assert_eq!(bench.fail(set_feature(fid, 0)), Status::INVALID_FIELD, "{fid:02x}h");
        assert_eq!(bench.fail(get_feature(fid, CURRENT, 0)), Status::INVALID_FIELD, "{fid:02x}h");
    }
    for sel in 4..8 {
        assert_eq!(bench.fail(get_feature(0x01, sel, 0)), Status::INVALID_FIELD);
    }
}

#[test]
fn a_controllers_feature_cannot_be_set_for_one_namespace() {
    let mut bench = Bench::new();
    let for_nsid = |nsid| set_feature(0x0a, 1).with_nsid(nsid);
    bench.succeed(for_nsid(0));
    bench.succeed(for_nsid(NSID_BROADCAST));
    assert_eq!(bench.fail(for_nsid(1)), Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    assert_eq!(bench.fail(for_nsid(2)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(for_nsid(4)), Status::INVALID_NAMESPACE);
    assert_eq!(bench.succeed(get_feature(0x0a, CURRENT, 0).with_nsid(1)), 1);
}

#[test]
fn error_recovery_is_each_namespaces_own() {
    let mut bench = Bench::new();
    let set = |nsid, value| set_feature(0x05, value).with_nsid(nsid);
    let get = |nsid| get_feature(0x05, CURRENT, 0).with_nsid(nsid);
    bench.succeed(set(1, 7));
    assert_eq!((bench.succeed(get(1)), bench.succeed(get(3))), (7, 0));
    bench.succeed(set(NSID_BROADCAST, 9));
    assert_eq!((bench.succeed(get(1)), bench.succeed(get(3))), (9, 9));
    for nsid in [0, 4, NSID_BROADCAST] {
        assert_eq!(bench.fail(get(nsid)), Status::INVALID_NAMESPACE);
    }
    assert_eq!(bench.fail(get(2)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(set(0, 1)), Status::INVALID_NAMESPACE);
    assert_eq!(bench.fail(set(1, 1 << 16)), Status::INVALID_FIELD, "DULBE");
}

#[test]
fn arbitration_is_decoded_for_the_reactors() {
    let mut bench = Bench::new();
    assert_eq!(bench.admin.features().arbitration().arbitration_burst(), None);
    let outcome = bench.execute(set_feature(0x01, 0x0201_0003));
    assert_eq!(outcome, Outcome::Complete { dw0: 0, changed: true });
    assert_eq!(bench.admin.features().arbitration().arbitration_burst(), Some(8));
}

#[test]
fn there_is_one_power_state() {
    let mut bench = Bench::new();
    bench.succeed(set_feature(0x02, 0));
    assert_eq!(bench.fail(set_feature(0x02, 1)), Status::INVALID_FIELD);
}

#[test]
fn volatile_write_cache_can_be_switched_off() {
    let mut bench = Bench::new();
    assert!(bench.admin.features().volatile_write_cache());
    assert_eq!(bench.execute(set_feature(0x06, 0)), Outcome::Complete { dw0: 0, changed: true });
    assert!(!bench.admin.features().volatile_write_cache());
    bench.admin.reset();
    assert!(bench.admin.features().volatile_write_cache());
}

#[test]
fn without_a_volatile_write_cache_there_is_no_such_feature() {
    let info = DiskInfo { volatile_cache: false, ..described() };
    let subsystem = Subsystem::new(SubsystemOptions::default(), vec![namespace(1, info, None)]).unwrap();
    let mut admin = Admin::new(&subsystem, options()).unwrap();
    let (mut host, machine) = (Host::default(), FakeMachine::default());
    for sqe in [set_feature(0x06, 1), get_feature(0x06, CURRENT, 0)] {
        let outcome = admin.execute(&sqe, &mut host, &machine);
        assert!(matches!(outcome, Outcome::Failed(status) if status.is(Status::INVALID_FIELD)));
    }
}

#[test]
fn queues_are_granted_as_asked_up_to_the_limit() {
    let mut bench = Bench::new();
    let granted = |bench: &Bench| bench.admin.features().number_of_queues();
    assert_eq!(granted(&bench), NumberOfQueues::of(8, 8), "before anybody asked");
    assert_eq!(bench.succeed(set_feature(0x07, 0x0002_0001)), 0x0002_0001);
    assert_eq!(granted(&bench), NumberOfQueues::of(2, 3));
    assert_eq!(bench.succeed(set_feature(0x07, 0xfffe_fffe)), 0x0007_0007);
    assert_eq!(granted(&bench), NumberOfQueues::of(8, 8));
    assert_eq!(bench.fail(set_feature(0x07, 0x0000_ffff)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(set_feature(0x07, 0xffff_0000)), Status::INVALID_FIELD);
}

#[test]
fn queues_cannot_be_asked_for_once_there_are_some() {
    let mut bench = Bench::new();
    bench.machine.vectors_in_use = vec![1];
    assert_eq!(bench.fail(set_feature(0x07, 0)), Status::COMMAND_SEQUENCE_ERROR);
    assert_eq!(bench.succeed(get_feature(0x07, CURRENT, 0)), 0x0007_0007);
}

#[test]
fn interrupt_coalescing_is_decoded_for_the_reactors() {
    let mut bench = Bench::new();
    let coalescing = |bench: &Bench| {
        let feature = bench.admin.features().interrupt_coalescing();
        (feature.aggregation_threshold(), feature.aggregation_time())
    };
    assert_eq!(coalescing(&bench), (1, Duration::ZERO));
    assert_eq!(bench.execute(set_feature(0x08, 0x0a07)), Outcome::Complete { dw0: 0, changed: true });
    assert_eq!(coalescing(&bench), (8, Duration::from_millis(1)));
}

#[test]
fn coalescing_is_switched_off_for_vectors_that_a_queue_uses() {
    let mut bench = Bench::new();
    bench.machine.vectors_in_use = vec![2];
    let outcome = bench.execute(set_feature(0x09, 1 << 16 | 2));
    assert_eq!(outcome, Outcome::Complete { dw0: 0, changed: true });
    assert!(bench.admin.features().coalescing_disabled(2));
    assert!(!bench.admin.features().coalescing_disabled(1));
    assert!(!bench.admin.features().coalescing_disabled(0xffff));
    assert_eq!(bench.succeed(get_feature(0x09, CURRENT, 2)), 1 << 16 | 2);
    assert_eq!(bench.succeed(get_feature(0x09, DEFAULT, 2)), 2);
    assert_eq!(bench.succeed(get_feature(0x09, CURRENT, 8)), 8);
    assert_eq!(bench.fail(get_feature(0x09, CURRENT, 9)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(set_feature(0x09, 9)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(set_feature(0x09, 3)), Status::INVALID_FIELD, "no queue uses it");
}

#[test]
fn temperature_thresholds_are_the_composite_temperatures() {
    let mut bench = Bench::new();
    assert_eq!(bench.succeed(get_feature(0x04, CURRENT, 0)), 343);
    assert_eq!(bench.succeed(get_feature(0x04, CURRENT, 1 << 20)), 0);
    bench.succeed(set_feature(0x04, 0xf << 16 | 350));
    assert_eq!(bench.succeed(get_feature(0x04, CURRENT, 0)), 350, "set for all sensors");
    for dw11 in [1 << 16, 2 << 20] {
        assert_eq!(bench.fail(set_feature(0x04, dw11)), Status::INVALID_FIELD);
        assert_eq!(bench.fail(get_feature(0x04, CURRENT, dw11)), Status::INVALID_FIELD);
    }
    assert_eq!(bench.fail(get_feature(0x04, CURRENT, 0xf << 16)), Status::INVALID_FIELD);
}

#[test]
fn timestamp_counts_from_what_the_host_set() {
    let mut bench = Bench::new();
    bench.succeed(get_feature(0x0e, CURRENT, 0));
    assert!(u64_at(&bench.host.data, 0) < 60_000, "since the reset, and that is its origin");
    bench.host.data = 0xffff_0123_4567_89ab_u64.to_le_bytes().to_vec();
    bench.succeed(set_feature(0x0e, 0));
    bench.succeed(get_feature(0x0e, CURRENT, 0));
    let timestamp = u64_at(&bench.host.data, 0);
    assert!((0x0123_4567_89ab..0x0123_4568_89ab).contains(&(timestamp & 0xffff_ffff_ffff)));
    assert_eq!(timestamp >> 48, 1 << 1, "origin: set by the host; never stopped");
    bench.succeed(get_feature(0x0e, DEFAULT, 0));
    assert_eq!(u64_at(&bench.host.data, 0) >> 48, 0);
    bench.admin.reset();
    bench.succeed(get_feature(0x0e, CURRENT, 0));
    assert!(u64_at(&bench.host.data, 0) < 60_000);
}

#[test]
fn other_command_set_combinations_are_rejected() {
    let mut bench = Bench::new();
    assert_eq!(bench.fail(set_feature(0x19, 1)), Status::IO_COMMAND_SET_COMBINATION_REJECTED);
}

#[test]
fn only_what_reactors_act_on_counts_as_changed() {
    let mut bench = Bench::new();
    for (fid, value) in [(0x02, 0), (0x04, 400), (0x0a, 1), (0x0b, 0)] {
        let outcome = bench.execute(set_feature(fid, value));
        assert_eq!(outcome, Outcome::Complete { dw0: 0, changed: false }, "{fid:02x}h");
    }
}
