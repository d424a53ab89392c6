//! What a file disk does when the host refuses it something: an fdatasync that fails, no `RWF_DSYNC`, no io_uring, no
//! space, a file that is cut off.

mod seccomp;

use block_core::contract::{Client, Memory, pattern};
use block_core::file::FileDisk;
use block_core::{Disk, Operation, RequestError, RequestFlags};
use seccomp::{Refused, with_refused};
use std::fs::File;
use std::path::PathBuf;
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    (dir, path)
}

fn open(path: &std::path::Path, options: &str) -> Result<FileDisk, String> {
    let spec = format!("{},{options}", path.display()).parse().unwrap();
    FileDisk::open(spec).map_err(|error| error.to_string())
}

fn write(client: &mut Client, flags: RequestFlags) -> Result<(), i32> {
    let mut memory = Memory::holding(&pattern(1, 4096, 4096), 0);
    client.write_from(4096, &mut memory, &[4096], flags).map_err(|error| error.errno)
}

fn flush(client: &mut Client) -> Result<(), i32> {
    client.run(Operation::Flush, (0, 0), RequestFlags::NONE).map_err(|error| error.errno)
}

const FAILING_SYNC: Refused = Refused { call: libc::SYS_fdatasync, only_if: None, errno: libc::EIO };

#[test]
fn after_a_failed_flush_every_write_fails_and_reads_go_on() {
    let (_dir, path) = file();
    with_refused(&[FAILING_SYNC], || {
        let disk = open(&path, "aio=threads").unwrap();
        let mut client = Client::new(&disk, 4);
        assert_eq!(write(&mut client, RequestFlags::NONE), Ok(()));
        assert_eq!(flush(&mut client), Err(libc::EIO));
        for flags in [RequestFlags::NONE, RequestFlags::FUA] {
            assert_eq!(write(&mut client, flags), Err(libc::EIO));
        }
        let zeroes = client.run(Operation::WriteZeroes, (0, 4096), RequestFlags::NONE);
        assert_eq!(zeroes, Err(RequestError { errno: libc::EIO, offset: 0, len: 4096 }));
        assert_eq!(client.read(4096, 4096), pattern(1, 4096, 4096));
        // Other queues of the disk too.
        assert_eq!(write(&mut Client::new(&disk, 1), RequestFlags::NONE), Err(libc::EIO));
    });
    let disk = open(&path, "aio=threads").unwrap();
    assert_eq!(write(&mut Client::new(&disk, 1), RequestFlags::NONE), Ok(()), "reopened");
}

#[test]
fn a_failed_sync_on_a_thread_stops_the_ring_too() {
    let (_dir, path) = file();
    let disk = open(&path, "aio=auto").unwrap();
    with_refused(&[FAILING_SYNC], || {
        let mut client = Client::new(&disk, 4);
        let zeroes = client.run(Operation::WriteZeroes, (0, 4096), RequestFlags::FUA);
        assert_eq!(zeroes.map_err(|error| error.errno), Err(libc::EIO));
        assert_eq!(write(&mut client, RequestFlags::NONE), Err(libc::EIO));
        assert_eq!(flush(&mut client), Err(libc::EIO));
        client.read(4096, 4096);
    });
}

#[test]
fn a_failed_flush_is_not_retried_into_success() {
    let (_dir, path) = file();
    let disk = open(&path, "aio=threads").unwrap();
    with_refused(&[FAILING_SYNC], || {
        disk.flush().expect_err("refused");
    });
    // The kernel would let it through now.
    assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(flush(&mut Client::new(&disk, 1)), Err(libc::EIO));
    let disk = open_second_time(disk, &path);
    assert_eq!(flush(&mut Client::new(&disk, 1)), Ok(()));
}

fn open_second_time(disk: FileDisk, path: &std::path::Path) -> FileDisk {
    drop(disk);
    open(path, "aio=threads").unwrap()
}

#[test]
fn where_rwf_dsync_is_refused_fua_is_a_write_and_an_fdatasync() {
    let (_dir, path) = file();
    let no_dsync = Refused {
        call: libc::SYS_pwritev2,
        only_if: Some((5, libc::RWF_DSYNC as u32)),
        errno: libc::EOPNOTSUPP,
    };
    with_refused(&[no_dsync], || {
        let disk = open(&path, "aio=threads").unwrap();
        let mut client = Client::new(&disk, 4);
        for _ in 0..2 {
            assert_eq!(write(&mut client, RequestFlags::FUA), Ok(()));
        }
        assert_eq!(client.read(4096, 4096), pattern(1, 4096, 4096));
    });
    // It is the fdatasync that makes it durable: without one, the write must not succeed.
    with_refused(&[no_dsync, FAILING_SYNC], || {
        let disk = open(&path, "aio=threads").unwrap();
        let mut client = Client::new(&disk, 4);
        assert_eq!(write(&mut client, RequestFlags::NONE), Ok(()));
        assert_eq!(write(&mut client, RequestFlags::FUA), Err(libc::EIO));
    });
}

