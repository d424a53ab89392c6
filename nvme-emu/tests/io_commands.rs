//! The NVM command set through registers, memory and queues.

mod host;

use host::gate_disk::GateDisk;
use host::{Host, disk};
use nvme_spec::nvm_command::{
    Compare, DatasetManagement, DatasetManagementRange, ReadWrite, Verify, WriteZeroes,
};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{NvmOpcode, Status, SubmissionQueueEntry};
use zerocopy::IntoBytes;

fn command(opcode: NvmOpcode, slba: u64, blocks: u32) -> SubmissionQueueEntry {
    let dwords = ReadWrite::new().with_slba(slba).with_number_of_logical_blocks(blocks);
    SubmissionQueueEntry::new(opcode, 0).with_nsid(1).with_dwords(dwords)
}

fn ready() -> Host {
    let mut host = Host::new(vec![disk("mem:16M"), disk("null:1G")]);
    host.enable();
    host.create_queue(1);
    host
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 9) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_at_any_prp_offset() {
    let mut host = ready();
    let (out, back) = (host.pages(4), host.pages(4));
    for offset in [0, 4, 512, 2048, 4092] {
        let data = pattern(8192, offset as u8);
        host.write_ram(out + offset, &data);
        let list = host.pages(1);
        for (base, opcode) in [(out, NvmOpcode::WRITE), (back, NvmOpcode::READ)] {
            let entries = [base + 4096, base + 8192, base + 12288];
            host.write_ram(list, entries.as_bytes());
            let prp2 = if offset == 0 { base + 4096 } else { list };
            let sqe = command(opcode, 100, 16).with_prp(base + offset, prp2);
            assert_eq!(host.status(1, sqe), Status::SUCCESS);
        }
        assert_eq!(host.read_ram(back + offset, 8192), data);
    }
}

#[test]
fn the_largest_transfer_takes_chained_prp_lists() {
    let mut host = ready();
    let len = 1 << 20;
    let (out, back) = (host.pages(256), host.pages(256));
    let data = pattern(len, 1);
    host.write_ram(out, &data);
    for (base, opcode) in [(out, NvmOpcode::WRITE), (back, NvmOpcode::READ)] {
        // The first list is short because it begins near the end of its page.
        let (first, second) = (host.pages(1), host.pages(1));
        let entries: Vec<u64> = (1..256).map(|page| base + page * 4096).collect();
        let first_list: Vec<u64> = entries[..3].iter().copied().chain([second]).collect();
        host.write_ram(first + 4096 - 32, first_list.as_bytes());
        host.write_ram(second, entries[3..].as_bytes());
        let sqe = command(opcode, 0, 2048).with_prp(base, first + 4096 - 32);
        assert_eq!(host.status(1, sqe), Status::SUCCESS);
    }
    assert_eq!(host.read_ram(back, len), data);
    let sqe = command(NvmOpcode::READ, 0, 2049).with_prp(back, 0);
    assert_eq!(host.status(1, sqe), Status::INVALID_FIELD.with_dnr().with_more());
}

#[test]
fn sgls_name_data_byte_by_byte() {
    let mut host = ready();
    let (out, back, list) = (host.pages(2), host.pages(2), host.pages(1));
    let data = pattern(1024, 9);
    host.write_ram(out + 1, &data[..5]);
    host.write_ram(out + 100, &data[5..]);
    let descriptors = [SglDescriptor::data_block(out + 1, 5), SglDescriptor::data_block(out + 100, 1019)];
    host.write_ram(list, descriptors.as_bytes());
    let write = command(NvmOpcode::WRITE, 7, 2).with_sgl(SglDescriptor::last_segment(list, 32));
    assert_eq!(host.status(1, write), Status::SUCCESS);
    let read = command(NvmOpcode::READ, 7, 2).with_sgl(SglDescriptor::data_block(back + 3, 4096));
    assert_eq!(host.status(1, read), Status::SUCCESS);
    assert_eq!(host.read_ram(back + 3, 1024), data);
}

