//! How much of an image's metadata is in memory, whatever the guest does before it flushes for the first time.

mod images;

use block_core::contract::{Client, pattern};
use block_core::{Disk, Operation, RequestFlags};
use images::Images;

/// With `l2-cache-size=64K` and clusters of 64 KiB: room for eight tables. Each of these maps 512 MiB.
const LIMIT: u64 = 8 * TABLE;
const TABLE: u64 = 64 << 10;
const MAPPED: u64 = 512 << 20;

/// What one request may take beyond the limit: its L2 table, its refcounts, and what is in the first cluster.
const ONE_REQUEST: u64 = 4 * TABLE;

const TABLES: u64 = 100;

fn counter(disk: &dyn Disk, name: &str) -> u64 {
    disk.counters().iter().find(|(counter, _)| *counter == name).unwrap().1
}

fn is_bounded(disk: &dyn Disk) {
    let bytes = counter(disk, "metadata bytes in memory");
    assert!(bytes <= LIMIT + ONE_REQUEST, "{bytes} bytes of metadata");
}

#[test]
fn writes_all_over_a_large_disk_are_written_back_before_they_take_too_much_memory() {
    let Some(images) = Images::new() else { return };
    let path = images.create("disk.qcow2", "", &(TABLES * MAPPED).to_string());
    let disk = images.open(&path, ",cache=writeback,l2-cache-size=64K").unwrap();
    let mut client = Client::new(&*disk, 1);
    for at in (0..TABLES).map(|n| n * MAPPED) {
        client.write(at, &pattern(1, at, 4096));
        is_bounded(&*disk);
    }
    assert!(counter(&*disk, "metadata flushes") < TABLES, "several requests share one");
    for at in (0..TABLES).map(|n| n * MAPPED) {
        assert_eq!(client.read(at, 4096), pattern(1, at, 4096));
        is_bounded(&*disk);
    }
    drop(client);
    drop(disk);
    images.check(&path);
}

#[test]
fn one_request_that_zeroes_a_large_disk_takes_no_more_memory_than_others() {
    let Some(images) = Images::new() else { return };
    let size = TABLES * MAPPED;
    std::fs::File::create(images.path("base.img")).unwrap().set_len(size).unwrap();
    let path = images.create("disk.qcow2", "backing_file=base.img,backing_fmt=raw", &size.to_string());
    let disk = images.open(&path, ",cache=writeback,l2-cache-size=64K").unwrap();
    let mut client = Client::new(&*disk, 1);
    for flags in [RequestFlags::NONE, RequestFlags::MAY_UNMAP] {
        assert_eq!(client.run(Operation::WriteZeroes, (0, size), flags), Ok(()));
        is_bounded(&*disk);
    }
    assert!(counter(&*disk, "metadata pages written") > TABLES, "they have been written back");
    drop(client);
    drop(disk);
    images.check(&path);
}
