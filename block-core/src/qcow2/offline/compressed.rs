//! Clusters written compressed: into a new image, each once, from its beginning to its end.
//!
//! The format is the specification's ("Compressed Clusters Descriptor"): raw deflate with a window of 4 KiB, packed without
//! gaps, so that the end of one and the beginning of another may share a cluster of the file, which each of them counts. A
//! cluster that deflate does not make smaller is written as it is.

use super::image::{Image, invalid};
use super::refcounts::Refcounts;
use crate::qcow2::layout::refcount;
use crate::qcow2::layout::{L1Entry, L2Entry, L2Format};
use flate2::{Compress, Compression, FlushCompress, Status};
use std::io;

/// The window of qcow2's deflate, as a power of two: QEMU's inflates with as much.
const WINDOW_BITS: u8 = 12;

/// Writes clusters into a new image, under the dirty bit.
pub struct CompressedWriter<'a> {
    image: &'a mut Image,
    refcounts: Refcounts,
    deflate: Compress,
    /// What a cluster is compressed into.
    compressed: Box<[u8]>,
    /// Where the next compressed data goes, if the cluster before it is not full.
    tail: Option<u64>,
    /// The L2 table that clusters are entered into, by its index in the L1 table.
    table: Option<(u64, Vec<u8>)>,
}

impl<'a> CompressedWriter<'a> {
    /// Begins with an image in which no cluster is allocated.
    ///
    /// # Errors
    ///
    /// It is none such, or it cannot be read or written.
    pub fn begin(image: &'a mut Image) -> io::Result<Self> {
        let header = image.header();
        let has_data = image.read_active_l1()?.iter().any(|entry| entry.l2_table_offset().is_some());
        if has_data || header.unsupported().is_some() || header.external_data_file() {
            let reason = "only a new image without an external data file is written compressed";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        // Whatever deflate makes of it fits into this: what it did not get rid of it would keep over a reset.
        let compressed = vec![0; header.cluster_size() as usize * 2].into_boxed_slice();
        image.set_dirty(true)?;
        let refcounts = Refcounts::load(image)?;
        Ok(Self { image, refcounts, deflate: deflate(WINDOW_BITS), compressed, tail: None, table: None })
    }

    /// Writes a cluster of the guest's, which comes after all those before.
    ///
    /// # Errors
    ///
    /// `cluster` is not one cluster, or behind the end of the disk; or the image cannot be written.
    pub fn write(&mut self, offset: u64, cluster: &[u8]) -> io::Result<()> {
        let header = self.image.header();
        let (size, format) = (header.cluster_size(), L2Format::of(header));
        let index = offset >> header.l2_table_bits();
        if !offset.is_multiple_of(size) || cluster.len() as u64 != size || index >= header.l1_size.into() {
            return Err(invalid("not a cluster of the image"));
        }
        let at = (offset >> header.cluster_bits) & ((size / 8) - 1);
        let entry = match self.compress(cluster)? {
            Some(length) => {
                let offset = self.place(length as u64)?;
                self.image.write(offset, &self.compressed[..length])?;
                L2Entry::Compressed { offset, length: length as u64 }
            }
            None => {
                let offset = self.refcounts.allocate(self.image, size)?;
                self.image.write(offset, cluster)?;
                L2Entry::data(offset)
            }
        };
        let entry = format.encode(entry).ok_or_else(|| invalid("the image file is too large"))?;
        if self.table.as_ref().is_none_or(|(table, _)| *table != index) {
            self.write_table()?;
        }
        let (_, table) = self.table.get_or_insert_with(|| (index, vec![0; size as usize]));
        let place = table.get_mut(at as usize * 8..at as usize * 8 + 8);
        place.ok_or_else(|| invalid("not a cluster of the image"))?.copy_from_slice(&entry.to_be_bytes());
        Ok(())
    }

    /// Writes what is left, durably.
    ///
    /// # Errors
    ///
    /// The image cannot be written.
    pub fn end(mut self) -> io::Result<()> {
        self.write_table()?;
        self.refcounts.flush(self.image)?;
        self.image.set_dirty(false)
    }

    /// Compresses a cluster; how long it is then, if that is shorter.
    fn compress(&mut self, cluster: &[u8]) -> io::Result<Option<usize>> {
        self.deflate.reset();
        let status = self.deflate.compress(cluster, &mut self.compressed, FlushCompress::Finish);
        if status.map_err(invalid)? != Status::StreamEnd {
            return Err(invalid("deflate makes a cluster twice as long"));
        }
        Ok(Some(self.deflate.total_out() as usize).filter(|length| *length < cluster.len()))
    }

    /// A place for compressed data of a length, less than a cluster: behind what was written last, if there is room, or if
    /// the cluster that follows is free too.
    fn place(&mut self, length: u64) -> io::Result<u64> {
        let header = self.image.header();
        let (bits, most) = (header.cluster_bits, refcount::max(header.refcount_order));
        let mut tail = self.tail.take();
        if let Some(at) = tail
            && self.refcounts.get(self.image, at >> bits)? == most
        {
            // Nobody else can be counted there.
            tail = None;
        }
        let room = tail.map_or(0, |at| at.next_multiple_of(1 << bits) - at);
        let offset = match tail {
            Some(at) if length <= room => {
                self.refcounts.change(self.image, at >> bits, 1)?;
                at
            }
            _ => {
                let next = self.refcounts.allocate(self.image, 1)?;
                match tail.filter(|at| at + room == next) {
                    Some(at) => {
                        self.refcounts.change(self.image, at >> bits, 1)?;
                        at
                    }
                    None => next,
                }
            }
        };
        let end = offset + length;
        self.tail = (!end.is_multiple_of(1 << bits)).then_some(end);
        Ok(offset)
    }

    /// Writes the L2 table that is full, and has the L1 table point to it.
    fn write_table(&mut self) -> io::Result<()> {
        let Some((index, table)) = self.table.take() else { return Ok(()) };
        let offset = self.refcounts.allocate(self.image, table.len() as u64)?;
        self.image.write(offset, &table)?;
        self.refcounts.write(self.image)?;
        let entry = L1Entry::new(offset, true);
        self.image.write(self.image.header().l1_table_offset + index * 8, &entry.0.to_be_bytes())
    }
}

/// Raw deflate with a window.
fn deflate(window_bits: u8) -> Compress {
    Compress::new_with_window_bits(Compression::default(), false, window_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Random;

    fn length(mut deflate: Compress, data: &[u8]) -> usize {
        let mut compressed = Vec::with_capacity(2 * data.len());
        let status = deflate.compress_vec(data, &mut compressed, FlushCompress::Finish);
        assert_eq!(status.unwrap(), Status::StreamEnd);
        compressed.len()
    }

    #[test]
    fn nothing_refers_to_what_is_further_back_than_the_window() {
        let mut random = Random::new(1);
        for (distance, found) in [(3000, true), (5000, false), (20_000, false)] {
            let words: Vec<u8> = (0..distance).map(|_| random.below(256) as u8).collect();
            let data: Vec<u8> = words.into_iter().cycle().take(64 << 10).collect();
            assert_eq!(length(deflate(WINDOW_BITS), &data) < data.len() / 2, found, "{distance}");
            assert!(length(deflate(15), &data) < data.len() / 2, "it is there to be found");
        }
    }
}
