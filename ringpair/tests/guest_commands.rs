//! What nvme-cli and fio in a stock Debian guest find on a ringpair controller.

use fixtures::{Guest, PageCache, guest_or_skip};
use serde_json::Value;
use std::time::Duration;

mod served;
use served::Served;

#[test]
fn commands_answer_as_the_specification_says() {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::files(&[64 << 20, 32 << 20]);
    let guest = served.plug(builder).boot().expect("the guest boots");
    let devices = [block_device(&guest, 1), block_device(&guest, 2)];
    identify(&guest, &devices);
    logs_and_features(&guest, &devices[0]);
    data_commands(&guest, &devices[0]);
    errors_are_reported(&guest, &devices[1]);
    discards(&guest, &devices[1]);
    verified_by_fio(&guest, &devices[0]);
    if let Some(cache) = PageCache::of_or_skip(&served.path("disk0")) {
        write_cache_is_switched(&guest, &devices[0], &cache);
    }
    let log = guest.console();
    for complaint in ["timeout", "I/O Error", "Call Trace", "completion polled"] {
        assert!(!log.contains(complaint), "the kernel complains: {log}");
    }
    guest.power_off().expect("QEMU ends in order");
    served.stop();
}

/// The name of a namespace's block device. Linux looks for namespaces in parallel, and numbers them as it finds them.
fn block_device(guest: &Guest, namespace: u32) -> String {
    let find = format!("cd /sys/block && grep -lx {namespace} nvme*/nsid");
    let path = guest.check(&find).expect("the namespace is there");
    path.trim().trim_end_matches("/nsid").to_owned()
}

