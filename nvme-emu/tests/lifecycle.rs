//! Controllers, queues and guest memory coming and going, in every order that a guest may choose.

mod host;

use host::gate_disk::GateDisk;
use host::{BASE, Host, PATIENCE, RAM, adaptive, disk, polling, subsystem};
use nvme_emu::pci::{Call, InterruptKind};
use nvme_emu::{ControllerOptions, Engine};
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::registers::{self, ShutdownStatus};
use nvme_spec::{AdminOpcode, NvmOpcode, Status, SubmissionQueueEntry};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::ftruncate;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn read(slba: u64, page: u64) -> SubmissionQueueEntry {
    let dwords = ReadWrite::new().with_slba(slba).with_number_of_logical_blocks(8);
    SubmissionQueueEntry::new(NvmOpcode::READ, 0).with_nsid(1).with_dwords(dwords).with_prp(page, 0)
}

fn gated() -> (Host, std::sync::Arc<GateDisk>, u64) {
    let gate = GateDisk::new(1000);
    let mut host = Host::new(vec![gate.clone()]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    (host, gate, page)
}

#[test]
fn impossible_settings_end_in_cfs_and_a_reset_mends_it() {
    let mut host = Host::new(vec![disk("null:1M")]);
    for (aqa, asq, cc) in [
        (0, BASE, 6 << 16 | 4 << 20 | 1),
        (31 << 16 | 31, BASE + 4096, 7 << 7 | 1),
        (31 << 16 | 31, BASE, 1 << 4 | 1),
        (31 << 16 | 31, BASE, 1 << 11 | 1),
    ] {
        host.write32(registers::AQA, aqa);
        host.write64(registers::ASQ, asq);
        host.write64(registers::ACQ, BASE + 8192);
        host.write32(registers::CC, cc);
        host.wait("CSTS.CFS", |host| host.csts().cfs());
        assert!(!host.csts().rdy());
        host.write32(registers::CC, 0);
        host.wait("CSTS = 0", |host| host.csts().into_bits() == 0);
    }
    host.enable();
}

#[test]
fn queues_that_cannot_be_are_refused_with_the_reason() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    let (sq, cq) = (host.pages(1), host.pages(1));
    for (qid, size, base, status) in [
        (0, 64, cq, Status::INVALID_QUEUE_IDENTIFIER),
        (9, 64, cq, Status::INVALID_QUEUE_IDENTIFIER),
        (1, 1, cq, Status::INVALID_QUEUE_SIZE),
        (1, 4097, cq, Status::INVALID_QUEUE_SIZE),
        (1, 64, cq + 8, Status::PRP_OFFSET_INVALID),
        (1, 64, 0x1000, Status::DATA_TRANSFER_ERROR),
        (1, 4096, BASE + RAM - 4096, Status::DATA_TRANSFER_ERROR),
    ] {
        assert_eq!(host.create_cq(qid, size, base).code(), status, "{qid} {size} {base:#x}");
    }
    assert_eq!(host.create_sq(1, 1, 64, sq).code(), Status::COMPLETION_QUEUE_INVALID);
    assert_eq!(host.create_sq(1, 0, 64, sq).code(), Status::INVALID_QUEUE_IDENTIFIER);
    host.create_queue(1);
    assert_eq!(host.create_cq(1, 64, cq).code(), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(host.create_sq(1, 1, 64, sq).code(), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(
        host.delete(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 1).code(),
        Status::INVALID_QUEUE_DELETION
    );
    assert_eq!(
        host.delete(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 2).code(),
        Status::INVALID_QUEUE_IDENTIFIER
    );
    assert_eq!(host.delete(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 1), Status::SUCCESS);
    assert_eq!(host.delete(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 1), Status::SUCCESS);
    host.create_queue(1);
}

#[test]
fn a_queue_is_deleted_when_its_last_command_has_completed() {
    let (mut host, gate, page) = gated();
    host.submit(1, read(0, page));
    host.wait("the request", |_| gate.waiting().len() == 1);
    let sqe = SubmissionQueueEntry::new(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0);
    host.submit(0, SubmissionQueueEntry { cdw10: 1, ..sqe });
    std::thread::sleep(Duration::from_millis(20));
    assert!(host.poll(0).is_none(), "the queue still has a command in flight");
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    assert_eq!(host.completion(0).status(), Status::SUCCESS);
    // Its doorbell is nobody's now.
    host.submit(1, read(0, page));
    std::thread::sleep(Duration::from_millis(20));
    assert!(host.poll(1).is_none() && gate.waiting().is_empty());
}

#[test]
fn a_reset_waits_for_requests_in_flight_and_posts_nothing_of_them() {
    let (mut host, gate, page) = gated();
    for i in 0..20 {
        host.submit(1, read(i, page));
    }
    host.wait("the requests", |_| gate.waiting().len() == 20);
    host.disable();
    std::thread::sleep(Duration::from_millis(20));
    assert!(host.csts().rdy(), "requests in flight can still write guest memory");
    gate.release(Ok(()));
    host.wait("CSTS.RDY = 0", |host| !host.csts().rdy());
    assert!(host.poll(1).is_none());
    assert_eq!(host.engine.as_ref().unwrap().counters().controllers[0].late_completions, 20);
    host.enable();
    host.create_queue(1);
    host.submit(1, read(0, page));
    host.wait("the request", |_| gate.waiting().len() == 1);
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
}

#[test]
fn a_reset_overtakes_everything_when_enable_follows_at_once() {
    let mut host = Host::new(vec![disk("mem:1M")]);
    host.enable();
    host.create_queue(1);
    let (sq, cq) = (host.pages(1), host.pages(1));
    host.disable();
    host.enable_at(sq, cq);
    host.wait("the reset", |host| host.engine.as_ref().unwrap().counters().controllers[0].resets == 1);
    host.wait("CSTS.RDY", |host| host.csts().rdy());
    // The new admin queue answers, and the I/O queue is gone.
    let status = host.delete(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 1);
    assert_eq!(status.code(), Status::INVALID_QUEUE_IDENTIFIER);
}

#[test]
fn a_function_level_reset_clears_the_registers() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    host.call(Call::Reset).unwrap();
    host.wait("CSTS = 0", |host| host.csts().into_bits() == 0);
    assert_eq!((host.read32(registers::CC), host.read32(registers::AQA)), (0, 0));
    host.enable();
}

#[test]
fn a_subsystem_reset_resets_all_its_controllers_and_says_so() {
    let engine = Engine::start(adaptive()).unwrap();
    let (one, two) = (subsystem(vec![disk("null:1M")]), subsystem(vec![disk("null:1M")]));
    let mut hosts: Vec<Host> = [&one, &one, &two]
        .map(|subsystem| Host::on(engine.add_controller(subsystem, &ControllerOptions::default()).unwrap()))
        .into_iter()
        .collect();
    hosts.iter_mut().for_each(Host::enable);
    hosts[0].write32(registers::NSSR, registers::NSSR_RESET);
    for host in &hosts[..2] {
        host.wait("CSTS.NSSRO alone", |host| host.csts().nssro() && !host.csts().rdy());
    }
    assert!(hosts[2].csts().rdy() && !hosts[2].csts().nssro());
}

#[test]
fn shutdown_flushes_and_then_says_that_it_is_complete() {
    let (mut host, gate, _) = gated();
    host.write32(registers::CC, 6 << 16 | 4 << 20 | 1 << 14 | 1);
    host.wait("the flush", |_| gate.waiting().len() == 1);
    assert_eq!(gate.waiting()[0].operation, block_core::Operation::Flush);
    assert_eq!(host.csts().shst(), ShutdownStatus::Occurring);
    gate.release(Ok(()));
    host.wait("CSTS.SHST", |host| host.csts().shst() == ShutdownStatus::Complete);
    host.disable();
    host.wait("CSTS = 0", |host| host.csts().into_bits() == 0);
    host.enable();
}

#[test]
fn memory_is_unmapped_when_nothing_in_flight_touches_it_any_more() {
    let (mut host, gate, page) = gated();
    host.submit(1, read(0, page));
    host.wait("the request", |_| gate.waiting().len() == 1);
    let answered = host.begin(Call::UnmapDma { iova: BASE, len: RAM });
    assert!(answered.recv_timeout(Duration::from_millis(20)).is_err(), "a request may still write there");
    gate.release(Ok(()));
    answered.recv_timeout(PATIENCE).unwrap().unwrap();
    // The completion had no memory to go to; it comes when there is some again.
    assert!(host.poll(1).is_none());
    host.map_ram().unwrap();
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
    host.submit(1, read(0, page));
    host.wait("queues work again", |_| gate.waiting().len() == 1);
    gate.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
}

#[test]
fn memory_that_overlaps_or_is_not_there_is_refused() {
    let host = Host::new(vec![disk("null:1M")]);
    assert_eq!(host.map_ram(), Err(libc::EEXIST));
    assert_eq!(host.call(Call::UnmapDma { iova: BASE, len: RAM / 2 }), Err(libc::EINVAL));
    assert_eq!(host.call(Call::UnmapDma { iova: 0, len: 4096 }), Err(libc::ENOENT));
    assert_eq!(host.call(Call::UnmapDma { iova: u64::MAX, len: 4096 }), Err(libc::EINVAL));
}

#[test]
fn a_client_that_truncates_its_memory_costs_itself_its_controller_and_nobody_else() {
    let engine = Engine::start(adaptive()).unwrap();
    let mut hosts: Vec<Host> = (0..2)
        .map(|_| {
            let subsystem = subsystem(vec![disk("mem:1M")]);
            Host::on(engine.add_controller(&subsystem, &ControllerOptions::default()).unwrap())
        })
        .collect();
    hosts.iter_mut().for_each(Host::enable);
    hosts.iter_mut().for_each(|host| host.create_queue(1));
    let page = hosts[0].pages(1);
    let mut victim = hosts.remove(0);
    // Leave the queues, take the data page away: the controller's copy to it is what faults.
    ftruncate(&victim.ram_fd, page - BASE).unwrap();
    victim.submit(1, read(0, page));
    victim.wait("CSTS.CFS", |host| host.csts().cfs());
    let page = hosts[0].pages(1);
    assert_eq!(hosts[0].status(1, read(0, page)), Status::SUCCESS);
    victim.call(Call::Disconnect).unwrap();
    ftruncate(&victim.ram_fd, RAM).unwrap();
    victim.map_ram().unwrap();
    victim.enable();
}

#[test]
fn a_client_that_leaves_in_the_middle_makes_room_for_the_next() {
    let (mut host, gate, page) = gated();
    for i in 0..10 {
        host.submit(1, read(i, page));
    }
    host.wait("the requests", |_| gate.waiting().len() == 10);
    let answered = host.begin(Call::Disconnect);
    assert!(answered.recv_timeout(Duration::from_millis(20)).is_err(), "its memory is still in use");
    gate.release(Ok(()));
    answered.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(host.csts().into_bits(), 0);
    let mut next = Host::on(host.function.clone());
    next.enable();
    next.create_queue(1);
    let page = next.pages(1);
    next.submit(1, read(0, page));
    next.wait("the request", |_| gate.waiting().len() == 1);
    gate.release(Ok(()));
    assert_eq!(next.completion(1).status(), Status::SUCCESS);
}

#[test]
fn bad_doorbells_are_reported_by_asynchronous_events() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    host.create_queue(1);
    let event = |host: &mut Host| {
        host.submit(0, SubmissionQueueEntry::new(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0));
    };
    event(&mut host);
    host.write32(0x1000 + 7 * 8, 1);
    assert_eq!(host.completion(0).dw0, 0x0001_0000);
    // Reading the error log lets the next one through.
    let page = host.pages(1);
    let log = SubmissionQueueEntry {
        cdw10: 15 << 16 | 1,
        ..SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 0)
    };
    assert_eq!(host.status(0, log.with_prp(page, 0).with_nsid(u32::MAX)), Status::SUCCESS);
    event(&mut host);
    host.write32(0x1008, 64);
    assert_eq!(host.completion(0).dw0, 0x0001_0100);
    // The queue goes on from where it was.
    let page = host.pages(1);
    assert_eq!(host.status(1, read(0, page)), Status::SUCCESS);
}

