//! The snapshot table.

use super::{LayoutError, MAX_L1_SIZE, Result, check_table, text};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most snapshots of an image (QEMU's limit).
pub const MAX_SNAPSHOTS: u32 = 65536;

/// Largest table in bytes (QEMU's limit).
pub const MAX_TABLE_SIZE: u64 = 64 << 20;

/// Longest extra data of an entry (QEMU's limit).
pub const MAX_EXTRA: u32 = 1024;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    l1_table_offset: U64,
    l1_size: U32,
    id_size: U16,
    name_size: U16,
    date_sec: U32,
    date_nsec: U32,
    vm_clock_nsec: U64,
    vm_state_size: U32,
    extra_data_size: U32,
}

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table is.
    pub l1_table_offset: u64,
    /// How many entries that has.
    pub l1_size: u32,
    /// Unique: a number, if qemu-img or ringpair made it.
    pub id: String,
    /// What the user called it.
    pub name: String,
    /// When it was taken, in seconds since the Epoch, and nanoseconds.
    pub date: (u32, u32),
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of the VM's state.
    pub vm_state_size: u64,
    /// Virtual size; without it, that of the image.
    pub disk_size: Option<u64>,
    /// Instruction count, if the entry has that field and it was counted.
    pub icount: Option<u64>,
    /// Extra data behind what is known, kept as it is.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Parses a table of `count` entries from its bytes (which may be more than it has), and says how many it has.
    ///
    /// # Errors
    ///
    /// Says which field of an entry is wrong, and how.
    pub fn parse_table(bytes: &[u8], count: u32, cluster_bits: u32) -> Result<(Vec<Self>, usize)> {
        let mut snapshots = Vec::new();
        let mut at = 0usize;
        for _ in 0..count {
            let rest = bytes.get(at..).ok_or(LayoutError::Short("snapshot table"))?;
            let (snapshot, length) = Self::parse(rest, cluster_bits)?;
            snapshots.push(snapshot);
            at = at.saturating_add(length).next_multiple_of(8);
        }
        Ok((snapshots, at.min(bytes.len())))
    }

    fn parse(bytes: &[u8], cluster_bits: u32) -> Result<(Self, usize)> {
        let short = || LayoutError::Short("snapshot table");
        let (fields, rest) = Fields::read_from_prefix(bytes).map_err(|_| short())?;
        let l1_bytes = u64::from(fields.l1_size.get()) * 8;
        if l1_bytes > MAX_L1_SIZE {
            return Err(LayoutError::field(
                "l1_size of a snapshot",
                fields.l1_size.get(),
                "is more than 32 MiB hold",
            ));
        }
        let l1_table_offset = fields.l1_table_offset.get();
        check_table("l1_table_offset of a snapshot", l1_table_offset, l1_bytes, cluster_bits)?;
        let extra_size = fields.extra_data_size.get();
        if extra_size > MAX_EXTRA {
            return Err(LayoutError::field("extra data size of a snapshot", extra_size, "is more than 1024"));
        }
        let (extra, rest) = rest.split_at_checked(extra_size as usize).ok_or_else(short)?;
        let (id, rest) = rest.split_at_checked(fields.id_size.get().into()).ok_or_else(short)?;
        let (name, rest) = rest.split_at_checked(fields.name_size.get().into()).ok_or_else(short)?;
        let word =
            |at: usize| extra.get(at..at + 8).and_then(|raw| raw.try_into().ok()).map(u64::from_be_bytes);
        let snapshot = Self {
            l1_table_offset,
            l1_size: fields.l1_size.get(),
            id: text("id of a snapshot", id)?,
            name: text("name of a snapshot", name)?,
            date: (fields.date_sec.get(), fields.date_nsec.get()),
            vm_clock_nsec: fields.vm_clock_nsec.get(),
            vm_state_size: word(0).unwrap_or(fields.vm_state_size.get().into()),
            disk_size: word(8),
            icount: word(16).filter(|count| *count != u64::MAX),
            unknown_extra: extra.get(24..).unwrap_or_default().to_vec(),
        };
        Ok((snapshot, bytes.len() - rest.len()))
    }

    /// The bytes of a table.
    ///
    /// # Errors
    ///
    /// A name is longer than a table can say, or the table than QEMU would read.
    pub fn encode_table(snapshots: &[Self]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            snapshot.encode(&mut bytes)?;
        }
        if bytes.len() as u64 > MAX_TABLE_SIZE {
            return Err(LayoutError::field("size of the snapshot table", bytes.len(), "is more than 64 MiB"));
        }
        Ok(bytes)
    }

    fn encode(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let size = |field, text: &str| {
            u16::try_from(text.len()).map_err(|_| LayoutError::field(field, text.len(), "is more than 65535"))
        };
        let mut extra = Vec::new();
        extra.extend_from_slice(&self.vm_state_size.to_be_bytes());
        if let Some(disk_size) = self.disk_size {
            extra.extend_from_slice(&disk_size.to_be_bytes());
            extra.extend_from_slice(&self.icount.unwrap_or(u64::MAX).to_be_bytes());
            extra.extend_from_slice(&self.unknown_extra);
        }
        let fields = Fields {
            l1_table_offset: U64::new(self.l1_table_offset),
            l1_size: U32::new(self.l1_size),
            id_size: U16::new(size("length of a snapshot's id", &self.id)?),
            name_size: U16::new(size("length of a snapshot's name", &self.name)?),
            date_sec: U32::new(self.date.0),
            date_nsec: U32::new(self.date.1),
            vm_clock_nsec: U64::new(self.vm_clock_nsec),
            vm_state_size: U32::new(u32::try_from(self.vm_state_size).unwrap_or(0)),
            extra_data_size: U32::new(extra.len() as u32),
        };
        bytes.extend_from_slice(fields.as_bytes());
        bytes.extend_from_slice(&extra);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        Ok(())
    }
}
