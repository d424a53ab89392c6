//! Compressed clusters.

use super::image::corrupt;
use flate2::{Decompress, FlushDecompress};
use ruzstd::decoding::StreamingDecoder;
use std::fmt::Display;
use std::io::{self, Read};

/// How an image compresses, as its header's `compression_type` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// 0: deflate, without a zlib header.
    Zlib,
    /// 1.
    Zstd,
}

impl Compression {
    /// What `compression_type` says; `None` for what nobody here knows.
    pub fn of(compression_type: u8) -> Option<Self> {
        match compression_type {
            0 => Some(Self::Zlib),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Decompresses a cluster. `data` may be longer than what it was compressed to; what it would give beyond `cluster` is
    /// not looked at.
    ///
    /// # Errors
    ///
    /// It is damaged, or gives less than a cluster.
    pub fn decompress(self, data: &[u8], cluster: &mut [u8]) -> io::Result<()> {
        let damaged = |reason: &dyn Display| corrupt(format!("a compressed cluster is damaged ({reason})"));
        match self {
            Self::Zlib => {
                let mut decompress = Decompress::new(false);
                let status = decompress.decompress(data, cluster, FlushDecompress::Finish);
                let status = status.map_err(|error| damaged(&error))?;
                if decompress.total_out() == cluster.len() as u64 {
                    Ok(())
                } else {
                    Err(damaged(&format_args!("{status:?} after {} bytes", decompress.total_out())))
                }
            }
            Self::Zstd => {
                let mut decoder = StreamingDecoder::new(data).map_err(|error| damaged(&error))?;
                decoder.read_exact(cluster).map_err(|error| damaged(&error))
            }
        }
    }
}

/// Fills a buffer from `offset` of the guest's on, a part of one compressed cluster or several. `read` gives the whole
/// cluster that an offset is in.
///
/// # Errors
///
/// As `read`.
pub(crate) fn read_clusters(
    cluster_size: u64,
    mut offset: u64,
    mut into: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut cluster = vec![0; cluster_size as usize];
    while !into.is_empty() {
        read(offset, &mut cluster)?;
        let from = &cluster[offset as usize & (cluster.len() - 1)..];
        let (piece, rest) = into.split_at_mut(from.len().min(into.len()));
        piece.copy_from_slice(&from[..piece.len()]);
        offset += piece.len() as u64;
        into = rest;
    }
    Ok(())
}