fn json(guest: &Guest, command: &str) -> Value {
    let text = guest.check(&format!("nvme {command} -o json")).expect(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"))
}

fn number(value: &Value, key: &str) -> u64 {
    let number = value[key].as_u64().or_else(|| value[key].as_str()?.parse().ok());
    number.unwrap_or_else(|| panic!("no number {key} in {value}"))
}

fn identify(guest: &Guest, devices: &[String; 2]) {
    let controller = json(guest, "id-ctrl /dev/nvme0");
    assert!(number(&controller, "ver") >= 0x2_00_00, "NVMe 2.0: {controller}");
    assert!(number(&controller, "oacs") & 1 << 8 != 0, "Doorbell Buffer Config is offered: {controller}");
    assert_eq!(number(&controller, "vwc") & 1, 1, "cache=writeback has a volatile write cache: {controller}");
    // Firmware sends Identify to every namespace identifier up to this number.
    assert!((2..=256).contains(&number(&controller, "nn")), "{controller}");
    let oncs = number(&controller, "oncs");
    for (bit, command) in [(0, "Compare"), (2, "Dataset Management"), (3, "Write Zeroes"), (7, "Verify")] {
        assert!(oncs & 1 << bit != 0, "{command} is offered: {controller}");
    }
    let namespaces = json(guest, "list-ns /dev/nvme0");
    assert_eq!(namespaces["nsid_list"].as_array().map(Vec::len), Some(2), "{namespaces}");
    for (device, bytes) in devices.iter().zip([64_u64 << 20, 32 << 20]) {
        let identified = json(guest, &format!("id-ns /dev/{device}"));
        assert_eq!(number(&identified, "nsze"), bytes / 512, "{identified}");
        let sectors = guest.check(&format!("cat /sys/block/{device}/size")).expect("a size");
        assert_eq!(sectors.trim(), (bytes / 512).to_string());
    }
    // Linux shows an identifier if it believes it, and has to tell namespaces apart by it.
    let identifiers = guest.check("cat /sys/block/nvme0n*/wwid").expect("identifiers");
    let identifiers: Vec<_> = identifiers.lines().collect();
    assert!(identifiers.len() == 2 && identifiers[0] != identifiers[1], "{identifiers:?}");
    assert!(identifiers.iter().all(|i| i.starts_with("uuid.") || i.starts_with("eui.")), "{identifiers:?}");
}

fn logs_and_features(guest: &Guest, device: &str) {
    let before = json(guest, "smart-log /dev/nvme0");
    guest.check(&format!("dd if=/dev/{device} of=/dev/null bs=1M count=16 iflag=direct")).expect("reads");
    let after = json(guest, "smart-log /dev/nvme0");
    // One unit is a thousand 512-byte blocks.
    let units = number(&after, "data_units_read") - number(&before, "data_units_read");
    assert!((32..=34).contains(&units), "16 MiB are 32.8 units: {before} {after}");
    assert!(number(&after, "host_read_commands") > number(&before, "host_read_commands"));
    assert_eq!(number(&after, "critical_warning"), 0, "{after}");

    for log in [
        "effects-log --csi=0",
        "fw-log",
        "changed-ns-list-log",
        "supported-log-pages",
        "fid-support-effects-log",
    ] {
        guest.check(&format!("nvme {log} /dev/nvme0")).expect(log);
    }
    for feature in [1, 2, 4, 5, 6, 7, 8, 9, 10, 11] {
        let command = format!("nvme get-feature /dev/nvme0 --feature-id={feature} --namespace-id=1 -H");
        guest.check(&command).expect("a mandatory feature");
    }
}

fn data_commands(guest: &Guest, device: &str) {
    guest.check(&format!("nvme flush /dev/{device}")).expect("flush");
    guest.check("head -c 8192 /dev/urandom >/tmp/data && head -c 8192 /dev/zero >/tmp/zeroes").expect("data");
    let io = |command: &str, first: u64, data: &str| {
        format!(
            "nvme {command} /dev/{device} --start-block={first} --block-count=15 --data-size=8192 --data={data}"
        )
    };
    guest.check(&io("write", 64, "/tmp/data")).expect("write");
    guest.check(&io("compare", 64, "/tmp/data")).expect("the same data compares equal");
    let unequal = guest.run(&io("compare", 64, "/tmp/zeroes")).expect("it runs");
    assert!(!unequal.success(), "other data compares equal: {unequal:?}");
    assert!(unequal.stderr.contains("Compare Failure"), "{unequal:?}");
    guest.check(&format!("nvme verify /dev/{device} --start-block=64 --block-count=15")).expect("verify");

    guest
        .check(&format!("nvme write-zeroes /dev/{device} --start-block=64 --block-count=7"))
        .expect("write zeroes");
    guest.check(&io("read", 64, "/tmp/read")).expect("read");
    let halves = "cmp -n 4096 /tmp/read /tmp/zeroes && tail -c 4096 /tmp/read >/tmp/a && tail -c 4096 /tmp/data | cmp - /tmp/a";
    guest.check(halves).expect("those blocks are zero, and no others");

    guest
        .check(&format!("nvme dsm /dev/{device} --ad --slbs=64,1000,5000 --blocks=16,8,1"))
        .expect("deallocate three ranges");
    guest.check(&io("read", 64, "/tmp/read")).expect("read");
    guest.check("cmp /tmp/read /tmp/zeroes").expect("a deallocated hole reads as zeroes");
}

fn errors_are_reported(guest: &Guest, device: &str) {
    let entries = |guest: &Guest| json(guest, "error-log /dev/nvme0 --log-entries=4");
    let count = |log: &Value| {
        log["errors"].as_array().map_or(0, |e| e.iter().map(|e| number(e, "error_count")).max().unwrap_or(0))
    };
    let before = count(&entries(guest));
    let io = "--start-block=0x100000 --block-count=0 --data-size=512 --data=/dev/null";
    let refused = guest.run(&format!("nvme read /dev/{device} {io}")).expect("it runs");
    assert!(refused.stderr.contains("LBA Out of Range"), "{refused:?}");
    let log = entries(guest);
    assert_eq!(count(&log), before + 1, "{log}");
    let newest = &log["errors"][0];
    assert_eq!(number(newest, "nsid"), 2, "{log}");
    assert_eq!(number(newest, "lba"), 0x10_0000, "{log}");
    assert_eq!(number(newest, "status_field") & 0xff, 0x80, "{log}");

    let unknown = guest.run("nvme admin-passthru /dev/nvme0 --opcode=0xbf").expect("it runs");
    assert!(unknown.stderr.contains("Invalid Command Opcode"), "{unknown:?}");
    let page = guest.run("nvme get-log /dev/nvme0 --log-id=0xbf --log-len=64").expect("it runs");
    assert!(page.stderr.contains("Invalid Log Page"), "{page:?}");
}

fn discards(guest: &Guest, device: &str) {
    guest.check(&format!("dd if=/dev/urandom of=/dev/{device} bs=1M count=8 conv=fsync")).expect("data");
    guest
        .check(&format!("blkdiscard /dev/{device} && cmp -n 8388608 /dev/{device} /dev/zero"))
        .expect("Linux discards all of it");
}

fn verified_by_fio(guest: &Guest, device: &str) {
    let queues = guest.check(&format!("ls /sys/block/{device}/mq | wc -l")).expect("queues");
    assert_eq!(queues.trim(), "2", "a queue for each processor");
    let common = "--direct=1 --rw=randwrite --verify=crc32c --verify_fatal=1 --end_fsync=1 --group_reporting";
    let sizes = "--size=8M --offset_increment=16M --numjobs=3 --bssplit=512/20:4k/50:16k/20:160k/10";
    for engine in ["io_uring --iodepth=32", "psync --sync=dsync --size=1M"] {
        let command =
            format!("fio --name=verify --filename=/dev/{device} {common} {sizes} --ioengine={engine}");
        guest.check_within(&command, Duration::from_secs(90)).expect("fio finds what it wrote");
    }
}

/// Set Features 06h, and what Linux makes of it: it asks whether there is a cache when it identifies the controller, and
/// never for the feature. Who switches the cache off tells Linux by `queue/write_cache`; from then on it sends neither
/// flush nor FUA.
fn write_cache_is_switched(guest: &Guest, device: &str, cache: &PageCache) {
    let run = |command: &str| guest.check(command).expect("it runs");
    let switch = |on: u8| run(&format!("nvme set-feature /dev/nvme0 --feature-id=6 --value={on}"));
    let feature = || {
        let text = run("nvme get-feature /dev/nvme0 --feature-id=6");
        let value = text.trim().rsplit(':').next().map(|value| value.trim_start_matches("0x"));
        u32::from_str_radix(value.expect("a value"), 16).expect("a number")
    };
    let attribute = format!("/sys/block/{device}/queue/write_cache");
    let linux = || run(&format!("cat {attribute}")).trim().to_owned();
    let tell_linux = |what: &str| run(&format!("echo '{what}' >{attribute}"));
    let dd = format!("dd if=/dev/urandom of=/dev/{device} bs=64k count=4");
    // Without a flush afterwards, and with one, if Linux sends one.
    let (write, write_and_sync) = (format!("{dd} oflag=direct"), format!("{dd} conv=fsync"));
    let lost_after = |command: &str| {
        run(command);
        cache.lost_pages().expect("the kernel says it")
    };
    // Sometimes the host's kernel is faster.
    let loses = |command: &str| (0..5).any(|_| lost_after(command) > 0);

    assert_eq!((linux().as_str(), feature()), ("write back", 1));
    assert_eq!(lost_after(&write_and_sync), 0, "a flush");
    assert!(loses(&write), "cache=writeback has a cache");

    switch(0);
    assert_eq!(cache.lost_pages().expect("the kernel says it"), 0, "what was in the cache");
    assert_eq!(lost_after(&write), 0, "a write with the cache off");
    run("nvme ns-rescan /dev/nvme0");
    assert_eq!((linux().as_str(), feature()), ("write back", 0), "Linux does not ask");

    tell_linux("write through");
    assert_eq!(lost_after(&write_and_sync), 0, "fsync without a flush, with the cache off");
    // A reset brings the feature's default back, and Linux keeps to what it was told.
    run("nvme reset /dev/nvme0");
    assert_eq!((linux().as_str(), feature()), ("write through", 1));
    assert_eq!(lost_after(&write_and_sync), 0, "fsync without a flush, after a reset");

    switch(1);
    assert!(loses(&write_and_sync), "Linux sends no flush when it takes the disk for write through");
    tell_linux("write back");
    assert_eq!(lost_after(&write_and_sync), 0, "a flush");
}
