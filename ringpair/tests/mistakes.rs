//! A person's mistakes: one line that names the thing and what would be right; status 2 for a wrong call, 1 for
//! anything else.

mod program;
use program::{Folder, Served, fail};
use rustix::process::Signal;

#[test]
fn a_wrong_option_is_a_wrong_call() {
    let error = fail(2, &["serve", "--socket", "/x", "--pol", "always", "null:1G"]);
    assert!(error.contains("'--pol'") && error.contains("'--poll'"), "{error}");
    let error = fail(2, &["serve", "--socket", "/x"]);
    assert!(error.contains("DISK"), "{error}");
    let error = fail(2, &["bench", "--rw", "sideways"]);
    assert!(error.contains("sideways") && error.contains("randread"), "{error}");
    let error = fail(2, &["bench", "--iodepth", "0", "null:1G"]);
    assert!(error.contains("--iodepth") && error.contains("1 to 65535"), "{error}");
    let error = fail(2, &["serve", "--socket", "/x", "--cpus", "3-1", "null:1G"]);
    assert!(error.contains("3-1") && error.contains("0-3,8"), "{error}");
}

#[test]
fn a_wrong_disk_option_names_the_option_the_value_and_what_is_accepted() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let disk = format!("{},cache=fast", folder.file("disk.img", 1 << 20));
    let error = fail(2, &["serve", "--socket", &socket, &disk]);
    assert!(error.contains("cache=fast") && error.contains("writethrough"), "{error}");
    let error = fail(2, &["serve", "--socket", &socket, "null:1G,cahce=none"]);
    assert!(error.contains("cahce=none"), "{error}");
    let error = fail(2, &["serve", "--socket", &socket, "rdb:pool"]);
    assert!(error.contains("rdb:") && error.contains("null"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let folder = Folder::new();
    let (socket, missing) = (folder.text("socket"), folder.text("missing.img"));
    for arguments in
        [vec!["serve", "--socket", &socket, &missing], vec!["identify", &missing], vec!["bench", &missing]]
    {
        let error = fail(1, &arguments);
        assert!(error.contains("missing.img") && error.contains("No such file"), "{error}");
    }
    assert!(!folder.path("socket").exists(), "no socket is left behind");
}

#[test]
fn a_size_that_is_no_multiple_of_the_block_is_refused() {
    let folder = Folder::new();
    let disk = folder.file("odd.img", 1000);
    let error = fail(1, &["serve", "--socket", &folder.text("socket"), &disk]);
    assert!(error.contains("odd.img") && error.contains("1000") && error.contains("512"), "{error}");
}

#[test]
fn a_folder_is_not_a_disk() {
    let folder = Folder::new();
    let error = fail(1, &["serve", "--socket", &folder.text("socket"), &folder.text("")]);
    assert!(error.contains(&folder.text("")), "{error}");
}

#[test]
fn the_socket_of_a_live_server_is_an_error_and_the_server_lives_on() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let served = Served::start(&["--socket", &socket, "null:1G"]);
    let error = fail(1, &["serve", "--socket", &socket, "null:1G"]);
    assert!(error.contains(&socket) && error.contains("in use"), "{error}");
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn a_socket_that_cannot_be_made_is_named() {
    let folder = Folder::new();
    let error = fail(1, &["serve", "--socket", &folder.text("no/folder/socket"), "null:1G"]);
    assert!(error.contains("no/folder/socket"), "{error}");
    let file = folder.file("file", 512);
    let error = fail(1, &["serve", "--socket", &file, "null:1G"]);
    assert!(error.contains("not a socket"), "{error}");
    assert!(folder.path("file").exists(), "what is not a socket is left alone");
}

#[test]
fn a_configuration_file_names_its_line() {
    let folder = Folder::new();
    let config = folder.write("r.toml", "[[controller]]\nsocket = '/x'\ndisk = ['null:1G']\n");
    let error = fail(2, &["serve", "--config", &config]);
    assert!(error.contains("r.toml:3:") && error.contains("`disk`") && error.contains("`disks`"), "{error}");
    let error = fail(1, &["serve", "--config", &folder.text("none.toml")]);
    assert!(error.contains("none.toml"), "{error}");
    let error = fail(2, &["serve", "--config", &config, "--socket", "/x", "null:1G"]);
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let folder = Folder::new();
    let target = format!("vfio-user:{}", folder.text("nobody.sock"));
    for command in ["identify", "bench"] {
        let error = fail(1, &[command, &target]);
        assert!(error.contains("nobody.sock"), "{error}");
    }
}

#[test]
fn a_bench_does_not_overwrite_what_it_was_not_told_to() {
    let folder = Folder::new();
    let disk = folder.file("disk.img", 1 << 20);
    let error = fail(2, &["bench", &disk, "--rw", "randwrite"]);
    assert!(error.contains("disk.img") && error.contains("--destroy-data"), "{error}");
}

#[test]
fn a_read_only_disk_refuses_to_be_written() {
    let folder = Folder::new();
    let disk = format!("{},readonly=on", folder.file("disk.img", 1 << 20));
    let error = fail(1, &["io", &disk, "write", "--length", "4k", "--pattern", "1"]);
    assert!(error.contains("disk.img"), "{error}");
}

#[test]
fn a_wrong_fault_script_is_named_with_what_is_wrong() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    for (script, wanted) in [
        ("[[fault]]\ndo = 'explode'\n", "line 2: unknown variant `explode`"),
        ("[[fault]]\nopcode = 'reed'\ndo = 'drop'\n", "fault 1: there is no I/O command \"reed\""),
    ] {
        let script = folder.write("faults.toml", script);
        let error = fail(2, &["serve", "--socket", &socket, "--faults", &script, "null:1G"]);
        assert!(error.contains(&script) && error.contains(wanted), "{error}");
    }
}
