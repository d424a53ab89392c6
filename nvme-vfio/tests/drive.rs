//! A drive's queue pairs, and what keeps them few.

mod fake;

use block_core::contract::{Client, Memory};
use block_core::{Disk, Operation, RequestFlags};
use fake::Fake;
use nvme_spec::NvmOpcode;
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::registers::Version;
use nvme_vfio::disk::Drive;
use nvme_vfio::{Controller, Options};

/// A drive with 8 queues, and so many interrupt vectors.
fn drive(vectors: u32) -> std::sync::Arc<Drive> {
    let fake = Fake::with(|state| {
        state.vectors = vectors;
        state.vs = Version::new().with_mjr(1).with_mnr(3);
        state.identify.vwc = nvme_spec::identify::Vwc::new().with_present(true);
    });
    let options = Options { queues: 8, interrupts: true, ..Options::default() };
    Drive::new(Controller::open(fake.boxed(), options).unwrap()).unwrap()
}

#[test]
fn there_are_as_many_queues_as_interrupt_vectors_and_flushes_take_none_of_them() {
    for (vectors, usable) in [(1, 1), (4, 3), (8, 7), (9, 7), (64, 7)] {
        let drive = drive(vectors);
        let disk = drive.disk(1, false).unwrap();
        disk.expect_queues(usable).unwrap();
        let error = disk.expect_queues(usable + 1).unwrap_err().to_string();
        let wanted = if vectors < 8 { "poll=always" } else { "queues=" };
        assert!(error.contains(wanted) && error.contains(&format!("there are {usable}:")), "{error}");
        let _queues: Vec<_> = (0..usable).map(|_| disk.open_queue(4).unwrap()).collect();
        let error = disk.open_queue(4).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
        disk.flush().unwrap();
    }
}

#[test]
fn the_only_queue_pair_of_a_drive_is_for_data_and_flushes_when_nobody_has_it() {
    let fake = Fake::with(|state| {
        state.queues = 1;
        state.vs = Version::new().with_mjr(1).with_mnr(3);
        state.identify.vwc = nvme_spec::identify::Vwc::new().with_present(true);
    });
    let drive = Drive::new(Controller::open(fake.boxed(), Options::default()).unwrap()).unwrap();
    let disk = drive.disk(1, false).unwrap();
    disk.expect_queues(1).unwrap();
    let queue = disk.open_queue(4).unwrap();
    let error = disk.flush().unwrap_err().to_string();
    assert!(error.contains("all 1 I/O queues are in use"), "{error}");
    drop(queue);
    disk.flush().unwrap();
}

#[test]
fn requests_are_cut_where_the_drive_wants_it() {
    let fake = Fake::with(|state| {
        state.vs = Version::new().with_mjr(1).with_mnr(3);
        // 16 KiB at most (MDTS), and none across a multiple of 12 KiB (NOIOB).
        state.identify.mdts = 2;
        state.namespace.noiob = 24;
    });
    let drive = Drive::new(Controller::open(fake.boxed(), Options::default()).unwrap()).unwrap();
    let disk = drive.disk(1, false).unwrap();
    let mut client = Client::new(&disk, 4);
    let mut data = Memory::new(40 << 10, 0, 0);
    for (operation, opcode) in [(Operation::Read, NvmOpcode::READ), (Operation::Write, NvmOpcode::WRITE)] {
        fake.state().commands.clear();
        let (offset, len) = (4096, 40 << 10);
        let segments = [data.segment()];
        // SAFETY: the memory outlives the queue, and nothing is left in flight.
        let submitted = unsafe { client.submit(operation, (offset, len), &segments, RequestFlags::NONE) };
        assert_eq!(client.finish(submitted), Ok(()));
        let mut next = offset / 512;
        for command in &fake.state().commands {
            assert_eq!(command.opcode, opcode.0);
            let dwords: ReadWrite = command.dwords();
            let blocks = u64::from(dwords.number_of_logical_blocks());
            assert_eq!(dwords.slba(), next, "one behind the other");
            assert!(blocks * 512 <= 16384 && next / 24 == (next + blocks - 1) / 24, "{next}+{blocks}");
            next += blocks;
        }
        assert_eq!(next, (offset + len) / 512, "all of it");
    }
}
