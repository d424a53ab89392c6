//! An image's refcounts: looked up, changed, and clusters allocated by them.

use super::image::{Image, invalid};
use crate::qcow2::layout::MAX_REFCOUNT_TABLE_SIZE;
use crate::qcow2::layout::refcount::{self, TableEntry};
use std::collections::HashMap;
use std::io;

/// Bytes of refcount blocks that are kept.
const CACHE: u64 = 8 << 20;

/// A refcount would have to be larger than its width allows.
#[derive(Debug, thiserror::Error)]
#[error("refcounts of {0} bit cannot count that many references")]
pub(super) struct Overflow(u32);

/// A refcount is 0 where it should not be.
#[derive(Debug, thiserror::Error)]
#[error(
    "the refcount of cluster {0} is too low already: repair the image first, with `ringpair img check -r all`"
)]
struct Underflow(u64);

struct Block {
    bytes: Vec<u8>,
    changed: bool,
}

/// Refcounts, with a cache of their blocks that is written back by [`Refcounts::flush`] or when it is full.
pub(super) struct Refcounts {
    table: Vec<TableEntry>,
    blocks: HashMap<u64, Block>,
    order: u32,
    block_entries: u64,
    cluster_bits: u32,
    /// No cluster before this one is free.
    first_free: u64,
}

impl Refcounts {
    /// Reads the table: so much of it as the file has.
    pub fn load(image: &Image) -> io::Result<Self> {
        let header = image.header();
        let length = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let length = length.min(image.file_len().saturating_sub(header.refcount_table_offset));
        let mut bytes = vec![0; length as usize];
        image.read(header.refcount_table_offset, &mut bytes)?;
        Ok(Self {
            table: bytes.as_chunks::<8>().0.iter().map(|raw| TableEntry(u64::from_be_bytes(*raw))).collect(),
            blocks: HashMap::new(),
            order: header.refcount_order,
            block_entries: refcount::block_entries(header.cluster_bits, header.refcount_order),
            cluster_bits: header.cluster_bits,
            first_free: 0,
        })
    }

    /// The table.
    pub fn table(&self) -> &[TableEntry] {
        &self.table
    }

    /// How many refcounts a block has.
    pub fn block_entries(&self) -> u64 {
        self.block_entries
    }

    /// Where a block is, if it is where a block can be.
    pub fn block_offset(&self, image: &Image, index: u64) -> Option<u64> {
        let offset = self.table.get(usize::try_from(index).ok()?)?.block_offset()?;
        (offset.is_multiple_of(1 << self.cluster_bits) && offset < image.file_len()).then_some(offset)
    }

