//! Nothing polls on an idle controller. In a process of its own, so that its CPU time is all there is.

mod host;

use host::{Host, disk};
use std::time::Duration;

#[test]
fn an_idle_engine_sleeps() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    host.create_queue(1);
    std::thread::sleep(Duration::from_millis(50));
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_time() - before < Duration::from_millis(3), "300 ms of idling");
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
