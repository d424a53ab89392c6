//! `ringpair bench`, in rows too short to say anything but that it works.

mod program;
use program::{Folder, PATIENCE, Served, succeed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn rows(arguments: &[&str]) -> Vec<Value> {
    let runtime: &[&str] = if arguments.contains(&"--runtime") { &[] } else { &["--runtime", "50ms"] };
    let arguments = [&["bench", "--json"], runtime, arguments].concat();
    succeed(&arguments).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_depth_is_a_row_held_against_a_limit() {
    let rows = rows(&["null:1G", "--iodepth", "1,8", "--numjobs", "2"]);
    assert_eq!(rows.len(), 2);
    for (row, iodepth) in rows.iter().zip([1, 8]) {
        assert_eq!(row["target"], "null:1G");
        assert_eq!(row["rw"], "randread");
        assert_eq!(
            (&row["bs"], &row["iodepth"], &row["numjobs"]),
            (&4096.into(), &iodepth.into(), &2.into())
        );
        for field in ["iops", "mb_s", "limit", "limit_ratio"] {
            assert!(row[field].as_f64().expect(field) > 0.0, "{row}");
        }
        let latency = |field: &str| row["lat_ns"][field].as_u64().expect(field);
        assert!(latency("p50") <= latency("p99") && latency("p99") <= latency("p999"), "{row}");
        assert!(latency("mean") > 0 && latency("p999") <= latency("max"), "{row}");
    }
}

#[test]
fn files_and_memory_take_every_pattern_and_block_size() {
    let folder = Folder::new();
    let disk = format!("{},cache=writeback", folder.file("disk.img", 4 << 20));
    let all = "read,write,rw,randread,randwrite,randrw";
    let found = rows(&[&disk, "--rw", all, "--iodepth", "4", "--bs", "512", "--destroy-data"]);
    assert_eq!(found.iter().map(|row| row["rw"].as_str().unwrap()).collect::<Vec<_>>().join(","), all);
    let found = rows(&["mem:16M", "--rw", "randrw", "--iodepth", "4", "--bs", "64k", "--rwmixread", "70"]);
    assert_eq!(found.len(), 1);
}

#[test]
fn loopback_needs_no_second_process_and_tells_what_is_above_the_ring() {
    for disk in ["null:1G", "mem:16M"] {
        let found = rows(&[disk, "--loopback", "--rw", "randread,randwrite", "--iodepth", "1,8"]);
        assert_eq!(found.len(), 4, "{disk}");
        for row in &found {
            let above = row.get("above_ring_ns").and_then(Value::as_f64);
            // Which of two limits is that of memory depends on the machine.
            assert!(disk != "null:1G" || above.is_some() == (row["iodepth"] == 1), "{row}");
            assert!(row["iops"].as_f64().expect("iops") > 0.0, "{row}");
        }
    }
}

#[test]
fn rows_are_explained_by_stages_that_make_up_their_latency() {
    let folder = Folder::new();
    let disk = format!("{},cache=writeback", folder.file("disk.img", 4 << 20));
    for disk in [&*disk, "mem:16M", "null:1G"] {
        // One command in 251 is timed, and a busy machine may take a while to come so far.
        let explained = ["50ms", "500ms", "5s", "20s"].into_iter().find_map(|runtime| {
            let rows = rows(&[disk, "--iodepth", "32", "--runtime", runtime, "--explain"]);
            rows.into_iter().find(|row| row.get("explained_ns").is_some())
        });
        let row = explained.expect("no command was timed");
        let stage = |field: &str| row["explained_ns"][field].as_u64().expect(field);
        let sum: u64 = ["way", "queued", "decode", "disk", "post"].into_iter().map(stage).sum();
        // Sampled on both sides, of different I/Os: the stages alone may come to more than the latency.
        assert!(sum >= row["lat_ns"]["mean"].as_u64().unwrap() && stage("samples") > 0, "{row}");
    }
    let socket = format!("vfio-user:{}/1", folder.text("nobody"));
    let said = program::fail(2, &["bench", &socket, "--explain"]);
    assert!(said.contains("--explain asks a server of its own"), "{said}");
}

#[test]
fn a_depth_that_no_queue_has_is_a_wrong_call() {
    let output =
        program::ringpair(&["bench", "null:1G", "--loopback", "--iodepth", "5000", "--runtime", "50ms"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    // Before it, there may be a warning that the machine is busy.
    let error = errors.lines().last().unwrap_or_default();
    assert!(error.ends_with("--iodepth 5000 is more than the controller's queues hold: 4095"), "{errors}");
}

#[test]
fn a_running_server_is_driven_at_its_socket() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let served = Served::start(&["--socket", &socket, "mem:1M", "null:1G"]);
    let rows = rows(&[&format!("vfio-user:{socket}/2"), "--iodepth", "2"]);
    assert_eq!(rows.len(), 1);
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn the_table_and_the_picture_show_the_same_rows() {
    let folder = Folder::new();
    let svg = folder.text("bench.svg");
    let table = succeed(&["bench", "null:1G", "--runtime", "50ms", "--iodepth", "1,8", "--plot", &svg]);
    for text in ["null:1G", "randread", "p99.9", "ring", "ratio"] {
        assert!(table.contains(text), "{table}");
    }
    let picture = String::from_utf8(program::contents(&folder.path("bench.svg"))).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("null:1G"), "{picture}");
}

#[test]
fn an_interrupted_bench_cleans_up_and_says_so() {
    let folder = Folder::new();
    let bench = Command::new(env!("CARGO_BIN_EXE_ringpair"))
        .args(["bench", "null:1G", "--runtime", "1h"])
        .env("TMPDIR", folder.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a server", || !children(bench.id()).is_empty());
    kill_process(Pid::from_raw(bench.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let output = bench.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.ends_with("interrupted\n"), "{errors}");
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 0, "something is left behind");
}

/// Children of a process, by `/proc`.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn its_server_dies_with_it_even_by_sigkill() {
    // Killed, it cannot remove its temporary folder.
    let folder = Folder::new();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_ringpair"))
        .args(["bench", "null:1G", "--runtime", "1h"])
        .env("TMPDIR", folder.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a server", || !children(bench.id()).is_empty());
    let server = children(bench.id())[0];
    bench.kill().unwrap();
    bench.wait().unwrap();
    // A zombie that nobody has collected yet has ended too.
    let ended = || match std::fs::read_to_string(format!("/proc/{server}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    };
    wait_until("the server's end", ended);
}