#[test]
fn without_io_uring_auto_uses_threads_and_io_uring_says_so() {
    let (_dir, path) = file();
    for errno in [libc::ENOSYS, libc::EPERM, libc::ENOMEM] {
        with_refused(&[Refused { call: libc::SYS_io_uring_setup, only_if: None, errno }], || {
            let disk = open(&path, "aio=auto").unwrap();
            assert_eq!(disk.engine(), "threads");
            assert_eq!(write(&mut Client::new(&disk, 4), RequestFlags::NONE), Ok(()));
            drop(disk);
            let Err(error) = open(&path, "aio=io_uring") else { panic!("opened without io_uring") };
            assert!(error.contains("disk.img") && error.contains("aio=threads"), "{error}");
        });
    }
}

#[test]
fn a_queue_whose_ring_is_refused_uses_threads_under_auto() {
    let (_dir, path) = file();
    let disk = open(&path, "aio=auto").unwrap();
    if disk.engine() != "io_uring" {
        eprintln!("skipped: no io_uring here");
        return;
    }
    with_refused(&[Refused { call: libc::SYS_io_uring_setup, only_if: None, errno: libc::ENOMEM }], || {
        assert_eq!(write(&mut Client::new(&disk, 4), RequestFlags::FUA), Ok(()));
    });
}

#[test]
fn where_the_kernel_does_not_say_what_o_direct_asks_trial_reads_find_out() {
    let (_dir, path) = file();
    let said = match open(&path, "cache=none") {
        Ok(disk) => disk.info(),
        Err(error) => {
            assert!(error.contains("no O_DIRECT"), "{error}");
            eprintln!("skipped: {error}");
            return;
        }
    };
    with_refused(&[Refused { call: libc::SYS_statx, only_if: None, errno: libc::ENOSYS }], || {
        let disk = open(&path, "cache=none").unwrap();
        let found = disk.info();
        assert!(found.request_alignment >= 512 && found.request_alignment <= said.request_alignment.max(512));
        assert!(found.memory_alignment >= 512 && found.memory_alignment <= said.memory_alignment.max(512));
        assert_eq!(write(&mut Client::new(&disk, 4), RequestFlags::NONE), Ok(()));
    });
}

#[test]
fn without_holes_discards_are_ignored_and_zeroes_written_out() {
    let (_dir, path) = file();
    for aio in ["threads", "auto"] {
        let no_holes = Refused { call: libc::SYS_fallocate, only_if: None, errno: libc::EOPNOTSUPP };
        with_refused(&[no_holes], || {
            let disk = open(&path, &format!("aio={aio}")).unwrap();
            assert_eq!(disk.info().unmapped, block_core::Unmapped::Ignored);
            assert!(!disk.info().fast_write_zeroes);
            let mut client = Client::new(&disk, 4);
            assert_eq!(write(&mut client, RequestFlags::NONE), Ok(()));
            assert_eq!(client.run(Operation::Discard, (4096, 4096), RequestFlags::NONE), Ok(()));
            assert_eq!(client.read(4096, 4096), pattern(1, 4096, 4096));
            let refused = client.run(Operation::WriteZeroes, (4096, 4096), RequestFlags::NO_FALLBACK);
            assert_eq!(refused.map_err(|error| error.errno), Err(libc::EOPNOTSUPP));
            assert_eq!(client.read(4096, 4096), pattern(1, 4096, 4096));
            assert_eq!(client.run(Operation::WriteZeroes, (4096, 4096), RequestFlags::FUA), Ok(()));
            assert!(client.read(4096, 4096).iter().all(|&b| b == 0));
        });
    }
}

#[test]
fn a_read_beyond_where_the_file_was_cut_off_is_an_error() {
    for aio in ["auto", "threads"] {
        let (_dir, path) = file();
        let disk = open(&path, &format!("aio={aio}")).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let mut client = Client::new(&disk, 4);
        client.read(0, 8192);
        let mut memory = Memory::new(8192, 0, 0);
        let error = RequestError { errno: libc::EIO, offset: 4096, len: 8192 };
        assert_eq!(client.read_into(4096, &mut memory, &[8192]), Err(error), "aio={aio}");
    }
}
