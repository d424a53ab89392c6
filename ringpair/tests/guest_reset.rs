//! Resets, unbinding and rebinding of the driver, all of it under load.

use fixtures::{Guest, guest_or_skip};
use std::time::Duration;

mod served;
use served::Served;

/// Writes and verifies over and over, in two places at once, until there is `/tmp/stop` or something is wrong.
const LOAD: &str = "
    rm -f /tmp/stop
    until [ -e /tmp/stop ]; do
        fio --name=load --filename=/dev/nvme0n1 --allow_file_create=0 --direct=1 --rw=randwrite --bssplit=4k/70:64k/30 --size=8M \
            --offset_increment=32M --numjobs=2 --ioengine=io_uring --iodepth=16 --verify=crc32c --verify_fatal=1 \
            --group_reporting || exit 1
        echo round
    done";

#[test]
fn the_disk_comes_through_resets_and_rebinding_under_load() {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::files(&[64 << 20]);
    let guest = served.plug(builder).boot().expect("the guest boots");
    guest.check("head -c 65536 /dev/urandom >/tmp/kept && dd if=/tmp/kept of=/dev/nvme0n1 bs=64k seek=1000 conv=fsync").expect("written");

    let load = guest.start(LOAD).expect("started");
    for reset in ["nvme reset /dev/nvme0", "echo 1 >/sys/class/nvme/nvme0/device/reset"] {
        for _ in 0..3 {
            guest.check("sleep 0.5").expect("a while of load");
            guest.check(reset).expect("a reset under load");
            guest.check("[ $(cat /sys/class/nvme/nvme0/state) = live ]").expect("it is up again");
        }
    }
    guest.check("touch /tmp/stop").expect("stop");
    let load = guest.wait(load, Duration::from_secs(60)).expect("the load ends");
    assert!(load.success() && load.stdout.contains("round"), "a reset loses or spoils nothing: {load:?}");

    rebind_under_load(&guest);
    let kept = "dd if=/dev/nvme0n1 bs=64k skip=1000 count=1 iflag=direct 2>/dev/null | cmp - /tmp/kept";
    guest.check(kept).expect("what was written before is still there");
    guest.power_off().expect("QEMU ends in order");
    served.stop();
}

fn rebind_under_load(guest: &Guest) {
    let address = guest.check("basename $(readlink /sys/class/nvme/nvme0/device)").expect("a PCI address");
    let address = address.trim();
    for _ in 0..2 {
        let load = guest.start(LOAD).expect("started");
        guest.check("sleep 0.7").expect("a while of load");
        guest.check(&format!("echo {address} >/sys/bus/pci/drivers/nvme/unbind")).expect("unbound");
        let load = guest.wait(load, Duration::from_secs(60)).expect("the load ends with its disk");
        assert!(!load.success(), "it had a disk to the end: {load:?}");
        guest.check(&format!("echo {address} >/sys/bus/pci/drivers/nvme/bind")).expect("bound again");
        guest.check("until [ -b /dev/nvme0n1 ]; do sleep 0.05; done").expect("the disk is back");
    }
}
