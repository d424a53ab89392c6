//! Messages as they are on the wire: all in the byte order of the host, as the protocol wants it.
//!
//! A message is a [`Header`] and a payload that begins with one of these structures. Flags and indexes inside them
//! are those of `<linux/vfio.h>` (`vfio-bindings`).

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most data that one message may carry: what we tell clients as `max_data_xfer_size`.
pub const MAX_DATA_XFER_SIZE: usize = 64 * 1024;

/// The longest message that we accept.
pub const MAX_MESSAGE_SIZE: usize = size_of::<Header>() + size_of::<RegionAccess>() + MAX_DATA_XFER_SIZE;

/// How many descriptors we ask clients to send at most with one message (`max_msg_fds`; QEMU takes no more than
/// 16 from a server). Those that never look at it get away with what the kernel allows: [`SCM_MAX_FD`].
pub const MAX_MSG_FDS: u32 = 16;

/// The most descriptors that one `sendmsg` can carry (the kernel's `SCM_MAX_FD`).
pub const SCM_MAX_FD: usize = 253;

/// Message types, in the low bits of [`Header::flags`].
const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What every message begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender, repeated in the reply.
    pub id: u16,
    /// A [`Command`], or something that we do not know.
    pub command: u16,
    /// Of the whole message, in bytes.
    pub size: u32,
    /// Type, no-reply bit, error bit.
    pub flags: u32,
    /// In a reply with the error bit: an errno.
    pub error: u32,
}

impl Header {
    /// Whether this is a command, and not a reply or something unheard of.
    pub fn is_command(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_COMMAND
    }

    /// Whether the sender wants no reply, not even on error.
    pub fn no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// The header of the reply to this command, with `payload` bytes behind it.
    pub fn reply(&self, payload: usize) -> Self {
        let size = (size_of::<Self>() + payload) as u32;
        Self { size, flags: TYPE_REPLY, error: 0, ..*self }
    }

    /// The whole reply to this command if it failed.
    pub fn error_reply(&self, errno: Errno) -> Self {
        let error = errno.raw_os_error().unsigned_abs();
        Self { size: size_of::<Self>() as u32, flags: TYPE_REPLY | ERROR, error, ..*self }
    }
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `VFIO_USER_VERSION`
    Version,
    /// `VFIO_USER_DMA_MAP`
    DmaMap,
    /// `VFIO_USER_DMA_UNMAP`
    DmaUnmap,
    /// `VFIO_USER_DEVICE_GET_INFO`
    DeviceGetInfo,
    /// `VFIO_USER_DEVICE_GET_REGION_INFO`
    DeviceGetRegionInfo,
    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`
    DeviceGetIrqInfo,
    /// `VFIO_USER_DEVICE_SET_IRQS`
    DeviceSetIrqs,
    /// `VFIO_USER_REGION_READ`
    RegionRead,
    /// `VFIO_USER_REGION_WRITE`
    RegionWrite,
    /// `VFIO_USER_DEVICE_RESET`
    DeviceReset,
    /// `VFIO_USER_REGION_WRITE_MULTI`
    RegionWriteMulti,
}

impl Command {
    /// `None`: left out (descriptors for region I/O, device features, migration), the server's own to send
    /// (DMA reads and writes), or unknown.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            13 => Self::DeviceReset,
            15 => Self::RegionWriteMulti,
            _ => return None,
        })
    }
}

/// Begins the payload of `VFIO_USER_VERSION`, both ways; JSON and a NUL follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Version {
    /// Must be the same on both sides.
    pub major: u16,
    /// The lower of the two counts.
    pub minor: u16,
}

/// `VFIO_USER_DMA_MAP`; at most one descriptor comes with it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaMap {
    /// Size of this structure.
    pub argsz: u32,
    /// [`DmaMap::READ`] and friends.
    pub flags: u32,
    /// Where in the descriptor's file the memory begins.
    pub offset: u64,
    /// First I/O virtual address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaMap {
    /// The device may read it.
    pub const READ: u32 = 1 << 0;
    /// The device may write it.
    pub const WRITE: u32 = 1 << 1;
    /// To be reached by mapping the descriptor, which is what happens without this flag too (libvfio-user 2026).
    pub const MMAP: u32 = 1 << 2;
}

/// `VFIO_USER_DMA_UNMAP`, and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaUnmap {
    /// Room for the reply's payload.
    pub argsz: u32,
    /// `VFIO_DMA_UNMAP_FLAG_*`.
    pub flags: u32,
    /// First I/O virtual address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// `VFIO_USER_DEVICE_GET_INFO`, and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Room for the reply's payload; in the reply, what it would take.
    pub argsz: u32,
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Regions, BARs and configuration space among them.
    pub num_regions: u32,
    /// Interrupt indexes.
    pub num_irqs: u32,
}

/// `VFIO_USER_DEVICE_GET_REGION_INFO`, and the beginning of its reply (`struct vfio_region_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// Room for the reply's payload; in the reply, what it would take.
    pub argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// `VFIO_PCI_*_REGION_INDEX`.
    pub index: u32,
    /// Where the first capability is, counted from the start of this structure.
    pub cap_offset: u32,
    /// Of the region, in bytes.
    pub size: u64,
    /// Where in the descriptor's file the region begins.
    pub offset: u64,
}

/// The capability that names the parts of a region that can be mapped
/// (`struct vfio_region_info_cap_sparse_mmap`), with one area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SparseMmap {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Where the next capability is: 0, there is none.
    pub next: u32,
    /// 1.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
    /// Where the area begins in the region, and (plus [`RegionInfo::offset`]) in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// `VFIO_USER_DEVICE_GET_IRQ_INFO`, and its reply (`struct vfio_irq_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// Room for the reply's payload; in the reply, what it would take.
    pub argsz: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// `VFIO_PCI_*_IRQ_INDEX`.
    pub index: u32,
    /// Vectors of that index.
    pub count: u32,
}

/// `VFIO_USER_DEVICE_SET_IRQS` (`struct vfio_irq_set`); a byte a vector may follow, or descriptors come with it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Size of this structure and the bytes behind it.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_*`: one kind of data, one action.
    pub flags: u32,
    /// `VFIO_PCI_*_IRQ_INDEX`.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// How many vectors.
    pub count: u32,
}

/// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`, and their replies; the data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionAccess {
    /// Into the region.
    pub offset: u64,
    /// `VFIO_PCI_*_REGION_INDEX`.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// One of the writes in `VFIO_USER_REGION_WRITE_MULTI`, which begins with their number as a `u64`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MultiWrite {
    /// Where to; `count` is at most 8.
    pub access: RegionAccess,
    /// The first `count` of these.
    pub data: [u8; 8],
}

/// The structure that a payload begins with, and what follows it. `EINVAL` if the payload is too short.
pub fn parse<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::INVAL)
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DeviceInfo>() == 16);
    assert!(size_of::<RegionInfo>() == 32);
    assert!(size_of::<SparseMmap>() == 32);
    assert!(size_of::<IrqInfo>() == 16);
    assert!(size_of::<IrqSet>() == 20);
    assert!(size_of::<RegionAccess>() == 16);
    assert!(size_of::<MultiWrite>() == 24);
};
