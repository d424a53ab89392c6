//! Labels on block devices that say: part of something larger, which need not be active now.

use super::host::Host;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// What a block device says it is part of: `LVM`, `md RAID`, `a ZFS pool`. Read from the device, or, by who may not
/// read that, from what udev found there.
pub fn of(host: &Host, device: &str, number: &str) -> Option<&'static str> {
    match File::open(host.path(&format!("dev/{device}"))) {
        Ok(mut file) => probe(&mut file).unwrap_or_else(|error| {
            tracing::debug!("/dev/{device}: looking for a label: {error}");
            None
        }),
        Err(_) => by_udev(host, number),
    }
}

fn by_udev(host: &Host, number: &str) -> Option<&'static str> {
    let lines = host.lines(&format!("run/udev/data/b{number}"));
    match lines.iter().find_map(|line| line.strip_prefix("E:ID_FS_TYPE="))? {
        "LVM2_member" => Some(LVM),
        "linux_raid_member" => Some(MD),
        "zfs_member" => Some(ZFS),
        _ => None,
    }
}

const LVM: &str = "LVM";
const MD: &str = "md RAID";
const ZFS: &str = "a ZFS pool";

/// Reads where the labels are.
fn probe(device: &mut (impl Read + Seek)) -> io::Result<Option<&'static str>> {
    let len = device.seek(SeekFrom::End(0))?;
    Ok(if is_lvm(device)? {
        Some(LVM)
    } else if is_md(device, len)? {
        Some(MD)
    } else if is_zfs(device, len)? {
        Some(ZFS)
    } else {
        None
    })
}

/// As many bytes as there are, up to `len`.
fn read(device: &mut (impl Read + Seek), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    device.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    device.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A physical volume's label is in one of the first four sectors.
fn is_lvm(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    let start = read(device, 0, 2048)?;
    Ok(start.chunks_exact(512).any(|sector| &sector[..8] == b"LABELONE" && &sector[24..32] == b"LVM2 001"))
}

/// The superblock is at the start (1.1), 4 KiB after it (1.2), or before the end (1.0, 0.90).
fn is_md(device: &mut (impl Read + Seek), len: u64) -> io::Result<bool> {
    const MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
    let before_end = [(len & !0xfff).checked_sub(8192), (len & !0xffff).checked_sub(65536)];
    for offset in [0, 4096].into_iter().chain(before_end.into_iter().flatten()) {
        if read(device, offset, 4)? == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Two labels at the start, two at the end, each with a ring of uberblocks in its second half. Fewer than four
/// uberblocks are remains.
fn is_zfs(device: &mut (impl Read + Seek), len: u64) -> io::Result<bool> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let end = len & !(LABEL - 1);
    let before_end = [end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    for offset in [0, LABEL].into_iter().chain(before_end.into_iter().flatten()) {
        let ring = read(device, offset + LABEL / 2, LABEL / 2)?;
        let magic = |uberblock: &&[u8]| {
            [MAGIC.to_le_bytes(), MAGIC.to_be_bytes()].iter().any(|magic| uberblock.starts_with(magic))
        };
        if ring.chunks_exact(1024).filter(magic).count() >= 4 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::machine::Machine;
    use std::io::Cursor;

    const LEN: usize = (4 << 20) + 512;

    fn probed(pieces: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut device = vec![0; LEN];
        for (offset, bytes) in pieces {
            device[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        probe(&mut Cursor::new(device)).unwrap()
    }

    #[test]
    fn nothing_is_part_of_nothing() {
        assert_eq!(probed(&[]), None);
        for len in [0, 1, 511, 4096, 65536] {
            assert_eq!(probe(&mut Cursor::new(vec![0; len])).unwrap(), None);
        }
    }

    #[test]
    fn lvm_labels_are_found() {
        assert_eq!(probed(&[(512, b"LABELONE"), (536, b"LVM2 001")]), Some(LVM));
        assert_eq!(probed(&[(512, b"LABELONE")]), None);
    }

    #[test]
    fn md_superblocks_are_found_in_each_place() {
        let end = 4 << 20;
        for offset in [0, 4096, end - 8192, end - 65536] {
            assert_eq!(probed(&[(offset, &[0xfc, 0x4e, 0x2b, 0xa9])]), Some(MD), "{offset}");
        }
    }

    #[test]
    fn zfs_uberblocks_are_found_in_each_label_and_order() {
        let end = 4 << 20;
        for (label, magic) in [0, 256 << 10, end - (512 << 10), end - (256 << 10)]
            .into_iter()
            .zip([true, false].into_iter().cycle())
        {
            let magic = if magic { 0xba_b10c_u64.to_le_bytes() } else { 0xba_b10c_u64.to_be_bytes() };
            let ring = label + (128 << 10);
            let places = [ring, ring + 4096, ring + 8192, ring + 12288].map(|place| (place, &magic[..]));
            assert_eq!(probed(&places), Some(ZFS), "{label}");
            assert_eq!(probed(&places[..3]), None, "remains of an old pool");
        }
    }

    #[test]
    fn who_may_not_read_the_device_asks_udev() {
        let machine = Machine::new();
        machine.write("run/udev/data/b259:1", "S:disk/by-id/x\nE:ID_FS_TYPE=zfs_member\n");
        machine.write("run/udev/data/b259:2", "E:ID_FS_TYPE=ext4\n");
        let host = machine.host();
        assert_eq!(of(&host, "nvme0n1p1", "259:1"), Some(ZFS));
        assert_eq!(of(&host, "nvme0n1p2", "259:2"), None);
        assert_eq!(of(&host, "nvme0n1p3", "259:3"), None);
    }
}
