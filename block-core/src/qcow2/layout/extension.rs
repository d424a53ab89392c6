//! Header extensions: what follows the header in the first cluster.

use super::bitmap::MAX_BITMAPS;
use super::feature::FeatureName;
use super::{LayoutError, Result, bitmap, check_table, text};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// A header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The format of the backing file.
    BackingFormat(String),
    /// The names of features.
    FeatureNames(Vec<FeatureName>),
    /// Where the bitmaps are.
    Bitmaps(Bitmaps),
    /// Where the LUKS header is.
    Encryption(Encryption),
    /// The name of the external data file.
    DataFile(String),
    /// One that the specification does not have: kept as it is.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmaps {
    /// How many there are.
    pub nb_bitmaps: u32,
    /// Bytes of their directory.
    pub directory_size: u64,
    /// Where it is.
    pub directory_offset: u64,
}

/// The full disk encryption header pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// Where the LUKS header is.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    kind: U32,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BitmapsData {
    nb_bitmaps: U32,
    reserved: U32,
    directory_size: U64,
    directory_offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EncryptionData {
    offset: U64,
    length: U64,
}

/// Parses the extensions between two offsets of the first cluster. They end with one that says so, or with their area;
/// what the file does not have of the cluster is zero, which says so too.
pub(super) fn parse_all(bytes: &[u8], start: usize, end: usize, cluster_bits: u32) -> Result<Vec<Extension>> {
    let mut extensions = Vec::new();
    let mut at = start;
    while at + size_of::<Head>() <= end {
        let rest = bytes.get(at..).unwrap_or_default();
        let Ok((head, rest)) = Head::read_from_prefix(rest) else { break };
        if head.kind.get() == END {
            break;
        }
        at += size_of::<Head>();
        let length = head.length.get() as usize;
        if length > end.saturating_sub(at) {
            let rule = "is more than there is room for";
            return Err(LayoutError::field("length of a header extension", length, rule));
        }
        let data = rest.get(..length).ok_or(LayoutError::Short("header extension"))?;
        let extension = Extension::parse(head.kind.get(), data, cluster_bits)?;
        let same = |other: &Extension| other.kind() == extension.kind();
        if extensions.iter().any(same) && !matches!(extension, Extension::Unknown { .. }) {
            let kind = format_args!("{:#x}", extension.kind());
            return Err(LayoutError::field("header extension", kind, "is there twice"));
        }
        extensions.push(extension);
        at += length.next_multiple_of(8);
    }
    Ok(extensions)
}

/// Appends extensions, and the one that ends them.
pub(super) fn encode_all(extensions: &[Extension], bytes: &mut Vec<u8>) {
    for extension in extensions {
        let data = extension.data();
        let head = Head { kind: U32::new(extension.kind()), length: U32::new(data.len() as u32) };
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend_from_slice(Head { kind: U32::new(END), length: U32::new(0) }.as_bytes());
}

impl Extension {
    fn parse(kind: u32, data: &[u8], cluster_bits: u32) -> Result<Self> {
        Ok(match kind {
            BACKING_FORMAT => Self::BackingFormat(text("backing file format", data)?),
            FEATURE_NAMES => Self::FeatureNames(FeatureName::parse_all(data)?),
            DATA_FILE => Self::DataFile(text("external data file name", data)?),
            BITMAPS => {
                let fields = BitmapsData::read_from_bytes(data)
                    .map_err(|_| LayoutError::Short("bitmaps extension"))?;
                let bitmaps = Bitmaps {
                    nb_bitmaps: fields.nb_bitmaps.get(),
                    directory_size: fields.directory_size.get(),
                    directory_offset: fields.directory_offset.get(),
                };
                if bitmaps.nb_bitmaps == 0 || bitmaps.nb_bitmaps > MAX_BITMAPS {
                    return Err(LayoutError::field(
                        "nb_bitmaps",
                        bitmaps.nb_bitmaps,
                        "is not between 1 and 65535",
                    ));
                }
                if bitmaps.directory_size > bitmap::MAX_DIRECTORY_SIZE {
                    let size = bitmaps.directory_size;
                    return Err(LayoutError::field("bitmap_directory_size", size, "is more than 64 MiB"));
                }
                check_table(
                    "bitmap_directory_offset",
                    bitmaps.directory_offset,
                    bitmaps.directory_size,
                    cluster_bits,
                )?;
                Self::Bitmaps(bitmaps)
            }
            ENCRYPTION => {
                let fields = EncryptionData::read_from_bytes(data)
                    .map_err(|_| LayoutError::Short("full disk encryption header pointer"))?;
                let encryption = Encryption { offset: fields.offset.get(), length: fields.length.get() };
                let field = "offset of the encryption header";
                check_table(field, encryption.offset, encryption.length, cluster_bits)?;
                Self::Encryption(encryption)
            }
            kind => Self::Unknown { kind, data: data.to_vec() },
        })
    }

    fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::Encryption(_) => ENCRYPTION,
            Self::DataFile(_) => DATA_FILE,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::BackingFormat(text) | Self::DataFile(text) => text.as_bytes().to_vec(),
            Self::FeatureNames(names) => FeatureName::encode_all(names),
            Self::Bitmaps(bitmaps) => BitmapsData {
                nb_bitmaps: U32::new(bitmaps.nb_bitmaps),
                reserved: U32::new(0),
                directory_size: U64::new(bitmaps.directory_size),
                directory_offset: U64::new(bitmaps.directory_offset),
            }
            .as_bytes()
            .to_vec(),
            Self::Encryption(encryption) => {
                EncryptionData { offset: U64::new(encryption.offset), length: U64::new(encryption.length) }
                    .as_bytes()
                    .to_vec()
            }
            Self::Unknown { data, .. } => data.clone(),
        }
    }
}
