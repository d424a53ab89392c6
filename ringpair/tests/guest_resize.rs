//! A stock Linux guest whose disk becomes another size: the drive below says so to the server, and the server to the guest.

mod program;
mod served;

use fixtures::guest_or_skip;
use program::Folder;

/// A drive of 64 MiB that has 2 MiB after its first flush: what it says of itself changes, and it reports that.
const SHRINKS: &str = r#"
[[fault]]
opcode = "flush"
do = "event"
event = "namespace-attribute-changed"

[[fault]]
queue = "admin"
opcode = "identify"
namespace = 1
nth = 2     # the driver's first one, when it starts, is true
times = 0
do = "corrupt"
offset = 0  # NSZE
bytes = [0x00, 0x10, 0, 0, 0, 0, 0, 0]
"#;

#[test]
fn a_guest_sees_the_size_that_its_disk_has_now() {
    let Some(guest) = guest_or_skip() else { return };
    let folder = Folder::new();
    let (socket, disk) = (folder.text("drive"), folder.file("disk", 64 << 20));
    let faults = folder.write("shrinks.toml", SHRINKS);
    let _drive = program::Served::start(&["--socket", &socket, "--faults", &faults, &disk]);
    let served = served::Served::disk(&format!("vfio-user:{socket}/1"));
    let guest = served.plug(guest).boot().expect("the guest boots");
    let size = "cat /sys/block/nvme0n1/size";
    assert_eq!(guest.check(size).expect("a size").trim(), "131072");
    guest.check("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=1 conv=fsync 2>/dev/null").expect("a flush");
    guest
        .check(&format!(
            "for i in $(seq 200); do [ $({size}) = 4096 ] && exit; sleep 0.1; done; {size} >&2; exit 1"
        ))
        .expect("it has heard of it");
    guest
        .check("dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct 2>/dev/null")
        .expect("all of it is read");
}
