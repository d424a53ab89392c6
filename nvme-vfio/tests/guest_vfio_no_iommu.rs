//! Kernel VFIO without an IOMMU, on a kernel that has that mode: physical addresses, in memory of huge pages.

mod vfio_guest;

use fixtures::Kernel;
use vfio_guest::{Machine, machine};

machine! {
    Machine {
        kernel: Kernel::Iommufd,
        iommu: None,
        arguments: "vfio.enable_unsafe_noiommu_mode=1 hugepages=96",
        interface: "unsafe-no-iommu",
    };
    the_controller_is_identified,
    all_sizes_through_all_queues_come_back_as_written,
    interrupts_wake_who_sleeps,
    its_namespace_is_a_disk_that_keeps_the_contract,
    a_second_process_is_refused,
    a_killed_process_leaves_a_controller_that_starts_afresh,
    a_controller_in_use_is_let_go_when_the_kernel_asks_for_it,
    the_kernel_gets_it_back_and_reads_what_was_written,
}

#[test]
fn it_is_never_picked_unasked() {
    let Some(turn) = turn() else { return };
    for asked in ["auto", "group", "cdev"] {
        let line = format!("vfio_exercise --vfio {asked} {} identify", turn.address);
        let complaint = turn.complaint(&line);
        assert!(complaint.contains(&format!("{} is behind no IOMMU", turn.address)), "{asked}: {complaint}");
    }
}

#[test]
fn too_few_huge_pages_are_an_error_that_says_what_to_do() {
    let Some(turn) = turn() else { return };
    let line = turn.line_for(turn.address, "exercise");
    let huge_pages = |count: u32| format!("echo {count} >/proc/sys/vm/nr_hugepages");
    turn.guest.check(&huge_pages(2)).expect("fewer");
    let complaint = turn.complaint(&line);
    turn.guest.check(&huge_pages(96)).expect("as many as before");
    assert!(complaint.contains("sysctl vm.nr_hugepages=N"), "{complaint}");
    // These come from wherever there was room.
    turn.succeed("exercise");
}
