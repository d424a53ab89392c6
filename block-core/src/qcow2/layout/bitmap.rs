//! The bitmap directory, and the tables that its entries point to.

use super::{LayoutError, OFFSET_MASK, Result, check_table, text};
use bitflags::bitflags;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Most bitmaps of an image (QEMU's limit).
pub const MAX_BITMAPS: u32 = 65535;

/// Largest directory in bytes: QEMU's limit is as many entries of 1 KiB as there can be bitmaps.
pub const MAX_DIRECTORY_SIZE: u64 = 64 << 20;

/// Largest bitmap table in bytes (QEMU's limit on its entries).
pub const MAX_TABLE_SIZE: u64 = (128 << 20) * 8;

bitflags! {
    /// Flags of a bitmap.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BitmapFlags: u32 {
        /// It was not saved, and may be wrong.
        const IN_USE = 1 << 0;
        /// It follows what is written to the disk.
        const AUTO = 1 << 1;
        /// It may be used without knowing its extra data.
        const EXTRA_DATA_COMPATIBLE = 1 << 2;
        const _ = !0;
    }
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    table_offset: U64,
    table_size: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_size: U16,
    extra_data_size: U32,
}

/// An entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Where its table is.
    pub table_offset: u64,
    /// How many entries that has.
    pub table_size: u32,
    /// Flags.
    pub flags: BitmapFlags,
    /// How many bytes of the disk a bit stands for, as a power of two.
    pub granularity_bits: u8,
    /// Its name.
    pub name: String,
}

impl Bitmap {
    /// Parses a directory of `count` entries that has exactly these bytes.
    ///
    /// # Errors
    ///
    /// Says which field of an entry is wrong, and how.
    pub fn parse_directory(bytes: &[u8], count: u32, cluster_bits: u32) -> Result<Vec<Self>> {
        let short = || LayoutError::Short("bitmap directory");
        let mut bitmaps = Vec::new();
        let mut rest = bytes;
        for _ in 0..count {
            let (bitmap, length) = Self::parse(rest, cluster_bits)?;
            bitmaps.push(bitmap);
            rest = rest.get(length.next_multiple_of(8)..).ok_or_else(short)?;
        }
        if !rest.is_empty() {
            return Err(LayoutError::field(
                "bitmap_directory_size",
                bytes.len(),
                "is more than its bitmaps take",
            ));
        }
        Ok(bitmaps)
    }

    fn parse(bytes: &[u8], cluster_bits: u32) -> Result<(Self, usize)> {
        let short = || LayoutError::Short("bitmap directory");
        let (fields, rest) = Fields::read_from_prefix(bytes).map_err(|_| short())?;
        let table_offset = fields.table_offset.get();
        let table_bytes = u64::from(fields.table_size.get()) * 8;
        if table_bytes > MAX_TABLE_SIZE {
            return Err(LayoutError::field(
                "bitmap_table_size",
                fields.table_size.get(),
                "is more than 1 GiB holds",
            ));
        }
        check_table("bitmap_table_offset", table_offset, table_bytes, cluster_bits)?;
        if fields.kind != 1 {
            return Err(LayoutError::field("type of a bitmap", fields.kind, "is unknown (1 is known)"));
        }
        if !(9..=31).contains(&fields.granularity_bits) {
            let bits = fields.granularity_bits;
            return Err(LayoutError::field("granularity_bits", bits, "is not between 9 and 31"));
        }
        let rest = rest.get(fields.extra_data_size.get() as usize..).ok_or_else(short)?;
        let name_size = usize::from(fields.name_size.get());
        if name_size == 0 || name_size > 1023 {
            return Err(LayoutError::field("name_size of a bitmap", name_size, "is not between 1 and 1023"));
        }
        let (name, rest) = rest.split_at_checked(name_size).ok_or_else(short)?;
        let bitmap = Self {
            table_offset,
            table_size: fields.table_size.get(),
            flags: BitmapFlags::from_bits_retain(fields.flags.get()),
            granularity_bits: fields.granularity_bits,
            name: text("name of a bitmap", name)?,
        };
        Ok((bitmap, bytes.len() - rest.len()))
    }
}

/// A bitmap table entry: where a cluster of a bitmap's bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry(pub u64);

impl TableEntry {
    /// Where the cluster is, if there is one. May be no multiple of the cluster size in a corrupt image.
    pub fn offset(self) -> Option<u64> {
        Some(self.0 & OFFSET_MASK).filter(|offset| *offset != 0)
    }

    /// Whether bits are set that should not be.
    pub fn reserved(self) -> bool {
        let all_ones = if self.offset().is_none() { 1 } else { 0 };
        self.0 & !(OFFSET_MASK | all_ones) != 0
    }
}
