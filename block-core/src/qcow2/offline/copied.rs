//! COPIED flags of the active L1 table and its L2 tables, made what the refcounts say.

use super::image::Image;
use super::refcounts::Refcounts;
use crate::qcow2::layout::L1Entry;
use crate::qcow2::layout::l2::{HostCluster, L2Entry, L2Format};
use std::io;

/// Sets and clears the flags. Entries that point where nothing can be are left as they are.
pub(super) fn update(image: &Image, refcounts: &mut Refcounts) -> io::Result<()> {
    let header = image.header();
    let mut bytes = Vec::new();
    for (index, entry) in (0u64..).zip(image.read_active_l1()?) {
        let Some(table) = entry.l2_table_offset() else { continue };
        if !table.is_multiple_of(header.cluster_size()) || table >= image.file_len() {
            continue;
        }
        image.read_cluster(table, &mut bytes)?;
        if update_l2(image, refcounts, &mut bytes)? {
            image.write(table, &bytes)?;
        }
        let copied = refcounts.get(image, table >> header.cluster_bits)? == 1;
        if copied != entry.copied() {
            let entry = L1Entry::new(table, copied);
            image.write(header.l1_table_offset + index * 8, &entry.0.to_be_bytes())?;
        }
    }
    Ok(())
}

/// Clears the flags of all L2 tables under an L1 table that has been followed.
pub(super) fn clear(image: &Image, l1: &[L1Entry]) -> io::Result<()> {
    let (format, entry_bits) = (L2Format::of(image.header()), image.header().l2_entry_bits());
    let mut bytes = Vec::new();
    for table in l1.iter().filter_map(|entry| entry.l2_table_offset()) {
        image.read_cluster(table, &mut bytes)?;
        let copied = |entry: L2Entry| entry.cluster().is_some_and(|cluster| cluster.copied);
        let entries = format.entries(&bytes).enumerate();
        let set: Vec<_> = entries.filter(|(_, raw)| copied(format.decode(*raw))).collect();
        for (index, raw) in &set {
            let at = index << entry_bits;
            bytes[at..at + 8].copy_from_slice(&raw.with_copied(false).entry.to_be_bytes());
        }
        if !set.is_empty() {
            image.write(table, &bytes)?;
        }
    }
    Ok(())
}

/// Whether something of an L2 table had to be changed.
fn update_l2(image: &Image, refcounts: &mut Refcounts, bytes: &mut [u8]) -> io::Result<bool> {
    let header = image.header();
    let format = L2Format::of(header);
    let mut changes = Vec::new();
    for (index, raw) in format.entries(bytes).enumerate() {
        let Some(cluster) = format.decode(raw).cluster() else { continue };
        let copied = match header.external_data_file() {
            true => true,
            false => refcounts.get(image, cluster.offset >> header.cluster_bits)? == 1,
        };
        if copied != cluster.copied {
            changes.push((index, raw.with_copied(copied)));
        }
    }
    for (index, raw) in &changes {
        let at = index << header.l2_entry_bits();
        bytes[at..at + 8].copy_from_slice(&raw.entry.to_be_bytes());
    }
    Ok(!changes.is_empty())
}

impl L2Entry {
    /// The cluster that an entry has for itself: any but a compressed one.
    pub(super) fn cluster(self) -> Option<HostCluster> {
        match self {
            Self::Data(cluster) => Some(cluster),
            Self::Zero(cluster) | Self::Subclusters { cluster, .. } => cluster,
            Self::Unallocated | Self::Compressed { .. } => None,
        }
    }
}
