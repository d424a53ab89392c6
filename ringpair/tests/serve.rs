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
        let served = Served::start(&["--socket", &socket, "null:1G", "mem:1M"]);
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
