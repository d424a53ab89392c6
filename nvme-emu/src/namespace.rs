//! A namespace: a disk seen as logical blocks, with an identity.

use block_core::{Disk, DiskInfo};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;
use uuid::Uuid;

/// The IEEE OUI in EUI-64 and NGUID: a locally administered one (its U/L bit is set), since the project has none
/// assigned.
pub const OUI: [u8; 3] = *b"RIN";

/// Name space of the version 5 UUIDs that are derived from where a disk is.
const UUID_NAMESPACE: Uuid = Uuid::from_u128(0x9d1c_6b1e_52a4_4c0e_8f57_6a0e_39d2_b7c5);

/// Largest NSID. Firmware asks for every one from 1 to NN, so NN is kept small.
pub const MAX_NSID: u32 = 1024;

/// Where a namespace's identity comes from: the same source gives the same UUID, EUI-64 and NGUID, today and after
/// a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The user's choice.
    Uuid(Uuid),
    /// A file or block device: derived from its canonical path, so links to it give the same identity.
    Path(PathBuf),
    /// Anything else that names the same data each time, such as a URL.
    Name(String),
    /// The data does not outlive the process, so the identity is a new one each time.
    Fresh,
}

/// What a user may choose for a namespace.
#[derive(Clone, Debug)]
pub struct NamespaceOptions {
    /// Size of a logical block: 512 or 4096 bytes. None: 512, or 4096 where the disk has no smaller one.
    pub block_size: Option<u32>,
    /// Where its identifiers come from.
    pub identity: Identity,
}

/// Why a disk cannot be a namespace.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// NSIDs go from 1 to [`MAX_NSID`].
    #[error("namespace identifier {0} is not between 1 and {MAX_NSID}")]
    Nsid(u32),
    /// Neither 512 nor 4096.
    #[error("block size {0} is not supported: 512 and 4096 are")]
    BlockSize(u32),
    /// The disk's own blocks are larger.
    #[error("block size {block_size} is smaller than the disk's own, {disk}")]
    BelowDisk {
        /// The one asked for.
        block_size: u32,
        /// The disk's.
        disk: u32,
    },
    /// A part of a block would be left over.
    #[error("size {capacity} is not a multiple of the block size {block_size}: {} bytes left over", capacity % u64::from(*block_size))]
    Size {
        /// The disk's size in bytes.
        capacity: u64,
        /// The block size.
        block_size: u32,
    },
    /// A namespace has at least one block.
    #[error("size is 0: a namespace needs at least one block of {0} bytes")]
    Empty(u32),
    /// The path does not lead anywhere.
    #[error("{}: {source}", path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
}

/// A namespace: a disk with an identity and a format.
#[derive(Clone)]
pub struct Namespace {
    nsid: u32,
    disk: Arc<dyn Disk>,
    info: DiskInfo,
    /// In bytes, whole blocks: as it is now, for all who have this namespace.
    capacity: Arc<AtomicU64>,
    block_size: u32,
    uuid: Uuid,
}

impl Namespace {
    /// Makes a disk a namespace.
    ///
    /// # Errors
    ///
    /// The disk and the options do not fit; the message says what would.
    pub fn new(nsid: u32, disk: Arc<dyn Disk>, options: &NamespaceOptions) -> Result<Self, NamespaceError> {
        if !(1..=MAX_NSID).contains(&nsid) {
            return Err(NamespaceError::Nsid(nsid));
        }
        let info = disk.info();
        let block_size = block_size(&info, options.block_size)?;
        if !info.capacity.is_multiple_of(u64::from(block_size)) {
            return Err(NamespaceError::Size { capacity: info.capacity, block_size });
        }
        if info.capacity == 0 {
            return Err(NamespaceError::Empty(block_size));
        }
        let uuid = identify(&options.identity)?;
        let capacity = Arc::new(AtomicU64::new(info.capacity));
        Ok(Self { nsid, disk, info, capacity, block_size, uuid })
    }

    /// Namespace identifier, from 1.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Where its data lives.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// What the disk was like when it became a namespace. Its capacity may be another by now.
    pub fn disk_info(&self) -> &DiskInfo {
        &self.info
    }

    /// Size of a logical block in bytes: 512 or 4096.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Size of a logical block as a power of two (LBADS): 9 or 12.
    pub fn block_shift(&self) -> u8 {
        // At most 31, so nothing is lost.
        self.block_size.trailing_zeros() as u8
    }

    /// Capacity in bytes, whole blocks; 0 if the disk cannot be used any more.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Capacity in logical blocks.
    pub fn capacity_lbas(&self) -> u64 {
        self.capacity() >> self.block_shift()
    }

    /// Takes the capacity that the disk has now.
    pub(crate) fn refresh(&self) {
        let now = self.disk.info().capacity;
        self.capacity.store(now - now % u64::from(self.block_size), Ordering::Relaxed);
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.info.read_only
    }

    /// Whether a completed write may still be lost until a flush.
    pub fn volatile_cache(&self) -> bool {
        self.info.volatile_cache
    }

    /// Stable, unique identifier (NIDT 3h).
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// IEEE Extended Unique Identifier (NIDT 1h), big-endian: the OUI, then 40 bits derived from the UUID.
    pub fn eui64(&self) -> [u8; 8] {
        let derived = Uuid::new_v5(&self.uuid, b"EUI-64").into_bytes();
        let mut eui64 = [0; 8];
        eui64[..3].copy_from_slice(&OUI);
        eui64[3..].copy_from_slice(&derived[..5]);
        eui64
    }

