//! `ringpair io` on a disk in the same process and on a server: what was written is there, and in the file.

mod program;
use program::{Folder, PATIENCE, Served, contents, fail, signal_when, succeed};
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs it for a target and expects success.
fn io(target: &str, arguments: &str) -> String {
    let arguments: Vec<&str> = ["io", target].into_iter().chain(arguments.split(' ')).collect();
    succeed(&arguments)
}

/// Runs it for a target and expects a failure.
fn refused(status: i32, target: &str, arguments: &str) -> String {
    let arguments: Vec<&str> = ["io", target].into_iter().chain(arguments.split(' ')).collect();
    fail(status, &arguments)
}

/// What any target of 8 MiB has to do.
fn exercise(target: &str) {
    let wrote = io(target, "write --length 8M --pattern 1");
    assert_eq!(io(target, "read --length 8M").replace("read", "wrote"), wrote);
    io(target, "verify --pattern 1 --bs 4k");
    // A part of it with another seed: in blocks, in the middle, durably.
    io(target, "write --offset 1M --length 20k --bs 512 --pattern 2 --fua");
    io(target, "verify --length 1M --pattern 1");
    io(target, "verify --offset 1M --length 20k --pattern 2");
    io(target, "compare --offset 1M --length 20k --pattern 2");
    let error = refused(1, target, "compare --offset 1M --length 20k --pattern 1");
    assert!(error.to_lowercase().contains("compare failure"), "{error}");
    let error = refused(1, target, "verify --pattern 1");
    assert!(error.contains("byte 1048576 is"), "{error}");
    for zeroes in
        ["write-zeroes --offset 2M --length 1M", "write-zeroes --offset 3M --length 64k --deallocate"]
    {
        io(target, zeroes);
    }
    io(target, "verify --offset 2M --length 1088k --input /dev/null");
    io(target, "discard --offset 4M --length 1M");
    io(target, "verify --offset 5M --length 3M --pattern 1");
    io(target, "flush");
    let error = refused(1, target, "copy --length 1M --to 4M");
    assert!(error.contains("does not offer the Copy command"), "{error}");
}

#[test]
fn a_file_is_written_through_a_controller_in_the_same_process() {
    let folder = Folder::new();
    let disk = folder.file("disk.img", 8 << 20);
    for options in ["", ",cache=writethrough", ",block-size=512"] {
        exercise(&format!("{disk}{options}"));
    }
    assert!(contents(&folder.path("disk.img"))[2 << 20..3 << 20].iter().all(|&byte| byte == 0));
}

#[test]
fn a_file_is_written_through_a_server_and_the_data_is_in_it() {
    let folder = Folder::new();
    let (socket, disk) = (folder.text("socket"), folder.file("disk.img", 8 << 20));
    let served = Served::start(&["--socket", &socket, "mem:1M", &disk]);
    let target = format!("vfio-user:{socket}/2");
    exercise(&target);
    let copy = folder.text("copy");
    io(&target, &format!("read --output {copy}"));
    assert_eq!(served.end(Signal::TERM), Some(0));
    assert!(contents(&folder.path("copy")) == contents(&folder.path("disk.img")), "they differ");
}

#[test]
fn data_comes_from_a_file_and_goes_to_one() {
    let folder = Folder::new();
    let (disk, text) = (folder.file("disk.img", 1 << 20), folder.write("text", "hello"));
    io(&disk, &format!("write --offset 4k --length 4k --input {text}"));
    let copy = folder.text("copy");
    io(&disk, &format!("read --offset 4k --length 512 --output {copy}"));
    let data = contents(&folder.path("copy"));
    assert_eq!((&data[..5], data.len()), (&b"hello"[..], 512));
}

