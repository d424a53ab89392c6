//! Get Log Page. Offsets are the specification's, written out: what nvme-cli reads.

use super::*;
use nvme_spec::log_page::ParameterErrorLocation;

fn with_offset(lid: u8, bytes: u64, offset: u64) -> SubmissionQueueEntry {
    let dwords = admin_command::GetLogPage::new().with_lid(lid).with_number_of_bytes(bytes).with_lpo(offset);
    get_log(lid, bytes).with_dwords(dwords)
}

fn u128_at(data: &[u8], offset: usize) -> u128 {
    u128::from_le_bytes(data[offset..offset + 16].try_into().unwrap())
}

fn error(cid: u16, status: Status) -> CommandError {
    CommandError { sqid: 2, cid, status, location: ParameterErrorLocation::NONE, lba: 1000, nsid: 3 }
}

#[test]
fn supported_log_pages_are_those_that_can_be_read() {
    let mut bench = Bench::new();
    let supported = bench.log(0x00, 1024);
    for lid in 0..=0xff {
        let claimed = u32_at(&supported, usize::from(lid) * 4) & 1 == 1;
        match bench.execute(get_log(lid, 16)) {
            Outcome::Complete { .. } => assert!(claimed, "{lid:02x}h"),
            Outcome::Failed(status) => assert!(!claimed && status.is(Status::INVALID_LOG_PAGE), "{lid:02x}h"),
            other => panic!("{other:?}"),
        }
    }
    for mandatory in [0x00, 0x01, 0x02, 0x03, 0x05, 0x12] {
        assert_eq!(u32_at(&supported, mandatory * 4), 1);
    }
}

#[test]
fn pages_belong_to_the_controller_and_not_to_a_namespace() {
    let mut bench = Bench::new();
    bench.succeed(get_log(2, 512).with_nsid(0));
    bench.succeed(get_log(2, 512).with_nsid(NSID_BROADCAST));
    assert_eq!(bench.fail(get_log(2, 512).with_nsid(1)), Status::INVALID_FIELD);
}

#[test]
fn any_part_of_a_page_can_be_read() {
    let mut bench = Bench::new();
    let whole = bench.log(0x05, 4096);
    for (offset, len) in [(0, 4), (4, 8), (1024, 16), (4092, 4)] {
        bench.succeed(with_offset(0x05, len, offset));
        let (offset, len) = (offset as usize, len as usize);
        assert_eq!(bench.host.data, whole[offset..offset + len]);
    }
}