fn eventfds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd(0, EventfdFlags::NONBLOCK).unwrap()).collect()
}

fn fired(fd: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: patience.as_nanos() as i64 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
        && rustix::io::read(fd, &mut [0; 8]).is_ok()
}

const SOON: Duration = Duration::from_millis(900);
const NOT: Duration = Duration::from_millis(30);

#[test]
fn msix_fires_the_queues_vector() {
    let mut host = Host::new(vec![disk("null:1M")]);
    let fds = eventfds(9);
    host.connect_msix(fds.iter().map(|fd| Some(fd.try_clone().unwrap())).collect());
    host.enable();
    host.create_queue(3);
    assert!(fired(&fds[0], SOON), "the admin queue's");
    let page = host.pages(1);
    host.status(3, read(0, page));
    assert!(fired(&fds[3], SOON));
    assert!(!fired(&fds[1], NOT));
}

#[test]
fn the_pin_is_level_triggered() {
    let mut host = Host::new(vec![disk("null:1M")]);
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let eventfds = vec![Some(fd.try_clone().unwrap())];
    host.call(Call::SetInterrupts { kind: InterruptKind::Intx, start: 0, eventfds }).unwrap();
    host.enable();
    let identify = SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0);
    host.submit(0, identify);
    assert!(fired(&fd, SOON));
    // Masked by itself; unmasked without the entry taken, it fires again.
    assert!(!fired(&fd, NOT));
    host.call(Call::MaskIntx(false)).unwrap();
    assert!(fired(&fd, SOON));
    host.completion(0);
    host.call(Call::MaskIntx(false)).unwrap();
    assert!(!fired(&fd, NOT));
    host.submit(0, identify);
    assert!(fired(&fd, SOON));
    host.completion(0);
    host.call(Call::MaskIntx(false)).unwrap();
    host.write32(registers::INTMS, 1);
    host.submit(0, identify);
    assert!(!fired(&fd, NOT));
    host.write32(registers::INTMC, 1);
    assert!(fired(&fd, SOON));
}