    fn block(&mut self, image: &Image, index: u64) -> io::Result<Option<&mut Block>> {
        let Some(offset) = self.block_offset(image, index) else { return Ok(None) };
        if !self.blocks.contains_key(&index) {
            if (self.blocks.len() as u64 + 1) << self.cluster_bits > CACHE {
                self.flush(image)?;
                self.blocks.clear();
            }
            let mut bytes = Vec::new();
            image.read_cluster(offset, &mut bytes)?;
            self.blocks.insert(index, Block { bytes, changed: false });
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// A cluster's refcount.
    pub fn get(&mut self, image: &Image, cluster: u64) -> io::Result<u64> {
        let (order, entries) = (self.order, self.block_entries);
        let block = self.block(image, cluster / entries)?;
        Ok(block.map_or(0, |block| refcount::get(&block.bytes, (cluster % entries) as usize, order)))
    }

    /// Changes a cluster's refcount by a number; or fails, and changes nothing.
    pub fn change(&mut self, image: &Image, cluster: u64, by: i64) -> io::Result<()> {
        let old = self.get(image, cluster)?;
        let new = old.checked_add_signed(by);
        let Some(new) = new.filter(|_| by > 0 || old > 0) else { return Err(invalid(Underflow(cluster))) };
        if by < 0 {
            self.first_free = self.first_free.min(cluster);
        }
        self.set(image, cluster, new)
    }

    fn set(&mut self, image: &Image, cluster: u64, value: u64) -> io::Result<()> {
        let (order, entries) = (self.order, self.block_entries);
        let Some(block) = self.block(image, cluster / entries)? else {
            return Err(invalid(Underflow(cluster)));
        };
        if !refcount::set(&mut block.bytes, (cluster % entries) as usize, order, value) {
            return Err(invalid(Overflow(1 << order)));
        }
        block.changed = true;
        Ok(())
    }

    /// Allocates clusters that follow each other: their refcounts are one. What they hold is whatever they held.
    pub fn allocate(&mut self, image: &mut Image, bytes: u64) -> io::Result<u64> {
        let wanted = bytes.div_ceil(1 << self.cluster_bits).max(1);
        loop {
            let mut first = self.first_free;
            let mut found = 0;
            while found < wanted {
                match self.get(image, first + found)? {
                    0 => found += 1,
                    _ => (first, found) = (first + found + 1, 0),
                }
            }
            match self.provide_blocks(image, first, wanted)? {
                Provided::AllThere => {}
                // A new block took one of the clusters, or there is a new table: look again.
                Provided::Changed => continue,
            }
            for cluster in first..first + wanted {
                self.set(image, cluster, 1)?;
            }
            if wanted == 1 {
                self.first_free = first + 1;
            }
            return Ok(first << self.cluster_bits);
        }
    }

    /// Makes the refcount blocks of some clusters, each in the first of those clusters that it counts.
    fn provide_blocks(&mut self, image: &mut Image, first: u64, clusters: u64) -> io::Result<Provided> {
        for index in first / self.block_entries..=(first + clusters - 1) / self.block_entries {
            if self.block_offset(image, index).is_some() {
                continue;
            }
            if index >= self.table.len() as u64 {
                self.grow_table(image, clusters)?;
                return Ok(Provided::Changed);
            }
            let cluster = first.max(index * self.block_entries);
            let mut block = vec![0; 1 << self.cluster_bits];
            let entry = (cluster % self.block_entries) as usize;
            if !refcount::set(&mut block, entry, self.order, 1) {
                return Err(invalid(Overflow(1 << self.order)));
            }
            let offset = cluster << self.cluster_bits;
            image.write(offset, &block)?;
            image.sync()?;
            self.table[index as usize] = TableEntry(offset);
            image.write(image.header().refcount_table_offset + index * 8, &offset.to_be_bytes())?;
            return Ok(Provided::Changed);
        }
        Ok(Provided::AllThere)
    }

    /// Moves the table to a place where it is longer: behind what the old one counts, with the blocks that count its own
    /// clusters. All blocks stay where they are.
    fn grow_table(&mut self, image: &mut Image, clusters: u64) -> io::Result<()> {
        let (entries, cluster_size) = (self.block_entries, 1u64 << self.cluster_bits);
        let start = image.file_clusters().max(self.table.len() as u64 * entries);
        let mut blocks = 1;
        let (table_clusters, own) = loop {
            let reach = start + clusters + 2 * blocks + MAX_REFCOUNT_TABLE_SIZE / cluster_size / 8;
            let table_clusters = (reach.div_ceil(entries) * 8).div_ceil(cluster_size);
            let own = start..start + table_clusters + blocks;
            let needed = (own.end - 1) / entries - start / entries + 1;
            if needed <= blocks {
                break (table_clusters, own);
            }
            blocks = needed;
        };
        if table_clusters * cluster_size > MAX_REFCOUNT_TABLE_SIZE {
            return Err(invalid("the image would be too long for a refcount table of 8 MiB"));
        }
        self.table.resize((table_clusters * cluster_size / 8) as usize, TableEntry(0));
        let mut block = vec![0; cluster_size as usize];
        for (index, place) in (start / entries..=(own.end - 1) / entries).zip(start + table_clusters..) {
            block.fill(0);
            for cluster in own.start.max(index * entries)..own.end.min((index + 1) * entries) {
                // A refcount of one fits into any width.
                let _ = refcount::set(&mut block, (cluster % entries) as usize, self.order, 1);
            }
            image.write(place << self.cluster_bits, &block)?;
            self.table[index as usize] = TableEntry(place << self.cluster_bits);
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
        image.write(start << self.cluster_bits, &bytes)?;
        let (old, old_clusters) =
            (image.header().refcount_table_offset, image.header().refcount_table_clusters);
        self.flush(image)?;
        image.update_header(|header| {
            header.refcount_table_offset = start << self.cluster_bits;
            header.refcount_table_clusters = table_clusters as u32;
        })?;
        image.sync()?;
        self.free(image, old, u64::from(old_clusters) << self.cluster_bits)
    }

    /// Frees one reference to each cluster of a range.
    pub fn free(&mut self, image: &Image, offset: u64, bytes: u64) -> io::Result<()> {
        let first = offset >> self.cluster_bits;
        for cluster in first..offset.saturating_add(bytes).div_ceil(1 << self.cluster_bits) {
            self.change(image, cluster, -1)?;
        }
        Ok(())
    }

    /// Writes what has changed, durably.
    pub fn flush(&mut self, image: &Image) -> io::Result<()> {
        self.write(image)?;
        image.sync()
    }

    /// Writes what has changed.
    pub fn write(&mut self, image: &Image) -> io::Result<()> {
        for (index, block) in &mut self.blocks {
            let entry = self.table.get(*index as usize).and_then(|entry| entry.block_offset());
            if let Some(offset) = entry.filter(|_| block.changed) {
                image.write(offset, &block.bytes)?;
                block.changed = false;
            }
        }
        Ok(())
    }
}

impl Image {
    /// Whether clusters were set aside that nothing was written to: when many more are in use than the file system has given
    /// the file (QEMU's `qcow2_detect_metadata_preallocation`).
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn preallocated(&self) -> io::Result<bool> {
        let real = self.allocated()? / self.header().cluster_size();
        let threshold = (real * 10 / 9).max(real + 2);
        let mut refcounts = Refcounts::load(self)?;
        let mut used = 0;
        let entries = refcounts.block_entries();
        for index in 0..self.file_clusters().div_ceil(entries).min(refcounts.table().len() as u64) {
            if refcounts.block_offset(self, index).is_none() {
                continue;
            }
            for cluster in index * entries..((index + 1) * entries).min(self.file_clusters()) {
                used += u64::from(refcounts.get(self, cluster)? > 0);
            }
            if used >= threshold {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

enum Provided {
    AllThere,
    Changed,
}
