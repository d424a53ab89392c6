//! L2 entries as they are in the file, for what imago does not know: subclusters, and where compressed data is.

use super::image::{Run, corrupt};
use super::layout::l2::{L2Entry, L2Format, Raw, Subcluster};
use super::layout::{Header, L1Entry};
use super::pages::Pages;
use std::io;

/// Entries that are looked at in one step.
const MAX_ENTRIES: u64 = 64;

/// Subclusters of a cluster, as a power of two.
const SUBCLUSTERS: u32 = 5;

/// Where an image's L2 entries are, and what they look like.
pub(super) struct Entries {
    format: L2Format,
    cluster_bits: u32,
    entry_bits: u32,
    l2_table_bits: u32,
    l1_table_offset: u64,
}

impl Entries {
    pub fn of(header: &Header) -> Self {
        Self {
            format: L2Format::of(header),
            cluster_bits: header.cluster_bits,
            entry_bits: header.l2_entry_bits(),
            l2_table_bits: header.l2_table_bits(),
            l1_table_offset: header.l1_table_offset,
        }
    }

    /// The entry of the cluster that `offset` is in and some that follow it in its table, `count` of them at most; nothing
    /// without a table.
    pub fn read(&self, pages: &Pages, offset: u64, count: u64) -> io::Result<Vec<L2Entry>> {
        let mut l1_entry = [0; 8];
        pages.look(self.l1_table_offset + (offset >> self.l2_table_bits) * 8, &mut l1_entry)?;
        let Some(table) = L1Entry(u64::from_be_bytes(l1_entry)).l2_table_offset() else {
            return Ok(Vec::new());
        };
        if table & ((1 << self.cluster_bits) - 1) != 0 {
            return Err(corrupt(format!("an L2 table at {table:#x}")));
        }
        let first = (offset & ((1 << self.l2_table_bits) - 1)) >> self.cluster_bits;
        let there = (1 << (self.cluster_bits - self.entry_bits)) - first;
        let mut bytes = vec![0; (count.min(there) << self.entry_bits) as usize];
        pages.look(table + (first << self.entry_bits), &mut bytes)?;
        self.format.entries(&bytes).map(|raw| self.decode(raw)).collect()
    }

    fn decode(&self, raw: Raw) -> io::Result<L2Entry> {
        let entry = self.format.decode(raw);
        match entry {
            L2Entry::Data(cluster) | L2Entry::Subclusters { cluster: Some(cluster), .. }
                if cluster.offset & ((1 << self.cluster_bits) - 1) != 0 =>
            {
                Err(corrupt(format!("data at {:#x}", cluster.offset)))
            }
            _ => Ok(entry),
        }
    }

    /// What `len` bytes from `offset` on are, as far as they go on the same way. Data is nobody's to write in place.
    pub fn look_up(&self, pages: &Pages, offset: u64, len: u64) -> io::Result<(Run, u64)> {
        let in_cluster = offset & ((1 << self.cluster_bits) - 1);
        let clusters = (in_cluster + len).div_ceil(1 << self.cluster_bits);
        let entries = self.read(pages, offset, clusters.min(MAX_ENTRIES))?;
        if entries.is_empty() {
            let table = 1 << self.l2_table_bits;
            return Ok((Run::Unallocated, len.min(table - (offset & (table - 1)))));
        }
        let bits = self.cluster_bits - SUBCLUSTERS;
        let first = in_cluster >> bits;
        let skip = in_cluster & ((1 << bits) - 1);
        let mut runs = (first..(entries.len() as u64) << SUBCLUSTERS).map(|subcluster| {
            let n = subcluster & ((1 << SUBCLUSTERS) - 1);
            subcluster_run(entries[(subcluster >> SUBCLUSTERS) as usize], n, bits)
        });
        let run = runs.next().unwrap_or(Ok(Run::Unallocated))?;
        let following = |n: u64| match run {
            Run::Data { offset, ours } => Run::Data { offset: offset + (n << bits), ours },
            run => run,
        };
        let more = (1..).zip(runs).take_while(|(n, next)| matches!(next, Ok(next) if *next == following(*n)));
        let there = ((1 + more.count() as u64) << bits) - skip;
        let run = match run {
            Run::Data { offset, ours } => Run::Data { offset: offset + skip, ours },
            run => run,
        };
        Ok((run, len.min(there)))
    }
}

/// What part `n` of a cluster is; `bits` is its size as a power of two.
fn subcluster_run(entry: L2Entry, n: u64, bits: u32) -> io::Result<Run> {
    match entry.subcluster(n as u32) {
        Some(Subcluster::Unallocated(_)) => Ok(Run::Unallocated),
        Some(Subcluster::Zero(_)) => Ok(Run::Zero),
        Some(Subcluster::Compressed) => Ok(Run::Compressed),
        Some(Subcluster::Data(cluster)) => {
            Ok(Run::Data { offset: cluster.offset + (n << bits), ours: false })
        }
        None => Err(corrupt("a subcluster that is nowhere, or data and zeroes at once")),
    }
}
