//! `ringpair serve`, as a script sees it.

mod program;
use program::{Folder, Served};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;

#[test]
fn it_prints_what_to_paste_and_ends_well_on_either_signal() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    for signal in [Signal::TERM, Signal::INT] {
        let served = Served::start(&["--socket", &socket, &folder.file("disk.img", 1 << 20), "mem:1M"]);
        let device =
            format!(r#"-device '{{"driver":"vfio-user-pci","socket":{{"path":"{socket}","type":"unix"}}}}'"#);
        assert!(served.output.contains(&device), "{}", served.output);
        assert!(served.output.contains("memory-backend-memfd"), "{}", served.output);
        assert!(served.output.contains(&format!("--user-device socket={socket}")), "{}", served.output);
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(served.end(signal), Some(0));
        assert!(!folder.path("socket").exists(), "the socket is gone");
    }
}

#[test]
fn the_socket_of_a_dead_server_is_replaced() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    assert_eq!(Served::start(&["--socket", &socket, "null:1G"]).end(Signal::KILL), None);
    assert!(folder.path("socket").exists(), "the dead server left it");
    assert_eq!(Served::start(&["--socket", &socket, "null:1G"]).end(Signal::TERM), Some(0));
}

#[test]
fn a_configuration_file_serves_several_controllers() {
    let folder = Folder::new();
    let config = format!(
        "reactors = 2\n[[controller]]\nsocket = '{}'\ndisks = ['null:1G']\n[[controller]]\nsocket = '{}'\n\
         disks = ['mem:1M']\nqueues = 2\n",
        folder.text("a"),
        folder.text("b")
    );
    let served = Served::start(&["--config", &folder.write("two.toml", &config)]);
    for socket in ["a", "b"] {
        assert!(served.output.contains(&format!("serving at {}", folder.text(socket))), "{}", served.output);
        let target = format!("vfio-user:{}", folder.text(socket));
        assert!(program::succeed(&["identify", &target]).contains("ringpair"));
    }
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn counters_are_written_when_asked_for_and_at_the_end() {
    let folder = Folder::new();
    let (socket, stats) = (folder.text("socket"), folder.text("stats.json"));
    let served = Served::start(&["--socket", &socket, "--stats", &stats, "mem:1M"]);
    let before = served.stats(&stats);
    program::succeed(&["io", &format!("vfio-user:{socket}"), "write", "--length", "64k", "--pattern", "1"]);
    assert_eq!(served.end(Signal::TERM), Some(0));
    let after: serde_json::Value =
        serde_json::from_slice(&program::contents(&folder.path("stats.json"))).expect("JSON");
    let writes = |stats: &serde_json::Value| stats["controllers"][0]["writes"].as_u64().expect("a counter");
    assert!(writes(&after) > writes(&before), "the write was counted");
}

#[test]
fn a_controller_misbehaves_as_its_script_says_and_the_driver_puts_it_right() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let script = "[[fault]]\nopcode = 'write'\nnth = 3\ndo = 'fatal'\n\
                  [[fault]]\nopcode = 'read'\nnth = 5\ndo = 'wrong-cid'\n";
    let script = folder.write("faults.toml", script);
    let served = Served::start(&["--socket", &socket, "--faults", &script, "mem:4M"]);
    let target = format!("vfio-user:{socket}");
    let write = ["io", &target, "write", "--length", "4M", "--pattern", "9"];
    program::succeed(&write);
    program::succeed(&["io", &target, "verify", "--length", "4M", "--pattern", "9"]);
    assert_eq!(served.end(Signal::TERM), Some(0));

    // A disk that fails for good is an error that says why.
    let script = folder.write("gone.toml", "[[fault]]\nnth = 2\ndo = 'gone'\n");
    let served = Served::start(&["--socket", &socket, "--faults", &script, "mem:4M"]);
    let output = program::ringpair(&write);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("given up after 5 resets in 600s"), "{errors}");
    assert!(errors.contains("Host Pathing Error"), "{errors}");
    drop(served);
}

