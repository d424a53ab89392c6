//! What controllers cost that are connected, with queues, and have nothing to do.

mod program;
use nvme_vfio::transport::VfioUser;
use nvme_vfio::{Controller, Options};
use program::{Folder, Served};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

const CONTROLLERS: usize = 100;

#[test]
fn a_hundred_idle_controllers_cost_a_hundredth_of_a_core_and_a_megabyte_each() {
    let folder = Folder::new();
    let mut config = String::new();
    for number in 0..CONTROLLERS {
        let socket = folder.text(&format!("socket{number}"));
        config.push_str(&format!("[[controller]]\nsocket = {socket:?}\ndisks = [\"null:1G\"]\n"));
    }
    let served = Served::start(&["--config", &folder.write("many.toml", &config)]);
    let connect = |number: usize| {
        let transport = VfioUser::connect(&folder.path(&format!("socket{number}"))).expect("it connects");
        // Without the thread that asks the controller for its health now and then: guests have none.
        let options = Options { recovery: None, ..Options::default() };
        let controller = Controller::open(Box::new(transport), options).expect("it comes up");
        let mut pair = controller.queue_pair().expect("a queue pair");
        // Each has been busy: what it needs for that is there.
        let (namespace, buffer) =
            (controller.namespace(1).expect("its disk"), controller.alloc_dma(4096).expect("memory"));
        pair.read(&namespace, 0, 4096 / namespace.block_size(), buffer.range(0..4096), 0).expect("room");
        pair.kick();
        while pair.in_flight() > 0 {
            pair.poll(|_, result| result.expect("it reads")).expect("it lives");
        }
        (pair, controller)
    };
    let connected: Vec<_> = (0..CONTROLLERS).map(connect).collect();

    std::thread::sleep(Duration::from_millis(500));
    let cpu_time = || fixtures::cpu_time(served.id()).expect("it runs");
    let (began, before) = (Instant::now(), cpu_time());
    std::thread::sleep(Duration::from_secs(3));
    let (used, elapsed) = (cpu_time() - before, began.elapsed());
    let resident = own_memory(served.id());
    println!("{used:?} of {elapsed:?}; {} KiB", resident >> 10);
    assert!(used * 100 <= elapsed, "{used:?} of {elapsed:?}");
    assert!(resident <= (8 + CONTROLLERS as u64) << 20, "{resident} bytes");

    drop(connected);
    assert_eq!(served.end(Signal::TERM), Some(0));
}

/// Resident memory in bytes, without what is shared with others: that is the guests' (proc(5), `/proc/pid/status`).
fn own_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))
        .expect("it runs");
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect(name)
    };
    (field("RssAnon:") + field("RssFile:")) << 10
}
