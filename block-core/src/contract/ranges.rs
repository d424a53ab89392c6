//! Any offset and length is safe to pass.

use super::client::{Client, Memory, pattern};
use crate::{Disk, Operation, RequestError, RequestFlags, Segment};

const EINVAL: i32 = libc::EINVAL;

/// Ranges that are not inside a disk, of a length that memory can be had for.
fn short_ranges_outside(capacity: u64) -> Vec<(u64, u64)> {
    vec![
        (capacity, 1),
        (capacity - 1, 2),
        (capacity - 512, 1024),
        (capacity + 4096, 4096),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (u64::MAX - 511, 4096),
        (i64::MAX as u64, 512),
        (i64::MAX as u64 + 1, 512),
    ]
}

/// A range that is not inside the disk ends with `EINVAL` and touches nothing; the error carries the range.
pub fn a_range_outside_the_disk_ends_with_einval_and_touches_nothing(disk: &dyn Disk) {
    let capacity = disk.info().capacity;
    let mut client = Client::new(disk, 4);
    for (offset, len) in short_ranges_outside(capacity) {
        let error = Err(RequestError { errno: EINVAL, offset, len });
        let mut memory = Memory::new(len as usize, 0, 0x5a);
        assert_eq!(client.read_into(offset, &mut memory, &[len as usize]), error);
        assert!(memory.bytes().iter().all(|&b| b == 0x5a), "a refused read wrote into its buffer");
        assert_eq!(client.write_from(offset, &mut memory, &[len as usize], RequestFlags::NONE), error);
    }
    let long = [(0, capacity + 1), (1, u64::MAX), (0, u64::MAX), (u64::MAX, u64::MAX), (1 << 63, 1 << 63)];
    for range in short_ranges_outside(capacity).into_iter().chain(long) {
        let error = Err(RequestError { errno: EINVAL, offset: range.0, len: range.1 });
        for operation in [Operation::Discard, Operation::WriteZeroes] {
            assert_eq!(client.run(operation, range, RequestFlags::NONE), error, "{operation:?}");
            assert_eq!(client.run(operation, range, RequestFlags::MAY_UNMAP), error, "{operation:?}");
        }
    }
}

/// A write that begins inside the disk and ends outside writes nothing.
pub fn a_write_outside_the_disk_leaves_its_end_as_it_was(disk: &dyn Disk) {
    let capacity = disk.info().capacity;
    let mut client = Client::new(disk, 4);
    let end = pattern(1, capacity - 4096, 4096);
    client.write(capacity - 4096, &end);
    let mut memory = Memory::new(8192, 0, 0x5a);
    let range = (capacity - 4096, 8192);
    assert!(client.write_from(range.0, &mut memory, &[8192], RequestFlags::NONE).is_err());
    assert!(client.run(Operation::WriteZeroes, range, RequestFlags::MAY_UNMAP).is_err());
    assert!(client.run(Operation::Discard, range, RequestFlags::NONE).is_err());
    assert_eq!(client.read(capacity - 4096, 4096), end);
    assert_eq!(disk.info().capacity, capacity);
}

/// A length of 0 succeeds, with no segments and with empty ones.
pub fn a_length_of_zero_succeeds(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    let empty = [Segment { base: std::ptr::dangling_mut(), len: 0 }; 2];
    for offset in [0, 1, 4096, disk.info().capacity] {
        for operation in [Operation::Read, Operation::Write, Operation::Discard, Operation::WriteZeroes] {
            assert_eq!(client.run(operation, (offset, 0), RequestFlags::NONE), Ok(()), "{operation:?}");
        }
        for operation in [Operation::Read, Operation::Write] {
            // SAFETY: the segments are empty.
            let submitted = unsafe { client.submit(operation, (offset, 0), &empty, RequestFlags::NONE) };
            assert_eq!(client.finish(submitted), Ok(()), "{operation:?}");
        }
    }
}

/// For reads and writes, the length is the sum of the segments'.
pub fn segments_that_do_not_add_up_to_the_length_end_with_einval(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    let mut memory = Memory::new(4096, 0, 0x5a);
    let segments = [memory.segment()];
    // Adds up to 4096 only if the sum may wrap around.
    let wraps =
        [Segment { base: segments[0].base, len: usize::MAX }, Segment { base: segments[0].base, len: 4097 }];
    for operation in [Operation::Read, Operation::Write] {
        for (len, segments) in [
            (4095, &segments[..]),
            (4097, &segments[..]),
            (0, &segments[..]),
            (4096, &[]),
            (4096, &wraps[..]),
        ] {
            // SAFETY: the first segment is `memory`; the others are malformed, and so never touched.
            let submitted = unsafe { client.submit(operation, (0, len), segments, RequestFlags::NONE) };
            let error = RequestError { errno: EINVAL, offset: 0, len };
            assert_eq!(client.finish(submitted), Err(error), "{operation:?} of {len}");
        }
    }
    assert!(memory.bytes().iter().all(|&b| b == 0x5a));
}

/// The last byte is as good as any other.
pub fn the_last_bytes_of_the_disk_are_there(disk: &dyn Disk) {
    let capacity = disk.info().capacity;
    let mut client = Client::new(disk, 4);
    for len in [1usize, 2, 511, 512, 513, 4096, 4097] {
        let offset = capacity - len as u64;
        client.write(offset, &pattern(2, offset, len));
        client.read(offset, len);
        assert_eq!(client.run(Operation::WriteZeroes, (offset, len as u64), RequestFlags::NONE), Ok(()));
        assert_eq!(client.run(Operation::Discard, (offset, len as u64), RequestFlags::NONE), Ok(()));
    }
    assert_eq!(disk.info().capacity, capacity);
}

/// Offset, length and segments of a flush are ignored.
pub fn a_flush_ignores_its_range(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    for range in [(0, 0), (u64::MAX, u64::MAX), (disk.info().capacity, 1)] {
        assert_eq!(client.run(Operation::Flush, range, RequestFlags::NONE), Ok(()));
    }
    disk.flush().expect("flush");
}

/// Writes of every kind end with `EROFS`; reads and flushes work.
pub fn a_read_only_disk_refuses_every_change(disk: &dyn Disk) {
    assert!(disk.info().read_only);
    let mut client = Client::new(disk, 4);
    let before = client.read(0, 4096);
    let mut memory = Memory::new(4096, 0, 0x5a);
    let error = Err(RequestError { errno: libc::EROFS, offset: 0, len: 4096 });
    assert_eq!(client.write_from(0, &mut memory, &[4096], RequestFlags::NONE), error);
    assert_eq!(client.write_from(0, &mut memory, &[4096], RequestFlags::FUA), error);
    for operation in [Operation::Discard, Operation::WriteZeroes] {
        assert_eq!(client.run(operation, (0, 4096), RequestFlags::MAY_UNMAP), error, "{operation:?}");
    }
    assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
    assert_eq!(client.read(0, 4096), before);
}
