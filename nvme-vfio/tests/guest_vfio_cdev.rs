//! Kernel VFIO by device files and iommufd, on a kernel that has them, behind an IOMMU of 48 bits.

mod vfio_guest;

use fixtures::Kernel;
use vfio_guest::{Machine, machine};

machine! {
    Machine { kernel: Kernel::Iommufd, iommu: Some(48), arguments: "", interface: "cdev" };
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
fn the_device_file_is_picked_where_the_kernel_has_both_and_the_group_works_too() {
    let Some(turn) = turn() else { return };
    for (asked, taken) in [("auto", "cdev"), ("group", "group"), ("cdev", "cdev")] {
        let line = format!("vfio_exercise --vfio {asked} {} identify", turn.address);
        let said = turn.guest.check(&line).expect("it is identified");
        assert!(said.contains(&format!("taken by {taken}")), "{asked}: {said}");
    }
}
