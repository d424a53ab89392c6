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
