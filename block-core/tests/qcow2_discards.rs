//! Clusters that are discarded or zeroed while requests are under way, some of which may have been sent to them: they are
//! somebody else's only when nothing can reach them any more.

mod images;

use block_core::contract::{Client, Memory, pattern};
use block_core::{Disk, Operation, RequestFlags, Submission};
use images::Images;
use std::sync::Arc;

const CLUSTER: usize = 64 << 10;

/// The clusters that the tests are about: one that is discarded, one that is written later, one that is only read.
const DISCARDED: u64 = 0;
const LATER: u64 = CLUSTER as u64;
const READ: u64 = 2 * CLUSTER as u64;

/// A request that is under way for as long as the test wants.
struct Held {
    client: Client,
    memory: Memory,
}

impl Held {
    fn new(disk: &dyn Disk, operation: Operation, at: u64) -> Self {
        let mut held = Self { client: Client::new(disk, 1), memory: Memory::new(CLUSTER, 0, 0xee) };
        let segments = [held.memory.segment()];
        let range = (at, CLUSTER as u64);
        // SAFETY: the memory is dropped after the client.
        let submitted = unsafe { held.client.submit(operation, range, &segments, RequestFlags::NONE).1 };
        assert_eq!(submitted, Submission::Pending, "it is under way until it has been kicked and polled");
        held
    }

    fn end(mut self) {
        self.client.kick();
        assert_eq!(self.client.wait().len(), 1);
    }
}

/// A disk whose first and third clusters are allocated.
fn disk(images: &Images) -> Arc<dyn Disk> {
    let path = images.create("d.qcow2", "", "1M");
    let disk = images.open(&path, ",cache=writeback,discard=unmap").expect("no O_DIRECT is asked for");
    let mut client = Client::new(&*disk, 1);
    client.write(DISCARDED, &pattern(1, DISCARDED, CLUSTER));
    client.write(READ, &pattern(1, READ, CLUSTER));
    disk
}

fn run(disk: &dyn Disk, operation: Operation, at: u64, flags: RequestFlags) {
    assert_eq!(Client::new(disk, 1).run(operation, (at, CLUSTER as u64), flags), Ok(()));
}

/// Discarded clusters are given away with a flush at the latest.
fn flush(disk: &dyn Disk) {
    assert_eq!(Client::new(disk, 1).run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
}

fn given_away(disk: &dyn Disk) -> u64 {
    disk.counters().iter().find(|(name, _)| *name == "clusters given away").expect("a counter").1
}

#[test]
fn a_discarded_cluster_is_given_away_when_what_was_under_way_has_ended() {
    let Some(images) = Images::new() else { return };
    let disk = disk(&images);
    let held = Held::new(&*disk, Operation::Read, READ);
    run(&*disk, Operation::Discard, DISCARDED, RequestFlags::NONE);
    flush(&*disk);
    assert_eq!(given_away(&*disk), 0);
    held.end();
    flush(&*disk);
    assert_eq!(given_away(&*disk), 1);
}

#[test]
fn a_cluster_that_is_discarded_twice_is_not_zeroed_once_it_is_somebody_elses() {
    let Some(images) = Images::new() else { return };
    let disk = disk(&images);
    let first = Held::new(&*disk, Operation::Read, READ);
    run(&*disk, Operation::Discard, DISCARDED, RequestFlags::NONE);
    Client::new(&*disk, 1).write(DISCARDED, &pattern(2, DISCARDED, CLUSTER));
    let second = Held::new(&*disk, Operation::Read, READ);
    run(&*disk, Operation::Discard, DISCARDED, RequestFlags::NONE);
    // Everything has ended that began before the first discard.
    first.end();
    flush(&*disk);
    let data = pattern(3, LATER, CLUSTER);
    Client::new(&*disk, 1).write(LATER, &data);
    // And now before the second.
    second.end();
    flush(&*disk);
    assert!(Client::new(&*disk, 1).read(LATER, CLUSTER) == data);
    assert_eq!(Client::new(&*disk, 1).read(DISCARDED, CLUSTER), vec![0; CLUSTER]);
}

#[test]
fn a_write_that_is_under_way_when_its_cluster_is_zeroed_again_lands_in_nobody_elses() {
    let Some(images) = Images::new() else { return };
    for again in [RequestFlags::NONE, RequestFlags::MAY_UNMAP] {
        let disk = disk(&images);
        let first = Held::new(&*disk, Operation::Read, READ);
        run(&*disk, Operation::Discard, DISCARDED, RequestFlags::NONE);
        Client::new(&*disk, 1).write(DISCARDED, &pattern(2, DISCARDED, CLUSTER));
        let write = Held::new(&*disk, Operation::Write, DISCARDED);
        run(&*disk, Operation::WriteZeroes, DISCARDED, again);
        first.end();
        flush(&*disk);
        let data = pattern(3, LATER, CLUSTER);
        Client::new(&*disk, 1).write(LATER, &data);
        write.end();
        assert!(Client::new(&*disk, 1).read(LATER, CLUSTER) == data, "{again:?}");
    }
}

#[test]
fn a_zeroed_cluster_that_a_write_is_under_way_to_is_not_moved_beside_its_neighbours() {
    let Some(images) = Images::new() else { return };
    for flags in [RequestFlags::NONE, RequestFlags::MAY_UNMAP] {
        let disk = disk(&images);
        Client::new(&*disk, 1).write(LATER, &pattern(1, LATER, CLUSTER));
        run(&*disk, Operation::Discard, LATER, RequestFlags::NONE);
        flush(&*disk);
        assert_eq!(given_away(&*disk), 1);
        let late = Held::new(&*disk, Operation::Write, READ);
        run(&*disk, Operation::WriteZeroes, READ, flags);
        // Both are zeroes now, and only the second has a place: they could have two new ones, one behind the other.
        let neighbours = pattern(2, LATER, 2 * CLUSTER);
        Client::new(&*disk, 1).write(LATER, &neighbours);
        let elsewhere = 8 * CLUSTER as u64;
        let data = pattern(3, elsewhere, 4 * CLUSTER);
        Client::new(&*disk, 1).write(elsewhere, &data);
        late.end();
        assert!(Client::new(&*disk, 1).read(elsewhere, 4 * CLUSTER) == data, "{flags:?}");
        assert!(Client::new(&*disk, 1).read(LATER, CLUSTER) == neighbours[..CLUSTER], "{flags:?}");
    }
}
