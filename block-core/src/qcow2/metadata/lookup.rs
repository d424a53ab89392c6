//! What clusters are, and reading those that the queues cannot.

use super::{Metadata, corrupt};
use crate::file::transfer::Transfer;
use crate::qcow2::chain::{Content, Layer};
use crate::qcow2::disk::Shared;
use crate::qcow2::image::Run;
use crate::qcow2::mapping::{Kind, Mapping, Table};
use crate::segments;
use std::io;

/// Runs that are looked up beside the one that was asked for.
const MORE_RUNS: usize = 64;

impl Metadata {
    /// What clusters are from `first` on, at most `max` of them, and how many go on the same way.
    pub(super) fn resolve(&self, shared: &Shared, first: u64, max: u64) -> io::Result<(Mapping, u64)> {
        let bits = shared.cluster_bits;
        let offset = first << bits;
        let mut len = max << bits;
        for (depth, layer) in self.layers.iter().enumerate() {
            let image = match &layer.content {
                Content::Raw(size) if offset >= *size => break,
                Content::Raw(size) => {
                    // Behind its end the file reads as zeroes.
                    let count = len.min(size - offset).div_ceil(1 << bits);
                    let mapping = Mapping::read_only(depth, offset);
                    return Ok((mapping.ok_or_else(|| corrupt("too large a file"))?, count));
                }
                Content::Qcow2(image) => image,
            };
            let size = if depth == 0 { image.whole_size() } else { image.header.size };
            if offset >= size {
                break;
            }
            let (run, found) = image.look_up(offset, len.min(size - offset))?;
            if found < 1 << bits {
                // Smaller clusters than the overlay's, or the image ends in the middle of one.
                return Ok((Mapping::APART, 1));
            }
            // Whole clusters: of the one in which it ends, another layer may have the beginning.
            let count = len.min(found) >> bits;
            len = count << bits;
            let mapping = match run {
                Run::Unallocated => continue,
                Run::Zero => Some(Mapping::ZERO),
                Run::Compressed => Some(Mapping::APART),
                Run::Data { offset, ours } if depth == 0 && ours && !shared.info.read_only => image
                    .writable(offset, count << bits, self.data_end)
                    .ok()
                    .or(Mapping::read_only(0, offset)),
                Run::Data { offset, .. } => Mapping::read_only(depth, offset),
            };
            return Ok((mapping.ok_or_else(|| corrupt("data at an offset that cannot be"))?, count));
        }
        Ok((Mapping::ZERO, len >> bits))
    }

    /// What a cluster is; notes it in the table, and with it some of what follows.
    pub(super) fn look_up(&self, shared: &Shared, cluster: u64) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        let end = (cluster + Table::rest_of_page(cluster)).min(shared.info.capacity.div_ceil(1 << bits));
        let (mapping, count) = self.resolve(shared, cluster, end.saturating_sub(cluster).max(1))?;
        shared.table.set_run(cluster, count, mapping, bits);
        let mut next = cluster + count;
        for _ in 0..MORE_RUNS {
            if next >= end {
                break;
            }
            // Whoever asks for it learns what is wrong with it.
            let Ok((mapping, count)) = self.resolve(shared, next, end - next) else { break };
            shared.table.set_run(next, count, mapping, bits);
            next += count;
        }
        Ok(mapping)
    }

    /// Reads what is compressed or in pieces; says where the next cluster is that is not.
    pub(super) unsafe fn read(&mut self, shared: &Shared, transfer: &mut Transfer) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        while transfer.left > 0 {
            if let Err(error) = self.trim(shared) {
                tracing::warn!(%error, "cannot keep the metadata within its limit");
            }
            let cluster = transfer.offset >> bits;
            let mapping = self.look_up(shared, cluster)?;
            if mapping.kind() != Kind::Apart {
                return Ok(mapping);
            }
            self.read_cluster(cluster << bits)?;
            let skip = (transfer.offset - (cluster << bits)) as usize;
            let n = (self.cluster.len() - skip).min(transfer.left as usize);
            // SAFETY: the cluster's bytes are ours; the caller vouches for the segments.
            unsafe { segments::scatter(self.cluster[skip..].as_ptr(), transfer.segments(), 0, n) };
            transfer.advance(n as u64);
        }
        Ok(Mapping::ZERO)
    }

    /// Reads a cluster of the guest's, wherever it is, into `self.cluster`.
    pub(super) fn read_cluster(&mut self, offset: u64) -> io::Result<()> {
        let mut cluster = std::mem::take(&mut self.cluster);
        let result = read_layers(&self.layers, offset, &mut cluster);
        self.cluster = cluster;
        result
    }
}

/// Reads what the guest sees through these layers.
fn read_layers(layers: &[Layer], offset: u64, into: &mut [u8]) -> io::Result<()> {
    let Some((layer, below)) = layers.split_first() else {
        into.fill(0);
        return Ok(());
    };
    let image = match &layer.content {
        Content::Raw(_) => return layer.data.read_at(offset, into),
        Content::Qcow2(image) => image,
    };
    let mut done = 0;
    while done < into.len() {
        let at = offset + done as u64;
        let rest = &mut into[done..];
        let Some(there) = image.header.size.checked_sub(at).filter(|n| *n > 0) else {
            rest.fill(0);
            return Ok(());
        };
        let (run, len) = image.look_up(at, there.min(rest.len() as u64))?;
        let piece = &mut rest[..len.min(there) as usize];
        match run {
            Run::Data { offset, .. } => layer.data.read_at(offset, piece)?,
            Run::Zero => piece.fill(0),
            Run::Unallocated => read_layers(below, at, piece)?,
            Run::Compressed => image.read_compressed(at, piece)?,
        }
        done += piece.len();
    }
    Ok(())
}
