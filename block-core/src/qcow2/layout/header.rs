//! The header: the first cluster of an image.

use super::extension::{self, Extension};
use super::feature::{Autoclear, Compatible, Incompatible};
use super::{
    CLUSTER_BITS, LayoutError, MAGIC, MAX_CLUSTER_SIZE, MAX_L1_SIZE, MAX_REFCOUNT_TABLE_SIZE, Result,
    check_table, snapshot, text,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of version 2, with which that of version 3 begins.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields2 {
    magic: [u8; 4],
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
}

/// What version 3 adds.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields3 {
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}

const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
const _: () = assert!(size_of::<Fields2>() == V2_LENGTH);
const _: () = assert!(size_of::<Fields2>() + size_of::<Fields3>() == V3_LENGTH);

/// The longest name of a backing file.
pub const MAX_BACKING_FILE: usize = 1023;

/// The version of the format; qemu-img calls them `compat=0.10` and `compat=1.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`.
    V2,
    /// `compat=1.1`.
    V3,
}

/// `crypt_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypt {
    /// Not encrypted.
    None,
    /// AES in CBC mode.
    Aes,
    /// LUKS.
    Luks,
}

/// A checked header.
///
/// `header_length` and the place of the backing file's name are not kept: [`Header::encode`] finds them anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version.
    pub version: Version,
    /// Name of the backing file, as it is written in the image.
    pub backing_file: Option<String>,
    /// The cluster size as a power of two, 9 to 21.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt_method: Crypt,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table is.
    pub l1_table_offset: u64,
    /// Where the refcount table is.
    pub refcount_table_offset: u64,
    /// How many clusters it has.
    pub refcount_table_clusters: u32,
    /// How many snapshots there are.
    pub nb_snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Features that have to be understood.
    pub incompatible_features: Incompatible,
    /// Features that may be ignored.
    pub compatible_features: Compatible,
    /// Features that a writer which does not know them clears.
    pub autoclear_features: Autoclear,
    /// Width of a refcount in bits, as a power of two, 0 to 6.
    pub refcount_order: u32,
    /// `compression_type`: 0 is zlib, 1 zstd.
    pub compression_type: u8,
    /// Fields after the ones that are known, kept as they are.
    pub unknown_fields: Vec<u8>,
    /// Header extensions, in their order.
    pub extensions: Vec<Extension>,
}

impl Header {
    /// Reads and checks the header of an image file.
    ///
    /// # Errors
    ///
    /// The file cannot be read; or, as `InvalidData` with a [`LayoutError`], what is there is no header.
    pub fn read(file: &File) -> io::Result<Self> {
        Self::read_from(|length| read_up_to(file, length))
    }

    /// As [`Header::read`], from whatever gives the first `length` bytes of the image, or as many as there are.
    pub(crate) fn read_from(start: impl Fn(usize) -> io::Result<Vec<u8>>) -> io::Result<Self> {
        let fixed = start(24)?;
        if !fixed.starts_with(&MAGIC) {
            return Err(invalid(LayoutError::NotQcow2));
        }
        let cluster_bits = fixed.get(20..24).and_then(|bits| bits.try_into().ok()).map(u32::from_be_bytes);
        let length = match cluster_bits {
            Some(bits) if CLUSTER_BITS.contains(&bits) => 1 << bits,
            _ => V3_LENGTH,
        };
        Self::parse(&start(length)?).map_err(invalid)
    }

