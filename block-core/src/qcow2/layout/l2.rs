//! An L2 table entry: what a cluster of the guest is.

use super::{COPIED, Header, OFFSET_MASK, Version};

/// Bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;

/// Bit 0: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// Compressed data is counted in these.
const SECTOR: u64 = 512;

/// A cluster of the image file (or of the external data file) that an entry points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCluster {
    /// Where it begins. May be no multiple of the cluster size in a corrupt image.
    pub offset: u64,
    /// Whether the entry says that its refcount is exactly one.
    pub copied: bool,
}

/// What a cluster of the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// The backing file has it; without one, it reads as zeroes.
    Unallocated,
    /// It reads as zeroes; a cluster may be set aside for it.
    Zero(Option<HostCluster>),
    /// Its data is in a cluster.
    Data(HostCluster),
    /// Its data is in a cluster, in part: extended L2 entries only.
    Subclusters {
        /// The cluster, unless every subcluster is zero or unallocated.
        cluster: Option<HostCluster>,
        /// Bit x: subcluster x is in the cluster.
        allocated: u32,
        /// Bit x: subcluster x reads as zeroes.
        zero: u32,
    },
    /// Its data is compressed.
    Compressed {
        /// Where the data begins, at any byte.
        offset: u64,
        /// How long it is at most: to the end of a 512-byte sector.
        length: u64,
    },
}

/// What one of the 32 parts of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subcluster {
    /// The backing file has it; a place may be set aside for it.
    Unallocated(Option<HostCluster>),
    /// It reads as zeroes; a place may be set aside for it.
    Zero(Option<HostCluster>),
    /// It is in its part of a cluster.
    Data(HostCluster),
    /// The whole cluster is compressed.
    Compressed,
}

impl L2Entry {
    /// Data in a cluster of its own.
    pub fn data(offset: u64) -> Self {
        Self::Data(HostCluster { offset, copied: true })
    }

    /// What part `n` of the cluster is, of 32. `None` if the entry contradicts itself.
    pub fn subcluster(self, n: u32) -> Option<Subcluster> {
        match self {
            Self::Unallocated => Some(Subcluster::Unallocated(None)),
            Self::Zero(cluster) => Some(Subcluster::Zero(cluster)),
            Self::Data(cluster) => Some(Subcluster::Data(cluster)),
            Self::Compressed { .. } => Some(Subcluster::Compressed),
            Self::Subclusters { cluster, allocated, zero } => {
                match (allocated >> n & 1 != 0, zero >> n & 1 != 0) {
                    (false, false) => Some(Subcluster::Unallocated(cluster)),
                    (false, true) => Some(Subcluster::Zero(cluster)),
                    (true, false) => cluster.map(Subcluster::Data),
                    (true, true) => None,
                }
            }
        }
    }
}

/// An L2 entry's bits, and those of its subclusters (0 unless entries are extended).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The entry.
    pub entry: u64,
    /// The subcluster allocation bitmap.
    pub bitmap: u64,
}

/// What an image's header says about its L2 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Format {
    cluster_bits: u32,
    extended: bool,
    zero_flag: bool,
    external_data_file: bool,
}

impl L2Format {
    /// The format of an image's L2 entries.
    pub fn of(header: &Header) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            extended: header.extended_l2(),
            zero_flag: header.version >= Version::V3 && !header.extended_l2(),
            external_data_file: header.external_data_file(),
        }
    }

    /// The entries of a table's bytes; a last piece of an entry is left out.
    pub fn entries(self, table: &[u8]) -> impl Iterator<Item = Raw> + '_ {
        let words = if self.extended { 2 } else { 1 };
        table.as_chunks::<8>().0.chunks_exact(words).map(|raw| Raw {
            entry: u64::from_be_bytes(raw[0]),
            bitmap: raw.get(1).map_or(0, |raw| u64::from_be_bytes(*raw)),
        })
    }

    /// What an entry says.
    pub fn decode(self, raw: Raw) -> L2Entry {
        let Raw { entry, bitmap } = raw;
        if entry & COMPRESSED != 0 {
            return self.decode_compressed(entry);
        }
        let copied = entry & COPIED != 0;
        let offset = entry & OFFSET_MASK;
        // An external data file may have a guest's cluster at its first byte: COPIED tells that from none.
        let there = offset != 0 || (self.external_data_file && copied);
        let cluster = there.then_some(HostCluster { offset, copied });
        if self.extended {
            let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
            return match cluster {
                Some(cluster) if allocated == u32::MAX && zero == 0 => L2Entry::Data(cluster),
                cluster if allocated == 0 && zero == u32::MAX => L2Entry::Zero(cluster),
                None if allocated == 0 && zero == 0 => L2Entry::Unallocated,
                cluster => L2Entry::Subclusters { cluster, allocated, zero },
            };
        }
        match cluster {
            cluster if self.zero_flag && entry & ZERO != 0 => L2Entry::Zero(cluster),
            Some(cluster) => L2Entry::Data(cluster),
            None => L2Entry::Unallocated,
        }
    }

    fn decode_compressed(self, entry: u64) -> L2Entry {
        let sectors_bit = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << sectors_bit) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> sectors_bit;
        let length = (sectors + 1) * SECTOR - offset % SECTOR;
        L2Entry::Compressed { offset, length }
    }

    /// The bits of an entry of a cluster with data. `None` if it has none, where it is does not fit, or entries are extended.
    pub fn encode(self, entry: L2Entry) -> Option<u64> {
        match entry {
            _ if self.extended => None,
            L2Entry::Data(HostCluster { offset, copied }) if offset & !OFFSET_MASK == 0 => {
                Some(offset | if copied { COPIED } else { 0 })
            }
            L2Entry::Compressed { offset, length } => {
                let sectors_bit = 62 - (self.cluster_bits - 8);
                let last = offset.checked_add(length)?.checked_sub(1)?;
                let sectors = (last / SECTOR).checked_sub(offset / SECTOR)?;
                let fits = offset >> sectors_bit == 0 && sectors >> (self.cluster_bits - 8) == 0;
                fits.then_some(COMPRESSED | sectors << sectors_bit | offset)
            }
            _ => None,
        }
    }

    /// Whether bits are set that should not be.
    pub fn reserved(self, raw: Raw) -> bool {
        if raw.entry & COMPRESSED != 0 {
            let offset = match self.decode(raw) {
                L2Entry::Compressed { offset, .. } => offset,
                _ => 0,
            };
            return raw.entry & COPIED != 0 || offset > (OFFSET_MASK | (SECTOR - 1));
        }
        let zero = if self.zero_flag { ZERO } else { 0 };
        let both = raw.bitmap as u32 & (raw.bitmap >> 32) as u32 != 0;
        raw.entry & !(COPIED | OFFSET_MASK | zero) != 0 || both
    }
}

impl Raw {
    /// The entry with COPIED set or cleared.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        Self { entry: (self.entry & !COPIED) | if copied { COPIED } else { 0 }, ..self }
    }
}
