//! Write zeroes and discard.

use super::client::{Client, pattern};
use crate::{Disk, Operation, RequestFlags, Unmapped};

/// A stretch of the disk, and ranges in it of every alignment.
const STRETCH: usize = 512 << 10;
const RANGES: [(usize, usize); 8] = [
    (0, STRETCH),
    (4096, 4096),
    (65536, 65536),
    (512, 512),
    (1, 1),
    (4095, 2),
    (1000, 100_000),
    (300_001, 200_000),
];

fn before(client: &mut Client, seed: u64) -> Vec<u8> {
    let data = pattern(seed, 0, STRETCH);
    client.write(0, &data);
    data
}

/// The range reads as zeroes, whatever the flags; the bytes around it stay.
pub fn write_zeroes_reads_as_zeroes_and_leaves_its_neighbours(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    let flags = [
        RequestFlags::NONE,
        RequestFlags::MAY_UNMAP,
        RequestFlags::FUA,
        RequestFlags::MAY_UNMAP.with(RequestFlags::FUA),
    ];
    for flags in flags {
        for (at, len) in RANGES {
            let mut expected = before(&mut client, 7);
            let range = (at as u64, len as u64);
            assert_eq!(client.run(Operation::WriteZeroes, range, flags), Ok(()), "{range:?} {flags:?}");
            expected[at..at + len].fill(0);
            assert!(client.read(0, STRETCH) == expected, "{range:?} {flags:?}");
        }
    }
}

/// With `NO_FALLBACK` it may be refused with `EOPNOTSUPP`, and only so.
pub fn write_zeroes_without_fallback_works_or_changes_nothing(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    for flags in [RequestFlags::NO_FALLBACK, RequestFlags::NO_FALLBACK.with(RequestFlags::MAY_UNMAP)] {
        for (at, len) in RANGES {
            let mut expected = before(&mut client, 8);
            match client.run(Operation::WriteZeroes, (at as u64, len as u64), flags) {
                Ok(()) => expected[at..at + len].fill(0),
                Err(error) => assert_eq!(error.errno, libc::EOPNOTSUPP),
            }
            assert!(client.read(0, STRETCH) == expected, "{at}+{len} {flags:?}");
        }
    }
}

/// What a discarded range reads as is `DiskInfo::unmapped`; the bytes around it stay.
pub fn a_discarded_range_reads_as_the_disk_says(disk: &dyn Disk) {
    let unmapped = disk.info().unmapped;
    let mut client = Client::new(disk, 4);
    for (at, len) in RANGES {
        let mut expected = before(&mut client, 9);
        assert_eq!(client.run(Operation::Discard, (at as u64, len as u64), RequestFlags::NONE), Ok(()));
        let found = client.read(0, STRETCH);
        match unmapped {
            Unmapped::Zeroes => expected[at..at + len].fill(0),
            Unmapped::Ignored => {}
            Unmapped::ZeroesIfFreed => {
                for (byte, found) in expected[at..at + len].iter_mut().zip(&found[at..at + len]) {
                    *byte = if *found == 0 { 0 } else { *byte };
                }
            }
            Unmapped::Unspecified => expected[at..at + len].copy_from_slice(&found[at..at + len]),
        }
        assert!(found == expected, "{at}+{len}");
    }
}