    /// Namespace Globally Unique Identifier (NIDT 2h), big-endian: 64 bits of vendor specific extension, the OUI, 40
    /// bits of extension identifier. Both extensions are derived from the UUID.
    pub fn nguid(&self) -> [u8; 16] {
        let mut nguid = Uuid::new_v5(&self.uuid, b"NGUID").into_bytes();
        nguid[8..11].copy_from_slice(&OUI);
        nguid
    }
}

fn block_size(info: &DiskInfo, asked: Option<u32>) -> Result<u32, NamespaceError> {
    let disk = info.logical_block_size;
    let block_size = asked.unwrap_or(if disk > 512 { 4096 } else { 512 });
    if !matches!(block_size, 512 | 4096) {
        return Err(NamespaceError::BlockSize(block_size));
    }
    if block_size < disk {
        return Err(NamespaceError::BelowDisk { block_size, disk });
    }
    Ok(block_size)
}

fn identify(identity: &Identity) -> Result<Uuid, NamespaceError> {
    let canonical = |path: &Path| {
        path.canonicalize().map_err(|source| NamespaceError::Path { path: path.to_path_buf(), source })
    };
    Ok(match identity {
        Identity::Uuid(uuid) => *uuid,
        Identity::Path(path) => {
            Uuid::new_v5(&UUID_NAMESPACE, canonical(path)?.as_os_str().as_encoded_bytes())
        }
        Identity::Name(name) => Uuid::new_v5(&UUID_NAMESPACE, name.as_bytes()),
        Identity::Fresh => Uuid::new_v4(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use block_core::{Queue, Unmapped};
    use std::io;

    /// A disk that is nothing but its description.
    pub(crate) struct Described(pub DiskInfo);

    impl Disk for Described {
        fn info(&self) -> DiskInfo {
            self.0.clone()
        }
        fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn Queue>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn described() -> DiskInfo {
        DiskInfo {
            capacity: 1 << 30,
            logical_block_size: 512,
            physical_block_size: 4096,
            request_alignment: 512,
            memory_alignment: 512,
            max_transfer: 1 << 20,
            volatile_cache: true,
            read_only: false,
            unmapped: Unmapped::Zeroes,
            discard_granularity: 4096,
            fast_write_zeroes: true,
            optimal_io: 0,
            atomic_write: 512,
        }
    }

    pub(crate) fn namespace(nsid: u32, info: DiskInfo, block_size: Option<u32>) -> Namespace {
        let identity = Identity::Name(format!("disk {nsid}"));
        Namespace::new(nsid, Arc::new(Described(info)), &NamespaceOptions { block_size, identity }).unwrap()
    }

    fn refusal(nsid: u32, info: DiskInfo, block_size: Option<u32>, identity: Identity) -> String {
        let disk = Arc::new(Described(info));
        match Namespace::new(nsid, disk, &NamespaceOptions { block_size, identity }) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn block_size_follows_the_disk_unless_chosen() {
        assert_eq!(namespace(1, described(), None).block_size(), 512);
        let advanced = DiskInfo { logical_block_size: 4096, ..described() };
        assert_eq!(namespace(1, advanced, None).block_size(), 4096);
        let chosen = namespace(1, described(), Some(4096));
        assert_eq!((chosen.block_size(), chosen.block_shift(), chosen.capacity_lbas()), (4096, 12, 1 << 18));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line_that_says_what_would() {
        let fresh = || Identity::Fresh;
        assert_eq!(
            refusal(1, described(), Some(1024), fresh()),
            "block size 1024 is not supported: 512 and 4096 are"
        );
        let advanced = DiskInfo { logical_block_size: 4096, ..described() };
        assert_eq!(
            refusal(1, advanced, Some(512), fresh()),
            "block size 512 is smaller than the disk's own, 4096"
        );
        let odd = DiskInfo { capacity: 4096 + 512, ..described() };
        assert_eq!(
            refusal(1, odd, Some(4096), fresh()),
            "size 4608 is not a multiple of the block size 4096: 512 bytes left over"
        );
        let empty = DiskInfo { capacity: 0, ..described() };
        assert_eq!(
            refusal(1, empty, None, fresh()),
            "size is 0: a namespace needs at least one block of 512 bytes"
        );
        assert_eq!(
            refusal(0, described(), None, fresh()),
            "namespace identifier 0 is not between 1 and 1024"
        );
        let nowhere = Identity::Path("/nowhere/disk.img".into());
        assert!(refusal(1, described(), None, nowhere).starts_with("/nowhere/disk.img: "));
    }

    #[test]
    fn identity_is_stable_for_a_path_however_it_is_spelled() {
        let dir = std::env::temp_dir();
        let direct = identify(&Identity::Path(dir.clone())).unwrap();
        let roundabout = identify(&Identity::Path(dir.join("."))).unwrap();
        assert_eq!(direct, roundabout);
        assert_eq!(direct.get_version_num(), 5);
        assert_ne!(direct, identify(&Identity::Path("/".into())).unwrap());
    }

    #[test]
    fn fresh_identities_differ() {
        assert_ne!(identify(&Identity::Fresh).unwrap(), identify(&Identity::Fresh).unwrap());
    }

    #[test]
    fn eui64_and_nguid_derive_from_the_uuid_and_carry_a_local_oui() {
        let (one, again) = (namespace(1, described(), None), namespace(1, described(), Some(4096)));
        assert_eq!((one.eui64(), one.nguid()), (again.eui64(), again.nguid()));
        let two = namespace(2, described(), None);
        assert_ne!(one.eui64(), two.eui64());
        assert_ne!(one.nguid(), two.nguid());
        assert_eq!(one.eui64()[..3], OUI);
        assert_eq!(one.nguid()[8..11], OUI);
        assert_eq!(OUI[0] & 3, 2, "locally administered, not a group address");
    }
}
