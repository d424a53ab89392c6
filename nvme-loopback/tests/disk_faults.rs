//! What a disk's user sees of a drive that misbehaves: errors with their errno and range, and never a hang.

mod drive;

use std::time::{Duration, Instant};

use block_core::{Disk, Operation, RequestError, Submission};
use block_core::{Request, RequestFlags};
use drive::memory::{SharedMemory, finish, run};
use drive::{Emulated, open, options};
use nvme_emu::{ControllerOptions, FaultScript};
use nvme_vfio::{Options, Recovery};

const LONG: Duration = Duration::from_secs(20);

fn faulty(script: &str) -> Emulated {
    let faults = Some(FaultScript::parse(script).unwrap());
    let recovery =
        Recovery { abort_timeout: Duration::from_millis(100), resets: 2, window: Duration::from_secs(600) };
    let options = Options { io_timeout: Duration::from_millis(200), recovery: Some(recovery), ..options() };
    let emulated = ControllerOptions { faults, mdts: 7, ..ControllerOptions::default() };
    Emulated::new(vec![open("mem:16M")], 512, &emulated, options)
}

#[test]
fn a_failed_command_is_its_requests_error_with_errno_and_range() {
    for (status, errno) in [
        ("write-fault", libc::EIO),
        ("capacity-exceeded", libc::ENOSPC),
        ("namespace-is-write-protected", libc::EROFS),
        ("data-transfer-error", libc::EFAULT),
    ] {
        let emulated = faulty(&format!(
            "[[fault]]\nopcode = 'write'\nnth = 2\ntimes = 3\ndo = 'fail'\nstatus = '{status}'\n"
        ));
        let disk = emulated.disk(1);
        let memory = SharedMemory::new(1 << 20);
        memory.register(&disk);
        let mut queue = disk.open_queue(8).unwrap();
        let mut write = |offset: u64, len: usize| {
            run(&mut *queue, Operation::Write, (offset, len as u64), &[memory.segment(0, len)])
        };
        assert_eq!(write(0, 4096), Ok(()));
        let failed = |offset, len| Err(RequestError { errno, offset, len });
        assert_eq!(write(8192, 4096), failed(8192, 4096), "{status}: as it is");
        assert_eq!(write(8193, 1000), failed(8193, 1000), "{status}: a part of a block");
        // Of the two commands that this takes, one.
        assert_eq!(write(1 << 20, 1 << 20), failed(1 << 20, 1 << 20), "{status}");
        assert_eq!(write(8193, 1000), Ok(()), "{status}: and on it goes, with nothing kept from others");
        drop(queue);
        memory.unregister(&disk);
    }
}

#[test]
fn lost_completions_of_every_kind_of_request_are_made_good() {
    for (opcode, count) in [("read", 5), ("write", 4), ("write-zeroes", 1), ("dataset-management", 1)] {
        for nth in 1..=count {
            let emulated = faulty(&format!("[[fault]]\nopcode = '{opcode}'\nnth = {nth}\ndo = 'drop'\n"));
            let disk = emulated.disk(1);
            let memory = SharedMemory::new(1 << 16);
            let mut queue = disk.open_queue(8).unwrap();
            memory.write(0, &[0x5a; 1 << 16]);
            let all = [memory.segment(0, 1 << 16)];
            assert_eq!(run(&mut *queue, Operation::Write, (0, 1 << 16), &all), Ok(()));
            // Blocks read and written for it at both ends.
            let part = [memory.segment(0, 3000)];
            assert_eq!(run(&mut *queue, Operation::Write, (100, 3000), &part), Ok(()));
            assert_eq!(run(&mut *queue, Operation::WriteZeroes, (8100, 3000), &[]), Ok(()));
            assert_eq!(run(&mut *queue, Operation::Discard, (32768, 4096), &[]), Ok(()));
            assert_eq!(run(&mut *queue, Operation::Read, (0, 1 << 16), &all), Ok(()));
            let mut expected = vec![0x5a; 1 << 16];
            expected[8100..11100].fill(0);
            expected[32768..36864].fill(0);
            assert!(memory.read(0, 1 << 16) == expected, "{opcode} {nth}");
            assert_eq!(emulated.drive.controller().recovery_counters().resets, 1, "{opcode} {nth}");
        }
    }
}

#[test]
fn a_drive_that_is_gone_ends_every_request_with_eio() {
    let emulated = faulty("[[fault]]\nopcode = 'read'\nnth = 3\ndo = 'gone'\n");
    let disk = emulated.disk(1);
    let memory = SharedMemory::new(1 << 16);
    memory.register(&disk);
    let start = Instant::now();
    let mut queue = disk.open_queue(16).unwrap();
    let mut other = disk.open_queue(16).unwrap();
    // Whole blocks, parts of them, discards: whatever they wait for.
    let mut pending = 0;
    for i in 0..12u64 {
        let segments = [memory.segment(i as usize * 4096, 4096)];
        let (operation, offset, len, segments) = match i % 4 {
            0 | 1 => (Operation::Read, i * 4096, 4096, &segments[..]),
            2 => (Operation::Write, i * 4096 + 5, 4096, &segments[..]),
            _ => (Operation::Discard, i * 4096, 4096, &[][..]),
        };
        let request = Request { operation, offset, len, segments, flags: RequestFlags::NONE, token: i };
        // SAFETY: the memory stays.
        assert_eq!(unsafe { queue.submit(request) }, Submission::Pending);
        pending += 1;
    }
    let ended = finish(&mut *queue, pending);
    let failed = ended.iter().filter_map(|completion| completion.result.err());
    assert!(failed.clone().count() >= 10, "{ended:?}");
    assert!(failed.clone().all(|error| error.errno == libc::EIO), "{ended:?}");
    let read = |queue: &mut dyn block_core::Queue| {
        run(queue, Operation::Read, (0, 4096), &[memory.segment(0, 4096)])
    };
    let error = Err(RequestError { errno: libc::EIO, offset: 0, len: 4096 });
    assert_eq!(read(&mut *queue), error, "later ones too");
    assert_eq!(read(&mut *other), error, "on other queues too");
    assert!(disk.open_queue(4).is_err());
    drop((queue, other));
    memory.unregister(&disk);
    assert!(start.elapsed() < LONG);
}

#[test]
fn a_namespace_that_changes_its_size_changes_the_disks() {
    let emulated = faulty(
        "[[fault]]\nopcode = 'read'\ndo = 'event'\nevent = 'namespace-attribute-changed'\n\
         [[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnamespace = 1\nnth = 2\ntimes = 0\ndo = 'corrupt'\n\
         offset = 0\nbytes = [0, 0x40]\n",
    );
    let disk = emulated.disk(1);
    assert_eq!(disk.info().capacity, 16 << 20);
    let memory = SharedMemory::new(4096);
    let mut queue = disk.open_queue(8).unwrap();
    let mut read = |offset| run(&mut *queue, Operation::Read, (offset, 4096), &[memory.segment(0, 4096)]);
    assert_eq!(read(12 << 20), Ok(()));
    let start = Instant::now();
    while disk.info().capacity != 8 << 20 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(read(12 << 20), Err(RequestError { errno: libc::EINVAL, offset: 12 << 20, len: 4096 }));
    assert_eq!(read(4 << 20), Ok(()));
}