#[test]
fn past_its_end_a_page_is_zero_and_further_on_an_invalid_field() {
    let mut bench = Bench::new();
    let page = bench.log(0x03, 1024);
    assert_eq!(page.len(), 1024);
    assert!(page[512..].iter().all(|&byte| byte == 0));
    bench.succeed(with_offset(0x03, 8, 512));
    assert_eq!(bench.host.data, [0; 8]);
    assert_eq!(bench.fail(with_offset(0x03, 4, 516)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(with_offset(0x03, 4, u64::MAX - 3)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(with_offset(0x03, 4, 2)), Status::INVALID_FIELD);
}

#[test]
fn transfers_larger_than_mdts_are_an_invalid_field() {
    let mut bench = Bench::new();
    assert_eq!(bench.log(0x02, 4096 << 5).len(), 4096 << 5);
    assert_eq!(bench.fail(get_log(0x02, (4096 << 5) + 4)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(get_log(0x02, 1 << 34)), Status::INVALID_FIELD);
}

#[test]
fn pages_are_not_indexed() {
    let mut bench = Bench::new();
    let mut sqe = get_log(0x01, 64);
    sqe.cdw14 = 1 << 23;
    assert_eq!(bench.fail(sqe), Status::INVALID_FIELD);
}

#[test]
fn errors_are_logged_newest_first_with_all_that_is_known() {
    let mut bench = Bench::new();
    let location = ParameterErrorLocation::new().with_byte(40).with_bit(3);
    let first = CommandError { location, ..error(10, Status::LBA_OUT_OF_RANGE.with_dnr()) };
    let status = bench.admin.record_error(first);
    assert!(status.is(Status::LBA_OUT_OF_RANGE) && status.more() && status.dnr());
    assert!(bench.admin.record_error(error(11, Status::INTERNAL_ERROR)).more());
    let log = bench.log(0x01, 64 * 64);
    let (newest, older) = (&log[..64], &log[64..128]);
    assert_eq!(u64_at(newest, 0), 2, "error count");
    assert_eq!((u16_at(newest, 8), u16_at(newest, 10)), (2, 11), "SQID, CID");
    assert_eq!(u16_at(newest, 14), 0xffff, "no parameter to blame");
    assert_eq!(u64_at(older, 0), 1);
    assert_eq!((u16_at(older, 8), u16_at(older, 10)), (2, 10));
    assert_eq!(u16_at(older, 12), 0x6080 << 1, "status field above the phase tag");
    assert_eq!(u16_at(older, 14), 3 << 8 | 40, "parameter error location");
    assert_eq!(u64_at(older, 16), 1000, "LBA");
    assert_eq!(u32_at(older, 24), 3, "namespace");
    assert!(log[128..].iter().all(|&byte| byte == 0), "no other entry");
}

#[test]
fn a_failed_admin_command_is_logged_with_the_field_to_blame() {
    let mut bench = Bench::new();
    bench.fail(identify(0xff, 1));
    let entry = bench.log(0x01, 64);
    assert_eq!((u16_at(&entry, 8), u16_at(&entry, 10)), (0, 0x77), "SQID, CID");
    assert_eq!(u16_at(&entry, 14), 40, "CNS is the first byte of CDW10");
    assert_eq!(u32_at(&entry, 24), 1, "namespace");
}

#[test]
fn a_full_error_log_drops_its_oldest_entry() {
    let mut bench = Bench::new();
    for cid in 0..70 {
        bench.admin.record_error(error(cid, Status::INTERNAL_ERROR));
    }
    let log = bench.log(0x01, 64 * 64);
    let counts: Vec<u64> = log.chunks_exact(64).map(|entry| u64_at(entry, 0)).collect();
    assert_eq!(counts, (7..=70).rev().collect::<Vec<_>>());
}

#[test]
fn a_reset_empties_the_error_log_but_its_count_goes_on() {
    let mut bench = Bench::new();
    bench.admin.record_error(error(1, Status::INTERNAL_ERROR));
    bench.admin.reset();
    assert!(bench.log(0x01, 4096).iter().all(|&byte| byte == 0));
    bench.admin.record_error(error(2, Status::INTERNAL_ERROR));
    assert_eq!(u64_at(&bench.log(0x01, 64), 0), 2);
}

#[test]
fn smart_counts_what_the_queues_did() {
    let mut bench = Bench::new();
    bench.machine.counters = IoCounters {
        bytes_read: 512 * 1000 + 1,
        bytes_written: 512,
        read_commands: 7,
        write_commands: 9,
        busy: Duration::from_secs(185),
    };
    let log = bench.log(0x02, 512);
    assert_eq!(u128_at(&log, 32), 2, "data units read, thousands rounded up");
    assert_eq!(u128_at(&log, 48), 1, "data units written");
    assert_eq!((u128_at(&log, 64), u128_at(&log, 80)), (7, 9), "host read and write commands");
    assert_eq!(u128_at(&log, 96), 3, "controller busy time in minutes");
}

#[test]
fn smart_is_healthy_at_40_degrees() {
    let log = Bench::new().log(0x02, 512);
    assert_eq!(log[0], 0, "critical warning");
    assert_eq!(u16_at(&log, 1), 313, "composite temperature");
    assert_eq!((log[3], log[4], log[5]), (100, 10, 0), "spare, its threshold, percentage used");
}

#[test]
fn smart_counts_errors_and_media_errors() {
    let mut bench = Bench::new();
    bench.admin.record_error(error(1, Status::UNRECOVERED_READ_ERROR));
    bench.admin.record_error(error(2, Status::LBA_OUT_OF_RANGE));
    bench.admin.record_error(error(3, Status::COMPARE_FAILURE));
    bench.admin.reset();
    let log = bench.log(0x02, 512);
    assert_eq!(u128_at(&log, 160), 1, "media and data integrity errors");
    assert_eq!(u128_at(&log, 176), 3, "error log entries over the life of the controller");
}

#[test]
fn smart_counts_power_cycles_and_unsafe_shutdowns() {
    let mut bench = Bench::new();
    bench.admin.power_cycle(true);
    bench.admin.power_cycle(false);
    bench.admin.reset();
    let log = bench.log(0x02, 512);
    assert_eq!(u128_at(&log, 112), 3, "power cycles");
    assert_eq!(u128_at(&log, 128), 0, "power on hours");
    assert_eq!(u128_at(&log, 144), 1, "unsafe shutdowns");
}

#[test]
fn one_firmware_slot_holds_the_running_revision() {
    let log = Bench::new().log(0x03, 512);
    assert_eq!(log[0], 1, "AFI");
    assert_eq!(&log[8..16], b"0.1.0   ", "FRS1");
    assert!(log[16..].iter().all(|&byte| byte == 0));
}

#[test]
fn command_effects_name_what_is_executed() {
    let mut bench = Bench::new();
    let log = bench.log(0x05, 4096);
    for opcode in 0..=0xff {
        let effects = u32_at(&log, usize::from(opcode) * 4);
        assert_eq!(effects & 1 == 1, bench.admin.offers_command(AdminOpcode(opcode)), "{opcode:02x}h");
    }
    let io = |opcode: usize| u32_at(&log, 1024 + opcode * 4);
    assert_eq!(io(0x02), 0x0010_0001, "Read: supported, of a namespace");
    assert_eq!(io(0x01), 0x0010_0003, "Write: and changes logical blocks");
    assert_eq!(io(0x19), 0, "no Copy");
    let supported: Vec<usize> = (0..256).filter(|&opcode| io(opcode) != 0).collect();
    assert_eq!(supported, [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c]);
}

#[test]
fn command_effects_of_other_command_sets_are_an_invalid_field() {
    let mut bench = Bench::new();
    let mut sqe = get_log(0x05, 4096);
    sqe.cdw14 = 2 << 24;
    assert_eq!(bench.fail(sqe), Status::INVALID_FIELD);
}

#[test]
fn feature_effects_name_the_features_that_can_be_got() {
    let mut bench = Bench::new();
    let log = bench.log(0x12, 1024);
    bench.host.data = vec![0; 8];
    for fid in 0..=0xff {
        let claimed = u32_at(&log, usize::from(fid) * 4);
        let outcome = bench.execute(get_feature(fid, 3, 0));
        assert_eq!(claimed & 1 == 1, matches!(outcome, Outcome::Complete { .. }), "{fid:02x}h");
    }
    assert_eq!(u32_at(&log, 4 * 4), 0x0020_0001, "temperature threshold: the controller's");
    assert_eq!(u32_at(&log, 5 * 4), 0x0010_0001, "error recovery: a namespace's");
    for mandatory in [0x01, 0x02, 0x04, 0x05, 0x07, 0x08, 0x09, 0x0a, 0x0b] {
        assert_eq!(u32_at(&log, mandatory * 4) & 1, 1, "{mandatory:02x}h");
    }
}

#[test]
fn changed_namespaces_are_listed_once_and_until_they_are_read() {
    let mut bench = Bench::new();
    bench.admin.namespace_changed(3);
    bench.admin.namespace_changed(1);
    bench.admin.namespace_changed(3);
    let retain = admin_command::GetLogPage::new().with_lid(4).with_number_of_bytes(4096).with_rae(true);
    bench.succeed(get_log(4, 4096).with_dwords(retain));
    assert_eq!((u32_at(&bench.host.data, 0), u32_at(&bench.host.data, 4)), (1, 3));
    let log = bench.log(0x04, 4096);
    assert_eq!([u32_at(&log, 0), u32_at(&log, 4), u32_at(&log, 8)], [1, 3, 0]);
    assert!(bench.log(0x04, 4096).iter().all(|&byte| byte == 0));
}

#[test]
fn a_log_that_could_not_be_delivered_is_not_cleared() {
    let mut bench = Bench::new();
    bench.admin.namespace_changed(3);
    bench.host.fails = Some(Status::DATA_TRANSFER_ERROR);
    bench.fail(get_log(4, 4096));
    bench.host.fails = None;
    assert_eq!(u32_at(&bench.log(0x04, 4096), 0), 3);
}
