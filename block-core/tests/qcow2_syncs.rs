//! How often an image is made durable though nobody asked for it: when a cluster is taken that the medium has in use.

mod images;

use block_core::contract::{Client, pattern};
use block_core::file::simulated::{Asked, SimulatedFile, Verdict};
use block_core::qcow2::Qcow2Disk;
use block_core::{Disk, Operation, RequestFlags};
use images::Images;
use images::simulated::{examine, open, shared};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 1 << 20;
const CLUSTER: usize = 4096;

/// Clusters that are written to.
const WRITTEN: usize = 64;

fn image() -> Option<Vec<u8>> {
    let images = Images::new()?;
    let path = images.create("image.qcow2", "cluster_size=4k", &SIZE.to_string());
    Some(std::fs::read(path).unwrap())
}

/// A disk in a file, and the syncs of that so far.
fn counted(file: &SimulatedFile) -> (Qcow2Disk, Arc<AtomicUsize>) {
    let syncs = Arc::new(AtomicUsize::new(0));
    let count = syncs.clone();
    let disk = open(file, "cache=writeback").unwrap();
    file.hook(move |asked| {
        count.fetch_add(usize::from(*asked == Asked::Sync), Ordering::Relaxed);
        Verdict::Done
    });
    (disk, syncs)
}

#[test]
fn clusters_that_a_snapshot_has_too_are_copied_without_a_sync_for_each() {
    let Some(image) = image() else { return };
    let mut data = pattern(1, 0, SIZE);
    let file = SimulatedFile::new(shared(image.into(), &data), 1);
    let (disk, syncs) = counted(&file);
    let mut client = Client::new(&disk, 1);
    for at in (0..WRITTEN).map(|n| n * 4 * CLUSTER) {
        client.write(at as u64, &pattern(2, 0, 512));
        data[at..at + 512].copy_from_slice(&pattern(2, 0, 512));
    }
    let copied = disk.counters().iter().find(|(name, _)| *name == "clusters copied").unwrap().1;
    assert_eq!(copied, WRITTEN as u64);
    // The L2 table is copied too, and who frees the old one waits for that.
    let syncs = syncs.load(Ordering::Relaxed);
    assert!(syncs <= 4, "{syncs} for {WRITTEN} clusters");
    assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
    drop(client);
    drop(disk);
    assert!(examine(file.contents()).unwrap() == data);
}

#[test]
fn a_cluster_that_nobody_has_any_more_is_waited_for_by_the_next_that_is_allocated() {
    let Some(image) = image() else { return };
    let file = SimulatedFile::new(image, 1);
    let (disk, syncs) = counted(&file);
    let mut client = Client::new(&disk, 1);
    client.write(0, &pattern(1, 0, SIZE / 2));
    for n in 0..8 {
        assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
        let at = (n * CLUSTER) as u64;
        assert_eq!(client.run(Operation::Discard, (at, CLUSTER as u64), RequestFlags::NONE), Ok(()));
        // It is given away beside the queues.
        let given_away =
            || disk.counters().iter().find(|(name, _)| *name == "clusters given away").unwrap().1;
        while given_away() <= n as u64 {
            std::thread::yield_now();
        }
        let before = syncs.load(Ordering::Relaxed);
        client.write((SIZE / 2) as u64 + at, &pattern(1, at, CLUSTER));
        assert!(syncs.load(Ordering::Relaxed) > before, "the cluster may have been taken at once");
    }
}