#[test]
fn a_drive_that_is_served_is_shut_down_in_an_orderly_way() {
    let folder = Folder::new();
    let (drive, socket) = (folder.text("drive.sock"), folder.text("guest.sock"));
    let _served = Served::start(&["--socket", &drive, "mem:4M"]);
    let disk = format!("vfio-user:{drive}/1");
    let unsafe_shutdowns = || {
        let said = program::succeed(&["nvme", "smart", &format!("vfio-user:{drive}"), "--json"]);
        let smart: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        smart["unsafe_shutdowns"].as_u64().expect("a number")
    };
    for signal in [Signal::INT, Signal::TERM] {
        let served = Served::start(&["--socket", &socket, &disk]);
        assert_eq!(served.end(signal), Some(0));
        assert_eq!(unsafe_shutdowns(), 0, "{signal:?}: CC.SHN");
    }
    let served = Served::start(&["--socket", &socket, &disk]);
    assert_eq!(served.end(Signal::KILL), None);
    assert_eq!(unsafe_shutdowns(), 1, "nobody can do so after SIGKILL, and the next start copes with it");
}

#[test]
fn a_drives_namespace_is_the_same_to_guests_wherever_the_drive_is_found() {
    let folder = Folder::new();
    let (outer, disk) = (folder.text("outer"), folder.file("disk.img", 1 << 20));
    let uuid = |drive: &str, of: &str| {
        let inner = Served::start(&["--socket", drive, of]);
        let served = Served::start(&["--socket", &outer, &format!("vfio-user:{drive}/1")]);
        let said = program::succeed(&["identify", "--json", &format!("vfio-user:{outer}/1,timeout=5")]);
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(served.end(Signal::TERM), Some(0));
        assert_eq!(inner.end(Signal::TERM), Some(0));
        said["namespaces"][0]["uuid"].as_str().expect("a UUID").to_owned()
    };
    let here = uuid(&folder.text("drive"), &disk);
    assert_eq!(uuid(&folder.text("elsewhere"), &disk), here);
    assert_ne!(uuid(&folder.text("drive"), &folder.file("other.img", 1 << 20)), here);
}

#[test]
fn controllers_of_one_process_share_a_drive() {
    let folder = Folder::new();
    let (drive, disk) = (folder.text("drive"), folder.file("disk.img", 8 << 20));
    let _drive = Served::start(&["--socket", &drive, "mem:1M", &disk]);
    let controller = |name: &str, disks: &str| {
        format!("[[controller]]\nsocket = '{}'\ndisks = [{disks}]\n", folder.text(name))
    };
    let second = format!("'vfio-user:{drive}/2'");
    let config = controller("a", &second) + &controller("b", &format!("{second}, 'vfio-user:{drive}/1'"));
    let served = Served::start(&["--config", &folder.write("shared.toml", &config)]);
    let [a, b] = ["a", "b"].map(|name| format!("vfio-user:{}/1", folder.text(name)));
    program::succeed(&["io", &a, "write", "--length", "4M", "--pattern", "3"]);
    program::succeed(&["io", &b, "verify", "--length", "4M", "--pattern", "3"]);
    program::succeed(&["io", &b, "write", "--offset", "4M", "--pattern", "4"]);
    program::succeed(&["io", &a, "verify", "--offset", "4M", "--pattern", "4"]);
    let other = format!("vfio-user:{}/2", folder.text("b"));
    program::succeed(&["io", &other, "verify", "--input", "/dev/null"]);
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn a_drive_with_too_few_queue_pairs_is_a_mistake_and_not_a_guests_surprise() {
    let folder = Folder::new();
    let (drive, socket) = (folder.text("drive"), folder.text("socket"));
    let served = Served::start(&["--socket", &drive, "--queues", "2", "mem:4M"]);
    let disk = format!("vfio-user:{drive}/1");
    let output = program::ringpair(&["serve", "--reactors", "2", "--socket", &socket, &disk]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("2 queue pairs are wanted") && errors.contains("there are 1:"), "{errors}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("ready"));
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn a_drive_with_one_queue_pair_is_flushed_at_the_end() {
    let folder = Folder::new();
    let (drive, socket) = (folder.text("drive"), folder.text("socket"));
    let file = format!("{},cache=none", folder.file("disk.img", 4 << 20));
    let behind = Served::start(&["--socket", &drive, "--queues", "1", &file]);
    let (errors, disk) = (folder.path("errors"), format!("vfio-user:{drive}/1"));
    let file = std::fs::File::create(&errors).unwrap();
    let served = Served::start_with(file, &["--socket", &socket, &disk]);
    let target = format!("vfio-user:{socket}");
    program::succeed(&["io", &target, "write", "--length", "64k", "--pattern", "1"]);
    assert_eq!(served.end(Signal::TERM), Some(0));
    assert_eq!(String::from_utf8(program::contents(&errors)).unwrap(), "");
    assert_eq!(behind.end(Signal::TERM), Some(0));
}
