//! A disk on which writing has ended.

use crate::contract::{Client, Memory};
use crate::{Disk, Operation, RequestError, RequestFlags};

/// After a failed flush nothing that changes the disk succeeds any more, with the same errno, on no queue, and no flush
/// either; reads of the first 8192 bytes do.
///
/// # Panics
///
/// Something else happens.
pub fn writing_has_ended(disk: &dyn Disk, client: &mut Client, errno: i32) {
    let failed = |offset, len| Err(RequestError { errno, offset, len });
    for flags in [RequestFlags::NONE, RequestFlags::FUA] {
        let mut memory = Memory::new(8192, 0, 0xee);
        assert_eq!(client.write_from(0, &mut memory, &[8192], flags), failed(0, 8192));
        assert_eq!(client.run(Operation::WriteZeroes, (4096, 4096), flags), failed(4096, 4096));
    }
    let whole = disk.info().capacity;
    let zeroes = client.run(Operation::WriteZeroes, (0, whole), RequestFlags::MAY_UNMAP);
    assert_eq!(zeroes, failed(0, whole));
    assert_eq!(client.run(Operation::Discard, (0, 4096), RequestFlags::NONE), failed(0, 4096));
    let flushed = client.run(Operation::Flush, (0, 0), RequestFlags::NONE);
    assert_eq!(flushed.map_err(|error| error.errno), Err(errno), "not retried into success");
    assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(errno));
    let flushed = Client::new(disk, 1).run(Operation::Flush, (0, 0), RequestFlags::NONE);
    assert_eq!(flushed.map_err(|error| error.errno), Err(errno), "on other queues neither");
    client.read(0, 8192);
}