#[test]
fn a_bad_data_pointer_gets_the_status_that_says_so() {
    let mut host = ready();
    let page = host.pages(1);
    let mut sqe = command(NvmOpcode::READ, 0, 1);
    let outside = 0x10;
    for (prp1, prp2, blocks, status) in [
        (page + 2, 0, 1, Status::PRP_OFFSET_INVALID),
        (page, page + 8, 16, Status::PRP_OFFSET_INVALID),
        (page, page + 4, 32, Status::PRP_OFFSET_INVALID),
        (outside, 0, 1, Status::DATA_TRANSFER_ERROR),
        (page, 0x2000, 16, Status::DATA_TRANSFER_ERROR),
        (!3, 0, 1, Status::DATA_TRANSFER_ERROR),
    ] {
        sqe = command(NvmOpcode::READ, 0, blocks).with_prp(prp1, prp2);
        assert_eq!(host.status(1, sqe).code(), status, "{prp1:#x} {prp2:#x}");
    }
    sqe.flags.set_psdt(0b11);
    assert_eq!(host.status(1, sqe).code(), Status::INVALID_FIELD);
    for (descriptor, status) in [
        (SglDescriptor::data_block(page, 511), Status::DATA_SGL_LENGTH_INVALID),
        (SglDescriptor::bit_bucket(512), Status::SGL_DESCRIPTOR_TYPE_INVALID),
        (SglDescriptor::last_segment(page, 15), Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (SglDescriptor::last_segment(page, 0), Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (SglDescriptor::last_segment(page, 1 << 20), Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS),
        (SglDescriptor::last_segment(outside, 16), Status::DATA_TRANSFER_ERROR),
    ] {
        let sqe = command(NvmOpcode::READ, 0, 1).with_sgl(descriptor);
        assert_eq!(host.status(1, sqe).code(), status, "{descriptor:?}");
    }
}

#[test]
fn a_command_outside_of_its_namespace_touches_nothing() {
    let mut host = ready();
    let page = host.pages(1);
    let blocks = (16 << 20) / 512;
    for (slba, nsid, status) in [
        (blocks, 1, Status::LBA_OUT_OF_RANGE),
        (blocks - 1, 1, Status::LBA_OUT_OF_RANGE),
        (u64::MAX, 1, Status::LBA_OUT_OF_RANGE),
        (0, 0, Status::INVALID_NAMESPACE),
        (0, 3, Status::INVALID_NAMESPACE),
        (0, u32::MAX, Status::INVALID_NAMESPACE),
    ] {
        for opcode in [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES, NvmOpcode::VERIFY] {
            let sqe = command(opcode, slba, 2).with_nsid(nsid).with_prp(page, 0);
            assert_eq!(host.status(1, sqe), status.with_dnr().with_more(), "{opcode} {slba} {nsid}");
        }
    }
    let sqe = SubmissionQueueEntry::new(0x7fu8, 0).with_nsid(1);
    assert_eq!(host.status(1, sqe), Status::INVALID_OPCODE.with_dnr().with_more());
}

#[test]
fn write_zeroes_compare_and_verify_do_what_they_say() {
    let mut host = ready();
    let page = host.pages(1);
    host.write_ram(page, &pattern(4096, 3));
    let write = command(NvmOpcode::WRITE, 8, 8).with_prp(page, 0);
    assert_eq!(host.status(1, write), Status::SUCCESS);
    let dwords = Compare::new().with_slba(8).with_number_of_logical_blocks(8);
    let compare = SubmissionQueueEntry::new(NvmOpcode::COMPARE, 0).with_nsid(1).with_dwords(dwords);
    assert_eq!(host.status(1, compare.with_prp(page, 0)), Status::SUCCESS);
    let dwords = WriteZeroes::new().with_slba(9).with_number_of_logical_blocks(1).with_deac(true);
    let zeroes = SubmissionQueueEntry::new(NvmOpcode::WRITE_ZEROES, 0).with_nsid(1).with_dwords(dwords);
    assert_eq!(host.status(1, zeroes), Status::SUCCESS);
    assert_eq!(host.status(1, compare.with_prp(page, 0)).code(), Status::COMPARE_FAILURE);
    let read = command(NvmOpcode::READ, 9, 1).with_prp(page, 0);
    assert_eq!(host.status(1, read), Status::SUCCESS);
    assert_eq!(host.read_ram(page, 512), vec![0; 512]);
    let dwords = Verify::new().with_slba(0).with_number_of_logical_blocks(32768);
    let verify = SubmissionQueueEntry::new(NvmOpcode::VERIFY, 0).with_nsid(1).with_dwords(dwords);
    assert_eq!(host.status(1, verify), Status::SUCCESS);
}

#[test]
fn dataset_management_checks_every_range_before_it_touches_one() {
    let mut host = ready();
    let (data, list) = (host.pages(1), host.pages(1));
    host.write_ram(data, &pattern(4096, 5));
    assert_eq!(host.status(1, command(NvmOpcode::WRITE, 0, 8).with_prp(data, 0)), Status::SUCCESS);
    let range = |slba, length_lbas| DatasetManagementRange { context_attributes: 0, length_lbas, slba };
    let dsm = |host: &mut Host, ranges: &[DatasetManagementRange]| {
        host.write_ram(list, ranges.as_bytes());
        let dwords = DatasetManagement::new().with_number_of_ranges(ranges.len() as u32).with_ad(true);
        let sqe = SubmissionQueueEntry::new(NvmOpcode::DATASET_MANAGEMENT, 0).with_nsid(1);
        host.status(1, sqe.with_dwords(dwords).with_prp(list, 0))
    };
    let last = range(32768, 1);
    assert_eq!(dsm(&mut host, &[range(0, 8), last]), Status::LBA_OUT_OF_RANGE.with_dnr().with_more());
    let read = command(NvmOpcode::READ, 0, 8).with_prp(data, 0);
    assert_eq!(host.status(1, read), Status::SUCCESS);
    assert_eq!(host.read_ram(data, 4096), pattern(4096, 5));
    let mut ranges = vec![range(100, 1); 256];
    ranges[255] = range(0, 8);
    assert_eq!(dsm(&mut host, &ranges), Status::SUCCESS);
    assert_eq!(host.status(1, read), Status::SUCCESS);
    assert_eq!(host.read_ram(data, 4096), vec![0; 4096]);
}

#[test]
fn flush_of_all_namespaces_flushes_each() {
    let (first, second) = (GateDisk::new(64), GateDisk::new(64));
    let mut host = Host::new(vec![first.clone(), second.clone()]);
    host.enable();
    host.create_queue(1);
    host.submit(1, SubmissionQueueEntry::new(NvmOpcode::FLUSH, 0).with_nsid(u32::MAX));
    host.wait("both flushes", |_| first.waiting().len() + second.waiting().len() == 2);
    first.release(Ok(()));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(host.poll(1).is_none(), "one of two is not all");
    second.release(Ok(()));
    assert_eq!(host.completion(1).status(), Status::SUCCESS);
}

#[test]
fn a_full_disk_queue_holds_commands_back_and_loses_none() {
    let gate = GateDisk::new(3);
    let mut host = Host::new(vec![gate.clone()]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    let mut expected: Vec<u16> =
        (0..60).map(|i| host.put(1, command(NvmOpcode::READ, i, 1).with_prp(page, 0))).collect();
    host.ring(1);
    let mut got = Vec::new();
    while got.len() < 60 {
        gate.release(Ok(()));
        while let Some(cqe) = host.poll(1) {
            assert_eq!(cqe.status(), Status::SUCCESS);
            got.push(cqe.cid);
        }
    }
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
}

#[test]
fn a_disk_hears_of_reads_and_writes_before_they_come() {
    let gate = GateDisk::new(64);
    let mut host = Host::new(vec![gate.clone()]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    for batch in [vec![NvmOpcode::READ], vec![NvmOpcode::WRITE, NvmOpcode::READ, NvmOpcode::WRITE]] {
        let count = batch.len();
        for (i, opcode) in (0..).zip(batch) {
            host.put(1, command(opcode, 100 * count as u64 + i, 1).with_prp(page, 0));
        }
        host.ring(1);
        host.wait("the requests", |_| gate.waiting().len() == count);
        assert!(gate.waiting().iter().all(|taken| taken.expected), "{:?}", gate.waiting());
        gate.release(Ok(()));
        (0..count).for_each(|_| assert_eq!(host.completion(1).status(), Status::SUCCESS));
    }
    // What is no read and no write takes nothing of a disk that it could get ready.
    host.submit(1, SubmissionQueueEntry::new(NvmOpcode::FLUSH, 0).with_nsid(1));
    host.wait("the flush", |_| gate.waiting().len() == 1);
    assert!(!gate.waiting()[0].expected);
    gate.release(Ok(()));
}

#[test]
fn errors_of_the_medium_are_reported() {
    let gate = GateDisk::new(64);
    let mut host = Host::new(vec![gate.clone()]);
    host.enable();
    host.create_queue(1);
    let page = host.pages(1);
    for (opcode, errno, status) in [
        (NvmOpcode::READ, libc::EIO, Status::UNRECOVERED_READ_ERROR),
        (NvmOpcode::WRITE, libc::EIO, Status::WRITE_FAULT),
        (NvmOpcode::WRITE, libc::ENOSPC, Status::CAPACITY_EXCEEDED),
        (NvmOpcode::FLUSH, libc::EIO, Status::WRITE_FAULT),
    ] {
        host.submit(1, command(opcode, 0, 1).with_prp(page, 0));
        host.wait("the request", |_| gate.waiting().len() == 1);
        gate.release(Err(block_core::RequestError { errno, offset: 0, len: 512 }));
        assert_eq!(host.completion(1).status().code(), status);
    }
}
