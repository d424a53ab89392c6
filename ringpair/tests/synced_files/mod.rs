//! Files that a guest makes durable one after another, and says so on its console, so that whoever kills something in
//! the middle knows what has to be there afterwards.

// Each file of tests is a program of its own, and uses its own part of this.
#![allow(dead_code)]

use fixtures::Guest;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Writes one file after the other, and says on the console what it has made durable.
const WRITE_AND_TELL: &str = "
    mkdir -p /mnt/written
    number=0
    while number=$((number + 1)); do
        head -c $((RANDOM * 2 + 1)) /dev/urandom | dd of=/mnt/written/$number conv=fsync 2>/dev/null || exit 1
        echo synced $(sha256sum /mnt/written/$number) end >/dev/ttyS0
    done";

/// Keeps the disk busy with writes that nobody asks to be durable.
const WRITE_MORE: &str =
    "while :; do dd if=/dev/urandom of=/mnt/noise bs=64k count=200 conv=notrunc 2>/dev/null; done";

/// Lets the guest, whose file system is at /mnt, write until it has made a good number of files durable; `kill` then
/// ends something. The checksums of those files.
pub fn kill_amid_writes(guest: Guest, kill: impl FnOnce(Guest)) -> String {
    guest.start(WRITE_MORE).expect("started");
    guest.start(WRITE_AND_TELL).expect("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    while synced(&guest.console()).len() < 25 {
        assert!(Instant::now() < deadline, "{}", guest.console());
        std::thread::sleep(Duration::from_millis(20));
    }
    let console = guest.console();
    kill(guest);
    let mut text = String::new();
    for (path, sum) in synced(&console) {
        writeln!(text, "{sum}  {path}").expect("a string");
    }
    text
}

/// Checksums by path, of the files that the console calls synced.
fn synced(console: &str) -> BTreeMap<&str, &str> {
    console
        .lines()
        .filter_map(|line| {
            // The kernel's own messages may break a line; such a line is not counted.
            let (sum, path) = line.trim().strip_prefix("synced ")?.strip_suffix(" end")?.split_once(' ')?;
            (sum.len() == 64 && path.starts_with("/mnt/written/")).then_some((path, sum))
        })
        .collect()
}

/// Replays the journal of the file system on `device`, then has everything checked and mounts it.
pub fn recover(guest: &Guest, device: &str) {
    let replay = guest.run(&format!("e2fsck -p {device}")).expect("e2fsck runs");
    assert!(replay.status <= 1, "the journal does not make it whole: {replay:?}");
    guest.check(&format!("e2fsck -fn {device} && mount {device} /mnt")).expect("a clean file system");
}

/// Whether the files, below /mnt or named from the root, have these checksums.
pub fn check_sums(guest: &Guest, sums: &str) {
    guest
        .check(&format!("cd /mnt && sha256sum -c >/tmp/checked 2>&1 <<'END' || {{ grep -v OK$ /tmp/checked; false; }}\n{sums}END"))
        .expect("all checksums are right");
}
