//! A stock Debian guest keeps a file system on a ringpair disk: through reboots, and when it is killed amid writes.

use fixtures::{Guest, guest_or_skip, packages};

mod served;
mod synced_files;
use served::Served;
use synced_files::{check_sums, kill_amid_writes, recover};

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

    let durable = kill_amid_writes(guest, Guest::kill);

    let guest = served.plug(builder).boot().expect("another guest boots on the same server");
    recover(&guest, DEVICE);
    check_sums(&guest, &sums);
    check_sums(&guest, &durable);
    guest.power_off().expect("QEMU ends in order");

    // What the guests wrote is in the file, once the server has ended.
    let directory = served.stop();
    let mut check = packages::guest_tools().expect("fetched already").command("usr/sbin/e2fsck");
    let output = check.arg("-fn").arg(directory.path().join("disk0")).output().expect("e2fsck runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
