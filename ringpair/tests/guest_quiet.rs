//! What a guest's disk costs when nothing happens, and how few messages it takes when much does.

use fixtures::{Guest, Wiretap, guest_or_skip};
use std::time::{Duration, Instant};

mod served;
use served::Served;

/// Doorbells begin here in BAR0 (NVMe over PCIe Transport specification, "Doorbell registers").
const DOORBELLS: u64 = 0x1000;

#[test]
fn an_idle_guest_costs_next_to_nothing_and_a_busy_one_hardly_a_message() {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::files(&[64 << 20]);
    let tap = Wiretap::new(&served.path("tap"), &served.socket()).expect("a socket in between");
    let guest = builder.vfio_user(&served.path("tap")).boot().expect("the guest boots");

    let idle = Duration::from_secs(5);
    guest.check("sync; sleep 1").expect("it settles");
    let (before, started) = (served.process.cpu_time().expect("it runs"), Instant::now());
    std::thread::sleep(idle);
    let used = served.process.cpu_time().expect("it runs") - before;
    let elapsed = started.elapsed();
    println!("CPU time while the guest does nothing: {used:?} of {elapsed:?}");
    assert!(used * 500 <= elapsed, "{used:?} of {elapsed:?} while the guest does nothing");

    // Single seconds scatter, in both directions, with what else the machine does: the median has to keep the promise.
    let mut ratios: Vec<f64> = (0..5).map(|_| messages_per_request(&guest, &tap)).collect();
    println!("doorbell messages per request: {ratios:.3?}");
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[2] < 0.1, "doorbell messages per request, sorted: {ratios:.3?}");
    guest.power_off().expect("QEMU ends in order");
    drop(tap);
    served.stop();
}

/// Doorbell messages for each request at a queue depth of 32, measured for a second.
fn messages_per_request(guest: &Guest, tap: &Wiretap) -> f64 {
    let doorbells = || tap.region_writes(|write| write.region == 0 && write.offset >= DOORBELLS);
    let (messages_before, requests_before) = (doorbells(), requests(guest));
    guest
        .check(
            "fio --name=busy --filename=/dev/nvme0n1 --direct=1 --rw=randread --bs=4k --size=64M --ioengine=io_uring \
             --iodepth=32 --time_based --runtime=1",
        )
        .expect("fio reads");
    let (messages, requests) = (doorbells() - messages_before, requests(guest) - requests_before);
    assert!(requests > 500, "{requests}");
    messages as f64 / requests as f64
}

/// Reads that the disk has completed (the kernel's `Documentation/block/stat.rst`).
fn requests(guest: &Guest) -> u64 {
    let statistics = guest.check("cat /sys/block/nvme0n1/stat").expect("statistics");
    statistics.split_whitespace().next().and_then(|reads| reads.parse().ok()).expect("a number")
}
