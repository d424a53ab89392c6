//! Compressed clusters.

use super::image::corrupt;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress as inflate, inflate_flags};
use ruzstd::decoding::StreamingDecoder;
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
        match self {
            Self::Zlib => {
                let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (status, _, n) = inflate(&mut DecompressorOxide::new(), data, cluster, 0, flags);
                match status {
                    TINFLStatus::Done | TINFLStatus::HasMoreOutput if n == cluster.len() => Ok(()),
                    status => {
                        Err(corrupt(format!("a compressed cluster is damaged ({status:?}, {n} bytes)")))
                    }
                }
            }
            Self::Zstd => {
                let damaged = |reason: &dyn std::fmt::Display| {
                    corrupt(format!("a compressed cluster is damaged ({reason})"))
                };
                let mut decoder = StreamingDecoder::new(data).map_err(|error| damaged(&error))?;
                decoder.read_exact(cluster).map_err(|error| damaged(&error))
            }
        }
    }
}