#[test]
fn commands_without_data_are_as_long_as_they_are_asked_to_be() {
    let folder = Folder::new();
    let (socket, stats) = (folder.text("socket"), folder.text("stats"));
    let served = Served::start(&["--socket", &socket, "--stats", &stats, "mem:1M"]);
    let others = || served.stats(&stats)["controllers"][0]["other_commands"].as_u64().expect("a counter");
    let target = format!("vfio-user:{socket}");
    for (arguments, commands) in [
        ("write-zeroes", 1),
        ("write-zeroes --bs 64k", 16),
        ("discard", 1),
        ("discard --length 512k --bs 64k", 8),
    ] {
        let before = others();
        io(&target, arguments);
        assert_eq!(others() - before, commands, "{arguments}");
    }
}

#[test]
fn told_to_end_it_lets_go_of_the_controller_and_says_so() {
    let folder = Folder::new();
    let (socket, copy) = (folder.text("socket"), folder.text("copy"));
    let served = Served::start(&["--socket", &socket, "null:1T"]);
    let target = format!("vfio-user:{socket}");
    for signal in [Signal::INT, Signal::TERM] {
        let _ = std::fs::remove_file(&copy);
        let begun = || std::fs::metadata(&copy).is_ok_and(|file| file.len() > 0);
        let output = signal_when(begun, signal, &["io", &target, "read", "--bs", "4k", "--output", &copy]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(errors, format!("ringpair: {target}: interrupted\n"));
    }
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn a_server_that_ends_is_why_the_command_does() {
    let folder = Folder::new();
    let (socket, copy) = (folder.text("socket"), folder.text("copy"));
    let served = Served::start(&["--socket", &socket, "null:1T"]);
    let target = format!("vfio-user:{socket}");
    let reading = Command::new(env!("CARGO_BIN_EXE_ringpair"))
        .args(["io", &target, "read", "--bs", "4k", "--output", &copy])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    while std::fs::metadata(&copy).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < PATIENCE, "it never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    served.end(Signal::KILL);
    let output = reading.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8(output.stderr).expect("text");
    // What is logged when it happens, and how the command ended.
    let why =
        format!("{target}: the controller cannot be reached any more: the server closed the connection");
    assert_eq!(errors.lines().count(), 2, "{errors}");
    assert!(errors.lines().all(|line| line.ends_with(&why)), "{errors}");
    assert!(errors.contains(&format!("\nringpair: {target}: read at ")), "{errors}");
}

#[test]
fn what_cannot_deallocate_is_not_asked_to() {
    let folder = Folder::new();
    let disk = format!("{},discard=ignore", folder.file("disk.img", 1 << 20));
    let error = refused(1, &disk, "write-zeroes --deallocate");
    assert!(error.contains("cannot deallocate with Write Zeroes"), "{error}");
    io(&disk, "write-zeroes");
}

#[test]
fn ranges_that_do_not_fit_are_wrong_calls() {
    for (arguments, named) in [
        ("read --offset 100", "--offset 100"),
        ("read --length 100", "--length 100"),
        ("read --offset 1M --length 512", "past the end"),
        ("read --bs 100", "--bs 100"),
        ("discard --bs 100", "--bs 100"),
        ("write-zeroes --bs 64M", "--bs 67108864"),
        ("read --bs 4G", "--bs"),
        ("write --length 512", "--pattern"),
        ("write --length 5Q --pattern 1", "5Q"),
        ("explode", "explode"),
    ] {
        let error = refused(2, "mem:1M", arguments);
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn identify_describes_a_server_and_a_disk_in_text_and_json() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let served = Served::start(&["--socket", &socket, "mem:1M", "null:1G,block-size=4096"]);
    let text = succeed(&["identify", &format!("vfio-user:{socket}")]);
    for part in ["NVMe version", "namespace 1", "namespace 2", "1 GiB: 262144 blocks of 4096 bytes"] {
        assert!(text.contains(part), "{text}");
    }
    let one = succeed(&["identify", "--json", &format!("vfio-user:{socket}/2")]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one["namespaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["namespaces"][0]["capacity"], 1 << 30);
    let error = fail(1, &["identify", &format!("vfio-user:{socket}/9")]);
    assert!(error.contains("namespace 9"), "{error}");
    assert_eq!(served.end(Signal::TERM), Some(0));
    assert!(succeed(&["identify", "mem:1M"]).contains("1 MiB"));
}
