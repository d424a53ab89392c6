//! Refcounts made anew, from what is referred to, behind the end of the file.
//!
//! The new table and blocks are written first and the header switches to them, so at any moment the image has one
//! whole set of refcounts. What the old ones took is free afterwards.

use super::counts::Counts;
use super::image::{Image, invalid};
use super::references::{Visitor, Walk, Wrong};
use crate::qcow2::layout::{MAX_REFCOUNT_TABLE_SIZE, refcount};
use std::collections::BTreeSet;
use std::fmt;
use std::io;

/// Counts, and knows whether it saw everything.
struct Counting {
    counts: Counts,
    cluster_bits: u32,
    lost: Option<String>,
}

impl Visitor for Counting {
    fn reference(&mut self, offset: u64, length: u64, times: u32) {
        let first = offset >> self.cluster_bits;
        let end = (offset + length).div_ceil(1 << self.cluster_bits);
        self.counts.add(first, end - first, times);
    }

    fn wrong(&mut self, what: Wrong, finding: fmt::Arguments<'_>) {
        if what == Wrong::Table {
            self.lost.get_or_insert_with(|| finding.to_string());
        }
    }
}

/// Makes new refcounts.
///
/// # Errors
///
/// A table that refers to others cannot be followed, so that what is free is not known; a refcount does not fit into
/// its width; or the host failed.
pub(super) fn rebuild(image: &mut Image) -> io::Result<()> {
    let header = image.header().clone();
    let cluster_size = header.cluster_size();
    let entries = refcount::block_entries(header.cluster_bits, header.refcount_order);
    let start = image.file_clusters();

    // Which blocks are needed; then with those that count the new blocks themselves.
    let mut needed = BTreeSet::new();
    passes(image, |counts| {
        for chunk in counts.chunks() {
            let range = counts.range();
            let clusters = chunk.max(range.start)..chunk.saturating_add(super::counts::CHUNK).min(range.end);
            let used = clusters.filter(|cluster| counts.get(*cluster) > 0);
            needed.extend(used.map(|cluster| cluster / entries));
        }
        Ok(())
    })?;
    let (table_clusters, end) = loop {
        let reach = start + needed.len() as u64;
        let table_entries = (reach / entries + 2).next_multiple_of(cluster_size / 8);
        let table_clusters = table_entries * 8 / cluster_size;
        let end = start + table_clusters + needed.len() as u64;
        let before = needed.len();
        needed.extend(start / entries..=(end - 1) / entries);
        if needed.len() == before {
            break (table_clusters, end);
        }
    };
    if table_clusters * cluster_size > MAX_REFCOUNT_TABLE_SIZE {
        return Err(invalid("the image file is too long for a refcount table of 8 MiB"));
    }

    let mut table = vec![0u64; (table_clusters * cluster_size / 8) as usize];
    for (block, place) in needed.iter().zip(start + table_clusters..) {
        table[*block as usize] = place << header.cluster_bits;
    }
    write_blocks(image, &table, start..end, entries, header.refcount_order)?;
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    image.write(start << header.cluster_bits, &bytes)?;
    image.sync()?;
    image.update_header(|header| {
        header.refcount_table_offset = start << header.cluster_bits;
        header.refcount_table_clusters = table_clusters as u32;
    })?;
    image.sync()
}

/// Writes the blocks, which are to have ones for the clusters of `own` beside what is counted.
fn write_blocks(
    image: &Image,
    table: &[u64],
    own: std::ops::Range<u64>,
    entries: u64,
    order: u32,
) -> io::Result<()> {
    passes(image, |counts| {
        let range = counts.range();
        let blocks = range.start / entries..(range.end.div_ceil(entries)).min(table.len() as u64);
        for index in blocks {
            let offset = table[index as usize];
            if offset == 0 {
                continue;
            }
            let mut block = Vec::new();
            image.read_cluster(offset, &mut block)?;
            let first = index * entries;
            if range.start <= first {
                // Whatever the file has there beyond its end is not ours.
                block.fill(0);
            }
            for cluster in first.max(range.start)..(first + entries).min(range.end) {
                let count = u64::from(counts.get(cluster)) + u64::from(own.contains(&cluster));
                if !refcount::set(&mut block, (cluster - first) as usize, order, count) {
                    return Err(invalid(format!(
                        "refcounts of {} bit are too narrow for this image",
                        1 << order
                    )));
                }
            }
            image.write(offset, &block)?;
        }
        Ok(())
    })
}

/// Counts all references, but for those of the old refcounts, pass by pass.
fn passes(image: &Image, mut each: impl FnMut(&Counts) -> io::Result<()>) -> io::Result<()> {
    let mut next = Some(Counts::new());
    while let Some(counts) = next {
        let mut counting = Counting { counts, cluster_bits: image.header().cluster_bits, lost: None };
        Walk::new(image).all(&mut counting)?;
        if let Some(lost) = counting.lost {
            return Err(invalid(format!("refcounts cannot be rebuilt: {lost}")));
        }
        each(&counting.counts)?;
        next = counting.counts.next();
    }
    Ok(())
}