#[test]
fn coalescing_holds_interrupts_back_for_a_while_and_not_longer() {
    let mut host = Host::new(vec![disk("null:1M")]);
    let fds = eventfds(9);
    host.connect_msix(fds.iter().map(|fd| Some(fd.try_clone().unwrap())).collect());
    host.enable();
    host.create_queue(1);
    let mut set = SubmissionQueueEntry::new(AdminOpcode::SET_FEATURES, 0);
    // 20 ms, 8 entries.
    (set.cdw10, set.cdw11) = (8, 200 << 8 | 7);
    assert_eq!(host.status(0, set), Status::SUCCESS);
    let page = host.pages(1);
    host.status(1, read(0, page));
    assert!(!fired(&fds[1], Duration::from_millis(5)), "one entry is not eight");
    assert!(fired(&fds[1], SOON), "but 20 ms are over");
    for _ in 0..8 {
        host.put(1, read(0, page));
    }
    host.ring(1);
    assert!(fired(&fds[1], Duration::from_millis(15)), "eight are");
}

#[test]
fn a_sleeping_reactor_is_woken_through_shadow_doorbells() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    host.create_queue(1);
    host.use_shadow_doorbells();
    let page = host.pages(1);
    let mut seed = 1u32;
    for _ in 0..3000 {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        // Around the length of the longest spin, so that the race is run often.
        let pause = Duration::from_micros(u64::from(seed >> 24) / 2);
        let begin = std::time::Instant::now();
        while begin.elapsed() < pause {}
        assert_eq!(host.status(1, read(0, page)), Status::SUCCESS);
    }
    let counters = host.engine.as_ref().unwrap().counters();
    assert!(counters.controllers[0].doorbell_messages < 3000 + 20, "{counters:?}");
    assert!(counters.sleeps[0] > 0);
}

