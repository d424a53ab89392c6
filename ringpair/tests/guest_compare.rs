//! `ringpair bench --compare qemu`, too short to say anything but that it works.

use fixtures::guest_or_skip;
use serde_json::Value;

mod program;
use program::{Folder, fail, succeed};

#[test]
fn each_device_is_read_from_at_each_depth_and_ours_is_counted() {
    if guest_or_skip().is_none() {
        return;
    }
    let folder = Folder::new();
    let (disk, plot) = (folder.file("disk.img", 64 << 20), folder.text("compare.svg"));
    let printed = succeed(&[
        "bench",
        "--compare",
        "qemu",
        &disk,
        "--rounds",
        "1",
        "--runtime",
        "300ms",
        "--json",
        "--plot",
        &plot,
    ]);
    let rows: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let found: Vec<_> =
        rows.iter().map(|row| (row["device"].as_str().unwrap(), row["iodepth"].as_u64().unwrap())).collect();
    let devices = ["ringpair", "qemu-nvme", "qemu-virtio-blk"];
    assert_eq!(found, [1, 32].map(|iodepth| devices.map(|device| (device, iodepth))).concat());
    for row in &rows {
        for field in ["iops", "cpu_ns_per_io"] {
            assert!(row[field].as_u64().expect(field) > 0, "{row}");
        }
        assert!(row["lat_ns"]["p50"].as_u64() <= row["lat_ns"]["p99"].as_u64(), "{row}");
        let counted = row.get("interrupts_per_io").is_some();
        assert_eq!(counted, row["device"] == "ringpair", "{row}");
    }
    let interrupts = rows[0]["interrupts_per_io"].as_f64().expect("counted");
    assert!((0.8..=1.2).contains(&interrupts), "a lone command has an interrupt of its own: {}", rows[0]);
    assert!(std::fs::read_to_string(&plot).expect("a picture").contains("QEMU virtio-blk"));
}

#[test]
fn what_qemu_has_no_counterpart_of_and_options_without_a_meaning_are_refused() {
    assert!(fail(2, &["bench", "--compare", "qemu", "mem:1G"]).contains("mem:1G"));
    assert!(fail(2, &["bench", "--compare", "qemu", "nvme://0000:01:00.0/1"]).contains("nvme://"));
    assert!(fail(2, &["bench", "--compare", "qemu", "--rw", "randwrite"]).contains("--rw"));
    assert!(fail(2, &["bench", "--rounds", "2"]).contains("--compare"));
}