    /// Parses the beginning of an image: its whole first cluster, or as much of it as the file has. More does no harm
    /// ([`MAX_CLUSTER_SIZE`] bytes are always enough).
    ///
    /// # Errors
    ///
    /// Says which field is wrong, and how.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if !bytes.starts_with(&MAGIC) {
            return Err(LayoutError::NotQcow2);
        }
        let (two, _) = Fields2::read_from_prefix(bytes).map_err(|_| LayoutError::Short("header"))?;
        let version = match two.version.get() {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(LayoutError::Version(other)),
        };
        let cluster_bits = two.cluster_bits.get();
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(LayoutError::field("cluster_bits", cluster_bits, "is not between 9 and 21"));
        }
        let cluster_size = 1usize << cluster_bits;
        let bytes = &bytes[..bytes.len().min(cluster_size)];
        let crypt_method = match two.crypt_method.get() {
            0 => Crypt::None,
            1 => Crypt::Aes,
            2 => Crypt::Luks,
            other => return Err(LayoutError::field("crypt_method", other, "is unknown (0 to 2 are known)")),
        };
        let mut header = Self {
            version,
            backing_file: None,
            cluster_bits,
            size: two.size.get(),
            crypt_method,
            l1_size: two.l1_size.get(),
            l1_table_offset: two.l1_table_offset.get(),
            refcount_table_offset: two.refcount_table_offset.get(),
            refcount_table_clusters: two.refcount_table_clusters.get(),
            nb_snapshots: two.nb_snapshots.get(),
            snapshots_offset: two.snapshots_offset.get(),
            incompatible_features: Incompatible::empty(),
            compatible_features: Compatible::empty(),
            autoclear_features: Autoclear::empty(),
            refcount_order: 4,
            compression_type: 0,
            unknown_fields: Vec::new(),
            extensions: Vec::new(),
        };
        let header_length = match version {
            Version::V2 => V2_LENGTH,
            Version::V3 => header.parse_version_3(bytes)?,
        };
        header.check_ranges()?;
        let backing_offset = two.backing_file_offset.get();
        // The extensions end where the name begins, or with the cluster.
        let extensions_end = match usize::try_from(backing_offset) {
            Ok(0) | Err(_) => cluster_size,
            Ok(offset) => offset.min(cluster_size),
        };
        header.extensions = extension::parse_all(bytes, header_length, extensions_end, cluster_bits)?;
        if backing_offset != 0 {
            let name = backing_name(bytes, backing_offset, two.backing_file_size.get(), cluster_size)?;
            header.backing_file = (!name.is_empty()).then_some(name);
        }
        header.check_features()?;
        Ok(header)
    }

    /// Takes the fields of version 3, and says how long the header is.
    fn parse_version_3(&mut self, bytes: &[u8]) -> Result<usize> {
        let rest = bytes.get(V2_LENGTH..).unwrap_or_default();
        let (three, _) = Fields3::read_from_prefix(rest).map_err(|_| LayoutError::Short("header"))?;
        self.incompatible_features = Incompatible::from_bits_retain(three.incompatible_features.get());
        self.compatible_features = Compatible::from_bits_retain(three.compatible_features.get());
        self.autoclear_features = Autoclear::from_bits_retain(three.autoclear_features.get());
        self.refcount_order = three.refcount_order.get();
        if self.refcount_order > 6 {
            return Err(LayoutError::field("refcount_order", self.refcount_order, "is more than 6"));
        }
        let length = three.header_length.get();
        let header_length = length as usize;
        if header_length < V3_LENGTH {
            return Err(LayoutError::field("header_length", length, "is less than 104"));
        }
        if !header_length.is_multiple_of(8) {
            return Err(LayoutError::field("header_length", length, "is not a multiple of 8"));
        }
        if header_length > 1 << self.cluster_bits {
            return Err(LayoutError::field("header_length", length, "is more than a cluster"));
        }
        let additional = bytes.get(V3_LENGTH..header_length).ok_or(LayoutError::Short("header"))?;
        if let Some((compression_type, unknown)) = additional.split_first() {
            self.compression_type = *compression_type;
            self.unknown_fields = unknown.to_vec();
        }
        Ok(header_length)
    }

    fn check_ranges(&self) -> Result<()> {
        let bits = self.cluster_bits;
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > MAX_L1_SIZE {
            return Err(LayoutError::field("l1_size", self.l1_size, "is more than 32 MiB hold"));
        }
        check_table("l1_table_offset", self.l1_table_offset, l1_bytes, bits)?;
        let refcount_table = u64::from(self.refcount_table_clusters) << bits;
        if refcount_table > MAX_REFCOUNT_TABLE_SIZE {
            let clusters = self.refcount_table_clusters;
            return Err(LayoutError::field("refcount_table_clusters", clusters, "is more than 8 MiB hold"));
        }
        if self.refcount_table_clusters == 0 {
            return Err(LayoutError::field("refcount_table_clusters", 0, "leaves no room for any refcount"));
        }
        check_table("refcount_table_offset", self.refcount_table_offset, refcount_table, bits)?;
        if self.nb_snapshots > snapshot::MAX_SNAPSHOTS {
            return Err(LayoutError::field("nb_snapshots", self.nb_snapshots, "is more than 65536"));
        }
        if self.nb_snapshots > 0 {
            check_table("snapshots_offset", self.snapshots_offset, 0, bits)?;
        }
        if self.size > i64::MAX as u64 {
            return Err(LayoutError::field("size", self.size, "is more than a file can have"));
        }
        Ok(())
    }

    /// What the L1 table has to hold, and which features go together.
    fn check_features(&self) -> Result<()> {
        let wanted = self.l1_entries_for(self.size);
        if u64::from(self.l1_size) < wanted {
            return Err(LayoutError::field("l1_size", self.l1_size, "is too small for the virtual size"));
        }
        let zlib = self.compression_type == 0;
        if self.incompatible_features.contains(Incompatible::COMPRESSION_TYPE) == zlib {
            return Err(LayoutError::field(
                "compression_type",
                self.compression_type,
                "contradicts the compression type feature bit",
            ));
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(LayoutError::field(
                "cluster_bits",
                self.cluster_bits,
                "is too small for extended L2 entries",
            ));
        }
        Ok(())
    }

    /// The header and what follows it in its cluster: extensions, and the backing file's name. The rest of the
    /// cluster is to be zero.
    ///
    /// # Errors
    ///
    /// It does not fit into a cluster: the name of the backing file is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let length = match self.version {
            Version::V2 => V2_LENGTH,
            // One byte of compression type, then what is not known.
            Version::V3 => (V3_LENGTH + 1 + self.unknown_fields.len()).next_multiple_of(8),
        };
        let mut tail = Vec::new();
        extension::encode_all(&self.extensions, &mut tail);
        let name = self.backing_file.as_deref().unwrap_or_default();
        let name_offset = length + tail.len();
        if name.len() > MAX_BACKING_FILE || name_offset + name.len() > self.cluster_size() as usize {
            return Err(LayoutError::field(
                "backing file name",
                name.escape_debug(),
                "is too long for the header",
            ));
        }
        let has_name = !name.is_empty();
        let two = Fields2 {
            magic: MAGIC,
            version: U32::new(if self.version == Version::V2 { 2 } else { 3 }),
            backing_file_offset: U64::new(if has_name { name_offset as u64 } else { 0 }),
            backing_file_size: U32::new(name.len() as u32),
            cluster_bits: U32::new(self.cluster_bits),
            size: U64::new(self.size),
            crypt_method: U32::new(match self.crypt_method {
                Crypt::None => 0,
                Crypt::Aes => 1,
                Crypt::Luks => 2,
            }),
            l1_size: U32::new(self.l1_size),
            l1_table_offset: U64::new(self.l1_table_offset),
            refcount_table_offset: U64::new(self.refcount_table_offset),
            refcount_table_clusters: U32::new(self.refcount_table_clusters),
            nb_snapshots: U32::new(self.nb_snapshots),
            snapshots_offset: U64::new(self.snapshots_offset),
        };
        let mut bytes = two.as_bytes().to_vec();
        if self.version == Version::V3 {
            let three = Fields3 {
                incompatible_features: U64::new(self.incompatible_features.bits()),
                compatible_features: U64::new(self.compatible_features.bits()),
                autoclear_features: U64::new(self.autoclear_features.bits()),
                refcount_order: U32::new(self.refcount_order),
                header_length: U32::new(length as u32),
            };
            bytes.extend_from_slice(three.as_bytes());
            bytes.push(self.compression_type);
            bytes.extend_from_slice(&self.unknown_fields);
            bytes.resize(length, 0);
        }
        bytes.extend(tail);
        bytes.extend_from_slice(name.as_bytes());
        Ok(bytes)
    }

    /// The cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Width of a refcount in bits.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Whether L2 entries are 128 bits and know subclusters.
    pub fn extended_l2(&self) -> bool {
        self.incompatible_features.contains(Incompatible::EXTENDED_L2)
    }

    /// Whether guest data is in a file of its own.
    pub fn external_data_file(&self) -> bool {
        self.incompatible_features.contains(Incompatible::EXTERNAL_DATA_FILE)
    }

    /// Size of an L2 entry in bytes, as a power of two.
    pub fn l2_entry_bits(&self) -> u32 {
        if self.extended_l2() { 4 } else { 3 }
    }

    /// How many bytes of the guest an L2 table maps, as a power of two.
    pub fn l2_table_bits(&self) -> u32 {
        self.cluster_bits + (self.cluster_bits - self.l2_entry_bits())
    }

    /// How many L1 entries a virtual size takes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l2_table_bits())
    }

    /// The format of the backing file, as the image says it.
    pub fn backing_format(&self) -> Option<&str> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::BackingFormat(format) => Some(format.as_str()),
            _ => None,
        })
    }

    /// The name of the external data file, as the image says it.
    pub fn data_file(&self) -> Option<&str> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::DataFile(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

fn backing_name(bytes: &[u8], offset: u64, size: u32, cluster_size: usize) -> Result<String> {
    let too_far = || LayoutError::field("backing_file_offset", offset, "is beyond the first cluster");
    let start = usize::try_from(offset).ok().filter(|start| *start <= cluster_size).ok_or_else(too_far)?;
    let size = size as usize;
    if size > MAX_BACKING_FILE || size > cluster_size - start {
        return Err(LayoutError::field("backing_file_size", size, "is too long for a name"));
    }
    let name = bytes.get(start..start + size).ok_or(LayoutError::Short("name of the backing file"))?;
    text("backing file name", name)
}

/// The beginning of a file, `length` bytes or as many as it has.
pub(crate) fn read_up_to(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let (mut buffer, mut n) = (vec![0; length], 0);
    while n < buffer.len() {
        match file.read_at(&mut buffer[n..], n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(n);
    Ok(buffer)
}

fn invalid(error: LayoutError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

const _: () = assert!(MAX_CLUSTER_SIZE >= V3_LENGTH);
