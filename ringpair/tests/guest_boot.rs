//! Firmware boots a stock kernel from a ringpair disk: SeaBIOS, whose driver polls queues of a few entries, and OVMF.

use fixtures::{Firmware, Kernel, bootable, guest_or_skip};

mod served;
use served::Served;

fn boots(firmware: Firmware) {
    let Some(builder) = guest_or_skip() else { return };
    let image = bootable::disk(Kernel::default()).expect("a disk to boot from");
    // A copy, for OVMF writes to a file system that it boots from, and gives up where it cannot.
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::copy(image, disk.path()).expect("copied");
    let served = Served::disk(disk.path().to_str().expect("plain names"));
    let guest = builder.boot_from(&served.socket(), firmware).boot().expect("the guest boots");
    let list = guest.check("until [ -b /dev/nvme0n1 ]; do sleep 0.1; done; nvme list").expect("nvme list");
    assert!(list.contains("/dev/nvme0n1"), "{list}");
    // Neither QEMU nor anybody else gave it a kernel.
    let words = guest.check("cat /proc/cmdline").expect("the kernel's command line");
    assert!(words.starts_with("BOOT_IMAGE=/vmlinuz"), "{words}");
    guest.power_off().expect("QEMU ends in order");
    served.stop();
}

#[test]
fn seabios_boots_from_a_disk() {
    boots(Firmware::Bios);
}

#[test]
fn ovmf_boots_from_a_disk() {
    boots(Firmware::Uefi);
}
