//! FUA, and the volatile write cache switched off and on (Set Features 06h, NVMe Base 2.0c, 5.27.1.4): what the disk is
//! asked for, and when the command completes.

mod host;

use block_core::{Operation, RequestError, RequestFlags, RequestResult};
use host::gate_disk::{GateDisk, Taken};
use host::{Host, disk, subsystem};
use nvme_emu::pci::Call;
use nvme_emu::{ControllerOptions, Engine, EngineOptions};
use nvme_spec::nvm_command::{DatasetManagement, DatasetManagementRange, ReadWrite, WriteZeroes};
use nvme_spec::{AdminOpcode, NvmOpcode, Status, SubmissionQueueEntry};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

/// Long enough for a command that must not complete to complete.
const SOON: Duration = Duration::from_millis(30);

/// A controller on a disk that does nothing by itself, an I/O queue, and a page.
fn gated() -> (Host, Arc<GateDisk>, u64) {
    let gate = GateDisk::new(64);
    let mut host = Host::new(vec![gate.clone()]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    (host, gate, page)
}

fn write(page: u64, fua: bool) -> SubmissionQueueEntry {
    let dwords = ReadWrite::new().with_number_of_logical_blocks(1).with_fua(fua);
    SubmissionQueueEntry::new(NvmOpcode::WRITE, 0).with_nsid(1).with_dwords(dwords).with_prp(page, 0)
}

fn set_cache(on: bool) -> SubmissionQueueEntry {
    let mut sqe = SubmissionQueueEntry::new(AdminOpcode::SET_FEATURES, 0);
    (sqe.cdw10, sqe.cdw11) = (6, on.into());
    sqe
}

/// What Get Features says of the cache.
fn cache(host: &mut Host) -> u32 {
    let mut sqe = SubmissionQueueEntry::new(AdminOpcode::GET_FEATURES, 0);
    sqe.cdw10 = 6;
    let cqe = host.run(0, sqe);
    assert_eq!(cqe.status(), Status::SUCCESS);
    cqe.dw0
}

/// Waits for the one request that the disk is to get.
fn one(host: &Host, gate: &GateDisk) -> Taken {
    host.wait("a request to the disk", |_| gate.waiting().len() == 1);
    gate.waiting()[0].clone()
}

/// Runs a command of the I/O queue and says whether its request had FUA.
fn fua_of(host: &mut Host, gate: &GateDisk, sqe: SubmissionQueueEntry) -> bool {
    host.submit(1, sqe);
    let fua = one(host, gate).flags.contains(RequestFlags::FUA);
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    fua
}

/// Ends flushes until no more come: a command may be content with another one's, or not.
fn release_flushes(gate: &GateDisk, result: RequestResult) {
    while !gate.waiting().is_empty() {
        assert!(gate.waiting().iter().all(|taken| taken.operation == Operation::Flush));
        gate.release(result);
        std::thread::sleep(SOON);
    }
}

/// Switches the cache off with nothing in flight.
fn switch_off(host: &mut Host, gate: &GateDisk) {
    host.submit(0, set_cache(false));
    assert_eq!(one(host, gate).operation, Operation::Flush);
    gate.release(Ok(()));
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
}

#[test]
fn with_the_cache_on_only_fua_is_durable_with_it_off_everything() {
    let (mut host, gate, page) = gated();
    assert_eq!(cache(&mut host), 1);
    assert!(!fua_of(&mut host, &gate, write(page, false)));
    assert!(fua_of(&mut host, &gate, write(page, true)));
    switch_off(&mut host, &gate);
    assert_eq!(cache(&mut host), 0);
    assert!(fua_of(&mut host, &gate, write(page, false)));
    let zeroes = WriteZeroes::new().with_number_of_logical_blocks(1);
    let zeroes = SubmissionQueueEntry::new(NvmOpcode::WRITE_ZEROES, 0).with_nsid(1).with_dwords(zeroes);
    assert!(fua_of(&mut host, &gate, zeroes));
    assert_eq!(host.status(0, set_cache(true)), Status::SUCCESS);
    assert!(!fua_of(&mut host, &gate, write(page, false)));
    assert!(!fua_of(&mut host, &gate, zeroes));
}

#[test]
fn with_the_cache_off_what_is_deallocated_does_not_come_back_either() {
    let (mut host, gate, page) = gated();
    let range = DatasetManagementRange { length_lbas: 8, ..DatasetManagementRange::default() };
    host.write_ram(page, range.as_bytes());
    let dwords = DatasetManagement::new().with_number_of_ranges(1).with_ad(true);
    let deallocate = SubmissionQueueEntry::new(NvmOpcode::DATASET_MANAGEMENT, 0)
        .with_nsid(1)
        .with_dwords(dwords)
        .with_prp(page, 0);
    assert!(!fua_of(&mut host, &gate, deallocate));
    switch_off(&mut host, &gate);
    assert!(fua_of(&mut host, &gate, deallocate));
}

#[test]
fn switching_it_off_waits_for_writes_in_flight_then_flushes_them() {
    let (mut host, gate, page) = gated();
    host.submit(1, write(page, false));
    one(&host, &gate);
    host.submit(0, set_cache(false));
    std::thread::sleep(SOON);
    assert!(host.poll(0).is_none(), "a write that is not durable may still complete");
    assert_eq!(gate.waiting().len(), 1, "a flush now would not cover it");
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    assert_eq!(one(&host, &gate).operation, Operation::Flush);
    assert!(host.poll(0).is_none(), "it is not flushed yet");
    gate.release(Ok(()));
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
}

#[test]
fn switched_off_twice_quickly_neither_completes_before_what_was_in_flight_is_durable() {
    let (mut host, gate, page) = gated();
    host.submit(1, write(page, false));
    one(&host, &gate);
    host.submit(0, set_cache(false));
    host.submit(0, set_cache(false));
    std::thread::sleep(SOON);
    assert_eq!(gate.waiting().len(), 1, "a flush now would not cover the write");
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    host.wait("a flush", |_| !gate.waiting().is_empty());
    std::thread::sleep(SOON);
    assert!(host.poll(0).is_none(), "it is not flushed yet");
    release_flushes(&gate, Ok(()));
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
    assert!(fua_of(&mut host, &gate, write(page, false)));
}

#[test]
fn of_two_at_once_both_fail_if_the_flush_does() {
    let (mut host, gate, _) = gated();
    host.submit(0, set_cache(false));
    host.submit(0, set_cache(false));
    host.wait("a flush", |_| !gate.waiting().is_empty());
    std::thread::sleep(SOON);
    release_flushes(&gate, Err(RequestError { errno: libc::EIO, offset: 0, len: 0 }));
    assert_eq!(host.completion(0).status().code(), Status::WRITE_FAULT);
    assert_eq!(host.completion(0).status().code(), Status::WRITE_FAULT);
    switch_off(&mut host, &gate);
}

#[test]
fn switched_off_on_and_off_again_it_waits_for_what_came_in_between() {
    let (mut host, gate, page) = gated();
    host.submit(0, set_cache(false));
    assert_eq!(one(&host, &gate).operation, Operation::Flush);
    assert_eq!(host.status(0, set_cache(true)), Status::SUCCESS);
    host.submit(1, write(page, false));
    host.wait("the write", |_| gate.waiting().len() == 2);
    assert!(!gate.waiting()[1].flags.contains(RequestFlags::FUA));
    host.submit(0, set_cache(false));
    std::thread::sleep(SOON);
    assert_eq!(gate.waiting().len(), 2, "a flush now would not cover the write");
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    assert_eq!(host.completion(0).status(), Status::SUCCESS, "the first");
    assert_eq!(one(&host, &gate).operation, Operation::Flush);
    assert!(host.poll(0).is_none(), "it is not flushed yet");
    gate.release(Ok(()));
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
    assert!(fua_of(&mut host, &gate, write(page, false)));
}

#[test]
fn two_controllers_of_a_disk_that_switch_it_off_at_once_flush_it_each_for_itself() {
    let gate = GateDisk::new(64);
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let subsystem = subsystem(vec![gate.clone()]);
    let mut hosts = [(); 2].map(|()| {
        let mut host = Host::on(engine.add_controller(&subsystem, &ControllerOptions::default()).unwrap());
        host.enable();
        host.create_queue(1);
        host
    });
    let page = hosts[0].pages(1);
    hosts[0].submit(1, write(page, false));
    one(&hosts[0], &gate);
    hosts.iter_mut().for_each(|host| {
        host.submit(0, set_cache(false));
    });
    let [first, second] = &mut hosts;
    second.wait("the second's flush", |_| gate.waiting().len() == 2);
    std::thread::sleep(SOON);
    assert_eq!(gate.waiting().len(), 2, "a flush of the first would not cover its write");
    gate.release(Ok(()));
    assert_eq!(second.completion(0).status(), Status::SUCCESS);
    assert_eq!(first.completion(1).status(), Status::SUCCESS);
    assert_eq!(one(first, &gate).operation, Operation::Flush, "the second's flush did not cover it");
    std::thread::sleep(SOON);
    assert!(first.poll(0).is_none(), "it is not flushed yet");
    gate.release(Ok(()));
    assert_eq!(first.completion(0).status(), Status::SUCCESS);
}

#[test]
fn writes_that_follow_do_not_keep_it_waiting() {
    let (mut host, gate, page) = gated();
    host.submit(0, set_cache(false));
    assert_eq!(one(&host, &gate).operation, Operation::Flush);
    host.submit(1, write(page, false));
    host.wait("the write", |_| gate.waiting().len() == 2);
    assert!(gate.waiting()[1].flags.contains(RequestFlags::FUA));
    gate.release(Ok(()));
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
}

#[test]
fn switching_it_off_again_or_on_flushes_nothing() {
    let (mut host, gate, _) = gated();
    assert_eq!(host.status(0, set_cache(true)), Status::SUCCESS);
    switch_off(&mut host, &gate);
    assert_eq!(host.status(0, set_cache(false)), Status::SUCCESS);
    assert_eq!(host.status(0, set_cache(true)), Status::SUCCESS);
    assert!(gate.waiting().is_empty());
    switch_off(&mut host, &gate);
}

#[test]
fn a_flush_that_fails_is_the_commands_failure_and_the_cache_is_off() {
    let (mut host, gate, page) = gated();
    host.submit(0, set_cache(false));
    one(&host, &gate);
    gate.release(Err(RequestError { errno: libc::EIO, offset: 0, len: 0 }));
    assert_eq!(host.completion(0).status().code(), Status::WRITE_FAULT);
    assert_eq!(cache(&mut host), 0);
    assert!(fua_of(&mut host, &gate, write(page, false)));
    // Nothing has become durable by the failure: asked again, it flushes again.
    switch_off(&mut host, &gate);
}

/// Resets the controller by CC.EN and enables it again.
fn reset(host: &mut Host) {
    host.disable();
    host.wait("CSTS.RDY to drop", |host| !host.csts().rdy());
    host.enable();
    host.create_queue(1);
}

#[test]
fn a_reset_switches_it_on_again_and_it_is_used_when_the_host_says_so() {
    let (mut host, gate, page) = gated();
    switch_off(&mut host, &gate);
    reset(&mut host);
    assert_eq!(cache(&mut host), 1);
    assert!(fua_of(&mut host, &gate, write(page, false)), "a host that takes it for off loses its write");
    assert_eq!(host.status(0, set_cache(false)), Status::SUCCESS);
    assert!(gate.waiting().is_empty(), "there was nothing to flush");
    reset(&mut host);
    assert_eq!(host.status(0, set_cache(true)), Status::SUCCESS);
    assert!(!fua_of(&mut host, &gate, write(page, false)));
    reset(&mut host);
    assert!(!fua_of(&mut host, &gate, write(page, false)));
    switch_off(&mut host, &gate);
}

#[test]
fn a_device_reset_by_the_vmm_and_another_client_are_another_host() {
    for call in [Call::Reset, Call::Disconnect] {
        let (mut host, gate, page) = gated();
        switch_off(&mut host, &gate);
        let client_leaves = matches!(call, Call::Disconnect);
        host.call(call).unwrap();
        host.wait("CSTS.RDY to drop", |host| !host.csts().rdy());
        if client_leaves {
            host.map_ram().unwrap();
        }
        host.enable();
        host.create_queue(1);
        assert_eq!(cache(&mut host), 1);
        assert!(!fua_of(&mut host, &gate, write(page, false)));
        switch_off(&mut host, &gate);
    }
}

#[test]
fn a_reset_takes_the_command_with_it() {
    let (mut host, gate, page) = gated();
    host.submit(0, set_cache(false));
    assert_eq!(one(&host, &gate).operation, Operation::Flush);
    reset(&mut host);
    gate.release(Ok(()));
    std::thread::sleep(SOON);
    assert!(host.poll(0).is_none(), "the completion of a command from before the reset");
    assert_eq!(cache(&mut host), 1);
    assert!(!fua_of(&mut host, &gate, write(page, false)));
    switch_off(&mut host, &gate);
}

#[test]
fn a_disk_without_a_volatile_cache_has_no_such_feature() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let mut host = Host::new(vec![disk(&format!("{},cache=writethrough", path.display()))]);
    host.enable();
    assert_eq!(host.status(0, set_cache(false)).code(), Status::INVALID_FIELD);
}
