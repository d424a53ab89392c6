//! Many guests on one server: one after the other, and at the same time, whatever becomes of the others.

use fixtures::{Guest, guest_or_skip};
use std::path::Path;
use std::time::Duration;

mod served;
use served::Served;

/// Writes and verifies over and over until there is `/tmp/stop` or something is wrong.
const LOAD: &str = "
    until [ -e /tmp/stop ]; do
        fio --name=load --filename=/dev/nvme0n1 --allow_file_create=0 --direct=1 --rw=randwrite --bs=4k --size=8M --ioengine=io_uring \
            --iodepth=32 --verify=crc32c --verify_fatal=1 || exit 1
        echo round
    done";

const LEAVE_MARK: &str = "head -c 65536 /dev/urandom >/tmp/mark && sha256sum </tmp/mark \
    && dd if=/tmp/mark of=/dev/nvme0n1 bs=64k seek=500 conv=fsync";
const READ_MARK: &str = "dd if=/dev/nvme0n1 bs=64k skip=500 count=1 iflag=direct 2>/dev/null | sha256sum";

#[test]
fn one_server_serves_three_guests_one_after_another_one_of_them_killed() {
    let Some(builder) = guest_or_skip() else { return };
    let mut served = Served::files(&[64 << 20]);
    let server = served.process.id();
    let first = served.plug(builder.clone()).boot().expect("the first guest boots");
    let mark = first.check(LEAVE_MARK).expect("the first guest writes");
    first.power_off().expect("the first guest ends in order");

    let second = served.plug(builder.clone()).boot().expect("the second guest boots");
    assert_eq!(second.check(READ_MARK).expect("the second guest reads"), mark);
    second.start(LOAD).expect("started");
    second.check("sleep 1").expect("a while of load");
    second.kill();

    let third = served.plug(builder).boot().expect("the third guest boots");
    assert_eq!(third.check(READ_MARK).expect("the third guest reads"), mark);
    run_load(&third);
    third.power_off().expect("the third guest ends in order");
    assert!(served.process.try_wait().expect("its state").is_none());
    assert_eq!(served.process.id(), server);
    served.stop();
}

#[test]
fn of_two_guests_at_once_one_does_not_notice_how_the_other_resets_and_is_killed() {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::configured(&[64 << 20, 96 << 20]);
    let boot = |socket: &Path| builder.clone().cpus(1).vfio_user(socket).start().expect("QEMU starts");
    let quiet = boot(&served.socket_of(0));
    let wild = boot(&served.socket_of(1));
    for (guest, sectors) in [(&quiet, 131_072), (&wild, 196_608)] {
        guest.wait_boot().expect("the guest boots");
        let size = guest.check("cat /sys/block/nvme0n1/size").expect("a size");
        assert_eq!(size.trim(), sectors.to_string(), "each guest has its own disk");
    }

    let load = quiet.start(LOAD).expect("started");
    wild.start(LOAD).expect("started");
    for _ in 0..3 {
        wild.check("sleep 0.5; nvme reset /dev/nvme0").expect("a reset under load");
    }
    wild.check("sleep 0.5").expect("a while of load");
    wild.kill();
    let next = builder.clone().cpus(1).vfio_user(&served.socket_of(1)).boot().expect("a successor boots");
    next.check("dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct").expect("it reads its disk");

    assert!(!quiet.is_done(load), "{:?}", quiet.wait(load, Duration::from_secs(1)));
    quiet.check("touch /tmp/stop").expect("stop");
    let load = quiet.wait(load, Duration::from_secs(60)).expect("the load ends");
    assert!(load.success() && load.stdout.contains("round"), "{load:?}");
    let kernel = quiet.check("dmesg").expect("the kernel's messages");
    assert!(!kernel.contains("timeout") && !kernel.contains("resetting"), "{kernel}");
    served.stop();
}

/// One round of the load.
fn run_load(guest: &Guest) {
    let load = guest.start(LOAD).expect("started");
    guest.check("touch /tmp/stop").expect("stop");
    let load = guest.wait(load, Duration::from_secs(60)).expect("the load ends");
    assert!(load.success(), "{load:?}");
}
