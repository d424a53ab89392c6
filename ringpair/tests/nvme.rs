//! `ringpair nvme`, on controllers that are served or in the same process; what it does to a machine is tested with
//! made-up machines (`src/nvme`) and in guests (`guest_vfio`).

mod program;
use program::{Folder, Served, fail, ringpair, succeed};

/// A server with a disk of 1 MiB; its folder, itself, and it as a target.
fn served() -> (Folder, Served, String) {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let served = Served::start(&["--socket", &socket, "mem:1M"]);
    (folder, served, format!("vfio-user:{socket}"))
}

/// A field of the `--json` of `nvme smart`.
fn smart(target: &str, field: &str) -> u64 {
    let text = succeed(&["nvme", "smart", target, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value[field].as_u64().unwrap_or_else(|| panic!("{field}: {text}"))
}

#[test]
fn smart_counts_what_was_written() {
    let (_folder, _served, target) = served();
    let before = smart(&target, "host_write_commands");
    succeed(&["io", &target, "write", "--length", "64k", "--bs", "4k", "--pattern", "1"]);
    assert_eq!(smart(&target, "host_write_commands"), before + 16);
    let text = succeed(&["nvme", "smart", &target]);
    assert!(text.contains("host write commands") && text.contains("available spare"), "{text}");
}

#[test]
fn a_format_that_the_controller_does_not_have_is_its_status_and_counted() {
    let (_folder, _served, target) = served();
    let before = smart(&target, "error_log_entries");
    let error = fail(1, &["nvme", "format", &target, "--yes"]);
    assert!(error.contains("Format NVM: Invalid Command Opcode"), "{error}");
    assert_eq!(smart(&target, "error_log_entries"), before + 1);
}

#[test]
fn an_error_log_that_a_reset_has_cleared_is_empty_and_says_so() {
    let (_folder, _served, target) = served();
    fail(1, &["nvme", "format", &target, "--yes"]);
    let text = succeed(&["nvme", "error-log", &target]);
    assert!(text.contains("no errors") && text.contains("reset"), "{text}");
    assert_eq!(succeed(&["nvme", "error-log", &target, "--json"]).trim(), "[]");
}

#[test]
fn a_format_that_nobody_confirmed_is_a_wrong_call() {
    let error = fail(2, &["nvme", "format", "null:1G"]);
    assert!(error.contains("null:1G") && error.contains("--yes"), "{error}");
}

#[test]
fn a_format_takes_the_block_sizes_that_there_are() {
    let error = fail(1, &["nvme", "format", "null:1G", "--block-size", "1000", "--yes"]);
    assert!(error.contains("1000 bytes") && error.contains("512"), "{error}");
    let error = fail(2, &["nvme", "format", "null:1G", "--erase", "twice", "--yes"]);
    assert!(error.contains("twice") && error.contains("cryptographic"), "{error}");
}

#[test]
fn which_of_several_namespaces_is_formatted_has_to_be_said() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let _served = Served::start(&["--socket", &socket, "null:1G", "null:1G"]);
    let error = fail(2, &["nvme", "format", &format!("vfio-user:{socket}"), "--yes"]);
    assert!(error.contains("namespaces 1, 2"), "{error}");
}

#[test]
fn identify_is_the_same_as_without_nvme() {
    let text = succeed(&["nvme", "identify", "null:1G"]);
    assert!(text.contains("namespace 1"), "{text}");
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let address = "ffff:ff:1f.7";
    let drive = format!("nvme://{address}/1");
    for arguments in [
        vec!["nvme", "bind", address],
        vec!["nvme", "unbind", address],
        vec!["nvme", "smart", address],
        vec!["nvme", "error-log", address],
        vec!["nvme", "identify", address],
        vec!["nvme", "format", address, "--yes"],
        vec!["identify", &drive],
        vec!["io", &drive, "flush"],
        vec!["bench", &drive],
    ] {
        let error = fail(1, &arguments);
        assert!(error.contains("ffff:ff:1f.7: there is no such PCI device"), "{arguments:?}: {error}");
    }
    let folder = Folder::new();
    let error = fail(1, &["serve", "--socket", &folder.text("socket"), &drive]);
    assert!(error.contains("ffff:ff:1f.7: there is no such PCI device"), "{error}");
}

#[test]
fn what_is_no_address_or_no_target_is_a_wrong_call() {
    let error = fail(2, &["nvme", "bind", "nvme0"]);
    assert!(error.contains("nvme0") && error.contains("0000:01:00.0"), "{error}");
    let error = fail(2, &["nvme", "smart", "nvme://0000:01:00.0/0"]);
    assert!(error.contains("namespace identifier"), "{error}");
    let error = fail(2, &["nvme", "smart", "nvme://0000:01:00.0/1,vfio=usb"]);
    assert!(error.contains("vfio=usb"), "{error}");
}

#[test]
fn list_works_on_any_machine() {
    let output = ringpair(&["nvme", "list", "--json"]);
    if output.status.success() {
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(rows.is_array());
        assert!(!succeed(&["nvme", "list"]).is_empty());
    } else {
        // Where there is no sysfs.
        let error = fail(1, &["nvme", "list"]);
        assert!(error.contains("sys/bus/pci/devices"), "{error}");
    }
}
