//! Several controllers at once in one process: of one IOMMU group, which has one address space, and of others. And one that
//! is pulled out of its slot.

mod vfio_guest;

use fixtures::{Guest, Kernel, guest_with_or_skip};
use std::time::Duration;
use vfio_guest::{PROGRAM, disk, program};

/// For what takes its time in a guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(300);

/// A guest with two controllers that are functions of one device, and a third one in a slot.
fn boot(kernel: Kernel) -> Option<(Guest, [String; 3])> {
    let disks = [disk(), disk(), disk()];
    let [first, second, third] = disks.each_ref().map(tempfile::NamedTempFile::path);
    let guest = guest_with_or_skip(kernel)?
        .iommu(39)
        .memory_mib(768)
        .program(&program(PROGRAM))
        .qemu_nvme_with(first, &[("addr", "10.0"), ("multifunction", "on")])
        .qemu_nvme_with(second, &[("addr", "10.1")])
        .qemu_arguments(["-device", "pcie-root-port,id=bay,chassis=1,slot=1"])
        .qemu_nvme_with(third, &[("bus", "bay"), ("id", "third")])
        .boot()
        .expect("the guest boots");
    let addresses = guest.nvme_addresses().expect("the controllers' addresses");
    let by_function = |end: &str| addresses.iter().find(|address| address.ends_with(end)).cloned();
    let (first, second) =
        (by_function(":10.0").expect("function 0"), by_function(":10.1").expect("function 1"));
    let third =
        addresses.iter().find(|address| ![&first, &second].contains(address)).expect("a third").clone();
    let group = |address: &str| {
        guest.check(&format!("readlink /sys/bus/pci/devices/{address}/iommu_group")).expect("its group")
    };
    assert_eq!(group(&first), group(&second));
    assert_ne!(group(&first), group(&third));
    for address in [&first, &second, &third] {
        guest.bind_vfio(address).expect("bound to vfio-pci");
    }
    Some((guest, [first, second, third]))
}

/// All three are written and verified at the same time, twice, so that all of them were given back in between.
fn controllers_of_one_group_and_of_others_are_used_at_once(
    interface: &str,
    guest: &Guest,
    addresses: &[String; 3],
) {
    let [first, second, third] = addresses;
    for (one, with, other) in [(first, second, third), (third, second, first)] {
        let line =
            format!("{PROGRAM} --vfio {interface} --queues 2 --with {with} --with {other} {one} exercise");
        let said = guest.check_within(&line, LONG).expect("all of it comes back as written");
        assert_eq!(said.matches("out of reach when taken back").count(), 3, "{said}");
    }
    let output =
        guest.run(&format!("{PROGRAM} --vfio {interface} --with {first} {first} identify")).expect("it ends");
    assert!(!output.success());
    let complaint = format!("{first} is open in this process already");
    assert!(output.stderr.contains(&complaint), "{}", output.stderr);
}

#[test]
fn groups_are_shared_inside_a_process_and_a_drive_may_be_pulled_out() {
    let Some((guest, addresses)) = boot(Kernel::V6_12) else { return };
    controllers_of_one_group_and_of_others_are_used_at_once("group", &guest, &addresses);
    is_let_go_when_it_is_pulled_out(&guest, &addresses[2]);
}

#[test]
fn address_spaces_of_iommufd_are_shared_as_well() {
    let Some((guest, addresses)) = boot(Kernel::Iommufd) else { return };
    controllers_of_one_group_and_of_others_are_used_at_once("cdev", &guest, &addresses);
}

fn is_let_go_when_it_is_pulled_out(guest: &Guest, address: &str) {
    let hammer = format!(
        "{PROGRAM} --vfio group {address} hammer >/tmp/hammer 2>&1 & echo $! >/tmp/pid
        for i in $(seq 600); do grep -q hammering /tmp/hammer && exit; sleep 0.1; done; cat /tmp/hammer >&2; exit 1"
    );
    guest.check_within(&hammer, LONG).expect("it writes");
    guest.unplug("third").expect("the slot's button is pressed");
    let gone = format!(
        "for i in $(seq 600); do [ -e /sys/bus/pci/devices/{address} ] || break; sleep 0.1; done
        [ ! -e /sys/bus/pci/devices/{address} ]"
    );
    guest.check_within(&gone, LONG).expect("the kernel has let it go");
    let said = guest.check("kill -0 $(cat /tmp/pid) && cat /tmp/hammer").expect("the program still runs");
    assert!(said.contains("the controller was taken back"), "{said}");
}
