//! A stock Debian guest keeps a file system on a ringpair disk: through reboots, and when it is killed amid writes.

use fixtures::{Guest, guest_or_skip, packages};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

mod served;
use served::Served;

const DEVICE: &str = "/dev/nvme0n1";

/// Makes a tree of some 200 files of all sizes, and one that is larger.
const MAKE_TREE: &str = "
    cd /mnt
    for directory in $(seq 1 12); do
        mkdir -p tree/$directory
        for file in $(seq 1 16); do
            head -c $((RANDOM * 4 + file)) /dev/urandom >tree/$directory/$file || exit 1
        done
    done
    head -c 20000001 /dev/urandom >tree/large || exit 1
    find tree -type f -exec sha256sum {} +";

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

#[test]
fn a_file_system_survives_a_reboot_and_a_killed_guest() {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::files(&[512 << 20]);
    let guest = served.plug(builder.clone()).reboots().boot().expect("the guest boots");
    let list = guest.check("nvme list").expect("nvme list");
    assert!(list.contains(DEVICE) && list.contains("536.87"), "{list}");

    guest.check(&format!("mkfs.ext4 -q {DEVICE} && mount {DEVICE} /mnt")).expect("a file system");
    let sums = guest.check(MAKE_TREE).expect("a tree of files");
    assert_eq!(sums.lines().count(), 12 * 16 + 1);
    guest.check("umount /mnt").expect("unmounted");

    guest.reboot().expect("the guest boots again");
    guest.check(&format!("e2fsck -fn {DEVICE} && mount {DEVICE} /mnt")).expect("a clean file system");
    check_sums(&guest, &sums);

    let durable = kill_amid_writes(guest);

    let guest = served.plug(builder).boot().expect("another guest boots on the same server");
    recover(&guest);
    check_sums(&guest, &sums);
    check_sums(&guest, &durable);
    guest.power_off().expect("QEMU ends in order");

    // What the guests wrote is in the file, once the server has ended.
    let directory = served.stop();
    let mut check = packages::guest_tools().expect("fetched already").command("usr/sbin/e2fsck");
    let output = check.arg("-fn").arg(directory.path().join("disk0")).output().expect("e2fsck runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Lets the guest write until it has made a good number of files durable, kills it, and returns the checksums of those
/// files.
fn kill_amid_writes(guest: Guest) -> String {
    guest.start(WRITE_MORE).expect("started");
    guest.start(WRITE_AND_TELL).expect("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    while synced(&guest.console()).len() < 25 {
        assert!(Instant::now() < deadline, "{}", guest.console());
        std::thread::sleep(Duration::from_millis(20));
    }
    let console = guest.console();
    guest.kill();
    let sums = synced(&console);
    let mut text = String::new();
    for (path, sum) in sums {
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

/// Replays the journal, then has everything checked and mounts it.
fn recover(guest: &Guest) {
    let replay = guest.run(&format!("e2fsck -p {DEVICE}")).expect("e2fsck runs");
    assert!(replay.status <= 1, "the journal does not make it whole: {replay:?}");
    guest.check(&format!("e2fsck -fn {DEVICE} && mount {DEVICE} /mnt")).expect("a clean file system");
}

fn check_sums(guest: &Guest, sums: &str) {
    guest
        .check(&format!("cd /mnt && sha256sum -c >/tmp/checked 2>&1 <<'END' || {{ grep -v OK$ /tmp/checked; false; }}\n{sums}END"))
        .expect("all checksums are right");
}
