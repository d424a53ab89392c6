//! Kernel VFIO by device files and iommufd, on a kernel that has them, behind an IOMMU of 48 bits.

mod vfio_guest;

use fixtures::Kernel;
use std::sync::OnceLock;
use vfio_guest::{Machine, Turn, VfioGuest};

static GUEST: OnceLock<Option<VfioGuest>> = OnceLock::new();

const MACHINE: Machine =
    Machine { kernel: Kernel::Iommufd, iommu: Some(48), arguments: "", interface: "cdev" };

fn turn() -> Option<Turn<'static>> {
    vfio_guest::get(&GUEST, &MACHINE).map(VfioGuest::turn)
}

#[test]
fn the_controller_is_identified() {
    let Some(turn) = turn() else { return };
    turn.identifies_the_controller();
}

#[test]
fn all_sizes_through_all_queues_come_back_as_written() {
    let Some(turn) = turn() else { return };
    turn.verifies_all_sizes_through_all_queues();
}

#[test]
fn data_and_queues_survive_resets() {
    let Some(turn) = turn() else { return };
    turn.keeps_data_and_queues_over_resets();
}

#[test]
fn nothing_is_left_over_when_it_is_closed_and_opened_again() {
    let Some(turn) = turn() else { return };
    turn.leaves_nothing_over_when_it_is_closed();
}

#[test]
fn interrupts_wake_who_sleeps() {
    let Some(turn) = turn() else { return };
    turn.sleeps_until_interrupts();
}

#[test]
fn a_second_process_is_refused() {
    let Some(turn) = turn() else { return };
    turn.refuses_a_second_process();
}

#[test]
fn a_killed_process_leaves_a_controller_that_starts_afresh() {
    let Some(turn) = turn() else { return };
    turn.starts_afresh_after_a_kill_in_the_middle_of_writes();
}

#[test]
fn a_controller_in_use_is_let_go_when_the_kernel_asks_for_it() {
    let Some(turn) = turn() else { return };
    turn.gives_the_controller_back_when_the_kernel_asks_for_it();
}

#[test]
fn the_kernel_gets_it_back_and_reads_what_was_written() {
    let Some(turn) = turn() else { return };
    turn.gives_the_controller_back_to_the_kernel_with_its_data();
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

#[test]
fn a_controller_that_the_kernel_has_is_refused_with_what_to_do() {
    let Some(turn) = turn() else { return };
    turn.refuses_a_controller_that_the_kernel_has();
}
