//! A stock Debian guest boots from a qcow2 overlay on a raw base and writes to it, and the server is killed in the
//! middle: the base is as it was, the overlay is in order, and has what the guest had made durable.

use fixtures::{Firmware, Guest, Kernel, bootable, guest_or_skip, qemu_img_or_skip};
use std::path::Path;

mod served;
mod synced_files;
use served::Served;
use synced_files::{check_sums, kill_amid_writes, recover};

/// The disk is larger than its base; there the guest has a file system.
const MAKE_DEVICE: &str = "modprobe loop
    until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
    losetup -o 402653184 /dev/loop0 /dev/nvme0n1";
const DEVICE: &str = "/dev/loop0";
const SIZE: &str = "768M";

fn checksum(path: &Path) -> u32 {
    crc32fast::hash(&std::fs::read(path).expect("the base is readable"))
}

#[test]
fn an_overlay_that_a_guest_booted_from_survives_the_server_being_killed_and_its_base_is_untouched() {
    let (Some(builder), Some(qemu_img)) = (guest_or_skip(), qemu_img_or_skip()) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let base = bootable::disk(Kernel::default()).expect("a disk to boot from");
    let overlay = directory.path().join("overlay.qcow2");
    let [base_text, overlay_text] = [&base, &overlay].map(|path| path.to_str().expect("plain names"));
    qemu_img.ok(&["create", "-q", "-f", "qcow2", "-b", base_text, "-F", "raw", overlay_text, SIZE]);
    let before = checksum(&base);

    let mut served = Served::disk(overlay_text);
    let boot = |served: &Served| {
        let guest =
            builder.clone().boot_from(&served.socket(), Firmware::Bios).boot().expect("the guest boots");
        guest.check(MAKE_DEVICE).expect("a loop device");
        guest
    };
    let guest = boot(&served);
    guest.check(&format!("mkfs.ext4 -q {DEVICE} && mount {DEVICE} /mnt")).expect("a file system");
    let durable = kill_amid_writes(guest, |guest: Guest| {
        served.process.kill();
        guest.kill();
    });
    drop(served);

    assert_eq!(checksum(&base), before, "the base has changed");
    // 3 is leaked clusters, which a kill may leave; 2 would be corruption.
    let check = qemu_img.run(&["check", overlay_text]);
    let status = check.status.code();
    assert!(matches!(status, Some(0 | 3)), "{status:?}: {}", String::from_utf8_lossy(&check.stdout));

    let served = Served::disk(overlay_text);
    let guest = boot(&served);
    recover(&guest, DEVICE);
    check_sums(&guest, &durable);
    guest.power_off().expect("QEMU ends in order");
    served.stop();
    let check = qemu_img.run(&["check", overlay_text]);
    assert!(matches!(check.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&check.stdout));
    assert_eq!(checksum(&base), before, "the base has changed");
}