#[test]
fn queues_made_before_shadow_doorbells_use_them_too() {
    let mut host = Host::new(vec![disk("null:1M")]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    assert_eq!(host.status(1, read(0, page)), Status::SUCCESS);
    assert_eq!(host.delete(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 1), Status::SUCCESS);
    assert_eq!(host.delete(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 1), Status::SUCCESS);
    host.use_shadow_doorbells();
    let (doorbells, _) = host.shadow.unwrap();
    // Left over from an earlier queue of that identifier.
    host.ram32(doorbells + 8).store(13, Ordering::SeqCst);
    host.create_queue(1);
    assert_eq!(host.status(1, read(0, page)), Status::SUCCESS);
}

#[test]
fn queues_spread_over_reactors_and_all_of_them_work() {
    let mut host = Host::with(polling(2), ControllerOptions::default(), vec![disk("mem:1M")]);
    host.enable();
    let page = host.pages(1);
    for qid in 1..=4 {
        host.create_queue(qid);
    }
    for i in 0..400 {
        assert_eq!(host.status(i % 4 + 1, read(0, page)), Status::SUCCESS);
    }
    host.disable();
    host.wait("CSTS.RDY = 0", |host| !host.csts().rdy());
}

#[test]
fn commands_that_need_buffers_wait_for_each_other_and_all_complete() {
    let (mut host, gate, page) = gated();
    let dwords = ReadWrite::new().with_number_of_logical_blocks(1);
    let compare = SubmissionQueueEntry::new(NvmOpcode::COMPARE, 0).with_nsid(1).with_dwords(dwords);
    for _ in 0..60 {
        host.put(1, compare.with_prp(page, 0));
    }
    host.ring(1);
    host.wait("as many as there may be", |_| gate.waiting().len() == 32);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(gate.waiting().len(), 32);
    let mut completed = 0;
    while completed < 60 {
        gate.release(Ok(()));
        while let Some(cqe) = host.poll(1) {
            assert_eq!(cqe.status(), Status::SUCCESS);
            completed += 1;
        }
    }
}

#[test]
fn a_client_has_only_so_many_regions() {
    let host = Host::new(vec![disk("null:1M")]);
    let map = |at: u64| {
        let mapping =
            nvme_emu::pci::DmaMapping { iova: at * 8192, len: 4096, read: true, write: true, backing: None };
        host.call(Call::MapDma(mapping))
    };
    for at in 0..2047 {
        map(at).unwrap();
    }
    assert_eq!(map(2047), Err(libc::ENOSPC));
    host.call(Call::UnmapDma { iova: 0, len: 4096 }).unwrap();
    map(2047).unwrap();
}

#[test]
fn a_guest_that_resets_over_and_over_is_served_when_it_stops() {
    let mut host = Host::new(vec![disk("null:1M")]);
    for _ in 0..20_000 {
        host.write32(registers::CC, 1);
        host.write32(registers::CC, 0);
        host.write32(registers::NSSR, registers::NSSR_RESET);
    }
    host.wait("CSTS.RDY = 0", |host| !host.csts().rdy() && !host.csts().cfs());
    std::thread::sleep(Duration::from_millis(50));
    host.enable();
    host.create_queue(1);
}
