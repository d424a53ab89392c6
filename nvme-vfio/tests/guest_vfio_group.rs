//! Kernel VFIO by IOMMU groups, on a stock Debian kernel, behind an IOMMU of 39 bits.

mod vfio_guest;

use fixtures::Kernel;
use vfio_guest::{Machine, machine};

machine! {
    Machine { kernel: Kernel::V6_12, iommu: Some(39), arguments: "", interface: "group" };
    the_controller_is_identified,
    all_sizes_through_all_queues_come_back_as_written,
    data_and_queues_survive_resets,
    nothing_is_left_over_when_it_is_closed_and_opened_again,
    interrupts_wake_who_sleeps,
    its_namespace_is_a_disk_that_keeps_the_contract,
    requests_into_registered_memory_are_not_copied,
    a_second_process_is_refused,
    a_killed_process_leaves_a_controller_that_starts_afresh,
    a_controller_in_use_is_let_go_when_the_kernel_asks_for_it,
    the_kernel_gets_it_back_and_reads_what_was_written,
    a_controller_that_the_kernel_has_is_refused_with_what_to_do,
}

#[test]
fn a_controller_without_a_driver_is_refused_with_what_to_do() {
    let Some(turn) = turn() else { return };
    let address = turn.address;
    turn.guest
        .check(&format!("echo {address} >/sys/bus/pci/devices/{address}/driver/unbind"))
        .expect("unbound");
    let complaint = turn.complaint(&turn.line_for(address, "identify"));
    assert!(
        complaint.contains(&format!("{address} is bound to no driver: `ringpair nvme bind")),
        "{complaint}"
    );
}

#[test]
fn another_device_is_refused_by_its_class() {
    let Some(turn) = turn() else { return };
    let complaint = turn.complaint(&turn.line_for("0000:00:00.0", "identify"));
    assert!(complaint.contains("0000:00:00.0 is not an NVMe controller"), "{complaint}");
}

#[test]
fn device_files_that_the_kernel_does_not_have_are_refused_by_name() {
    let Some(turn) = turn() else { return };
    let complaint = turn.complaint(&format!("vfio_exercise --vfio cdev {} identify", turn.address));
    assert!(complaint.contains("use vfio=group"), "{complaint}");
}

#[test]
fn no_more_is_mapped_than_the_kernel_takes() {
    let Some(turn) = turn() else { return };
    let limit = |count: u32| format!("echo {count} >/sys/module/vfio_iommu_type1/parameters/dma_entry_limit");
    turn.guest.check(&limit(6)).expect("a limit");
    let complaint = turn.complaint(&turn.line_for(turn.address, "exercise"));
    turn.guest.check(&limit(65535)).expect("the limit as it was");
    assert!(complaint.contains("the kernel takes no more mappings: raise dma_entry_limit"), "{complaint}");
    turn.succeed("identify");
}

#[test]
fn a_user_without_rights_learns_what_to_do_and_then_may() {
    let Some(turn) = turn() else { return };
    let user = "echo 'user:x:1000:1000::/tmp:/bin/sh' >/etc/passwd; echo 'user:x:1000:' >/etc/group";
    turn.guest.check(user).expect("a user");
    let line = turn.line_for(turn.address, "identify");
    let as_user = |limit: &str| format!("ulimit -l {limit}; su user -c '{line}'");

    let complaint = turn.complaint(&as_user("1048576"));
    assert!(complaint.contains("no permission to open /dev/vfio/"), "{complaint}");
    assert!(complaint.contains("SUBSYSTEM==\"vfio\""), "{complaint}");

    let group =
        format!("/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{}/iommu_group))", turn.address);
    turn.guest.check(&format!("chown user {group}")).expect("given to the user");
    let complaint = turn.complaint(&as_user("8"));
    assert!(complaint.contains("raise ulimit -l to ") && !complaint.contains("os error"), "{complaint}");
    turn.guest.check(&as_user("1048576")).expect("it works with rights and a limit");
}
