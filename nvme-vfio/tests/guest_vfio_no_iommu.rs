//! Kernel VFIO without an IOMMU, on a kernel that has that mode: physical addresses, in memory of huge pages.

mod vfio_guest;

use fixtures::Kernel;
use std::sync::OnceLock;
use vfio_guest::{Machine, Turn, VfioGuest};

static GUEST: OnceLock<Option<VfioGuest>> = OnceLock::new();

const MACHINE: Machine = Machine {
    kernel: Kernel::Iommufd,
    iommu: None,
    arguments: "vfio.enable_unsafe_noiommu_mode=1 hugepages=96",
    interface: "unsafe-no-iommu",
};

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
fn interrupts_wake_who_sleeps() {
    let Some(turn) = turn() else { return };
    turn.sleeps_until_interrupts();
}

#[test]
fn its_namespace_is_a_disk_that_keeps_the_contract() {
    let Some(turn) = turn() else { return };
    turn.keeps_the_block_layers_contract();
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
