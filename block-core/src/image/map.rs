//! Where each range of an image comes from, as `qemu-img map` says it; and what is there.

use super::chain::{Chain, Layer};
use super::{ImageError, Result};
use crate::qcow2::compressed::{Compression, read_clusters};
use crate::qcow2::layout::l2::{L2Entry, L2Format, Raw, Subcluster};
use crate::qcow2::layout::{HostCluster, L1Entry, l1};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A range of the virtual disk. Names are those of qemu-img's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Which image of the chain has it: 0 is the first.
    pub depth: usize,
    /// Whether an image of the chain has it allocated.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether it has data.
    pub data: bool,
    /// Whether that is compressed.
    pub compressed: bool,
    /// Where it is in the image's file, or external data file.
    pub offset: Option<u64>,
}

impl Extent {
    /// The extent that this one and the next are, if they are alike.
    pub fn merge(self, next: Self) -> Option<Self> {
        let follows = match (self.offset, next.offset) {
            (Some(offset), Some(next)) => offset.checked_add(self.length) == Some(next),
            (None, None) => true,
            _ => false,
        };
        let alike = Self { start: next.start, length: next.length, offset: next.offset, ..self } == next;
        (follows && alike && self.start + self.length == next.start)
            .then_some(Self { length: self.length + next.length, ..self })
    }
}

/// What one image has of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Status {
    allocated: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

const UNALLOCATED: Status =
    Status { allocated: false, zero: false, data: false, compressed: false, offset: None };

/// Maps a chain, with an L1 table and one L2 table of each image in memory.
pub struct Mapper<'a> {
    layers: Vec<LayerMap<'a>>,
}

struct LayerMap<'a> {
    layer: &'a Layer,
    l1: Vec<L1Entry>,
    /// The offset of the L2 table that is kept, and its entries.
    l2: Option<(u64, Vec<Raw>)>,
    /// Data clusters were set aside before anything was written to them, so the file's holes say what is zero.
    preallocated: bool,
}

impl<'a> Mapper<'a> {
    /// Reads the L1 tables.
    ///
    /// # Errors
    ///
    /// One of the images cannot be read.
    pub fn new(chain: &'a Chain) -> Result<Self> {
        let layers = chain.layers().iter().map(|layer| {
            let failed = ImageError::doing(&layer.path, "cannot read");
            LayerMap::new(layer).map_err(failed)
        });
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.layers[0].layer.size()
    }

    /// What there is at `start`, up to `end` at most: as much as one lookup tells.
    ///
    /// # Errors
    ///
    /// An image cannot be read, or points where it cannot.
    pub fn at(&mut self, start: u64, end: u64) -> Result<Extent> {
        let mut length = end - start;
        let depths = self.layers.len();
        for depth in 0..depths {
            let backing_size = self.layers.get(depth + 1).map(|below| below.layer.size());
            let (mut status, found) = self.layers[depth].status(start, length)?;
            length = found;
            if !status.allocated && backing_size.is_none_or(|size| start >= size) {
                // Nothing is below: it reads as zeroes.
                status.zero = true;
            }
            if status.zero || status.data {
                let Status { allocated: present, zero, data, compressed, offset } = status;
                return Ok(Extent { start, length, depth, present, zero, data, compressed, offset });
            }
            length = length.min(backing_size.unwrap_or(u64::MAX) - start);
        }
        // The last image's ranges are data or zero.
        Err(ImageError::refused(&self.layers[0].layer.path, "has a range that no image has"))
    }

    /// What the first image alone has at `start`: `None` where it leaves that to its backing file.
    ///
    /// # Errors
    ///
    /// As [`Mapper::at`].
    pub fn own(&mut self, start: u64, end: u64) -> Result<(Option<Extent>, u64)> {
        let (status, length) = self.layers[0].status(start, end - start)?;
        let Status { allocated: present, zero, data, compressed, offset } = status;
        let extent = Extent { start, length, depth: 0, present, zero, data, compressed, offset };
        Ok((present.then_some(extent), length))
    }

    /// Fills a buffer with what a guest would see from `start` on; what lies behind the end is zero.
    ///
    /// # Errors
    ///
    /// As [`Mapper::at`].
    pub fn read(&mut self, mut start: u64, into: &mut [u8]) -> Result<()> {
        let there = self.size().saturating_sub(start).min(into.len() as u64) as usize;
        let (mut into, behind) = into.split_at_mut(there);
        behind.fill(0);
        while !into.is_empty() {
            let extent = self.at(start, start + into.len() as u64)?;
            let (piece, rest) = into.split_at_mut(extent.length as usize);
            let LayerMap { layer, .. } = self.layers[extent.depth];
            self.layers[extent.depth]
                .read(extent, piece)
                .map_err(ImageError::doing(&layer.path, "cannot read"))?;
            start += extent.length;
            into = rest;
        }
        Ok(())
    }

    /// All of it, each extent as long as it can be.
    ///
    /// # Errors
    ///
    /// As [`Mapper::at`], or what `each` says.
    pub fn each<E: From<ImageError>>(
        &mut self,
        mut each: impl FnMut(Extent) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (mut start, end) = (0, self.size());
        let mut last: Option<Extent> = None;
        while start < end {
            let extent = self.at(start, end)?;
            start += extent.length;
            last = match last {
                None => Some(extent),
                Some(before) => match before.merge(extent) {
                    Some(merged) => Some(merged),
                    None => {
                        each(before)?;
                        Some(extent)
                    }
                },
            };
        }
        last.map_or(Ok(()), each)
    }
}

impl<'a> LayerMap<'a> {
    fn new(layer: &'a Layer) -> io::Result<Self> {
        let mut l1 = Vec::new();
        let mut preallocated = false;
        if let Some(header) = &layer.header {
            let bytes =
                (u64::from(header.l1_size) * 8).min(layer.file_len.saturating_sub(header.l1_table_offset));
            let mut table = vec![0; bytes as usize];
            layer.file.read_exact_at(&mut table, header.l1_table_offset)?;
            l1 = l1::entries(&table).collect();
            preallocated = crate::qcow2::offline::Image::open(layer.file.try_clone()?)?.preallocated()?;
        }
        Ok(Self { layer, l1, l2: None, preallocated })
    }

    fn status(&mut self, start: u64, length: u64) -> Result<(Status, u64)> {
        let layer = self.layer;
        self.look(start, length).map_err(ImageError::doing(&layer.path, "cannot map"))
    }

    fn look(&mut self, start: u64, length: u64) -> io::Result<(Status, u64)> {
        if self.layer.header.is_none() {
            let (zero, length) = hole(&self.layer.file, start, length)?;
            let offset = Some(start);
            return Ok((Status { allocated: true, zero, data: !zero, compressed: false, offset }, length));
        }
        let (mut status, mut length) = self.look_up(start, length)?;
        if let (true, true, Some(offset)) = (self.preallocated, status.data, status.offset) {
            (status.zero, length) = hole(self.data_file(), offset, length)?;
        }
        Ok((status, length))
    }

    fn data_file(&self) -> &'a File {
        self.layer.data_file.as_ref().map_or(&self.layer.file, |(_, file)| file)
    }

    fn look_up(&mut self, start: u64, length: u64) -> io::Result<(Status, u64)> {
        let Some(header) = &self.layer.header else { return Ok((UNALLOCATED, length)) };
        let (cluster_bits, table_bits) = (header.cluster_bits, header.l2_table_bits());
        let entry = |index: u64| self.l1.get(index as usize).and_then(|entry| entry.l2_table_offset());
        let index = start >> table_bits;
        let Some(offset) = entry(index) else {
            let until = (index + 1..self.l1.len() as u64).find(|index| entry(*index).is_some());
            let until = until.map_or(u64::MAX, |index| index << table_bits);
            return Ok((UNALLOCATED, length.min(until - start)));
        };
        if self.l2.as_ref().is_none_or(|(kept, _)| *kept != offset) {
            self.l2 = Some((offset, self.read_l2(offset)?));
        }
        let entries = self.l2.as_ref().map_or(&[][..], |(_, entries)| entries);
        let format = L2Format::of(header);
        let cluster_size = 1u64 << cluster_bits;
        // Subclusters are 1/32 of a cluster; without them, a cluster is looked at as a whole.
        let unit_bits = if header.extended_l2() { cluster_bits - 5 } else { cluster_bits };
        let status = |at: u64| -> io::Result<Option<Status>> {
            if at >> table_bits != index {
                return Ok(None);
            }
            let entry = (at >> cluster_bits) & ((1 << (table_bits - cluster_bits)) - 1);
            let Some(raw) = entries.get(entry as usize) else { return Ok(None) };
            let within = at & (cluster_size - 1);
            status_of(format.decode(*raw), within, unit_bits, cluster_size).map(Some)
        };
        let first = status(start)?.unwrap_or(UNALLOCATED);
        let mut until = ((start >> unit_bits) + 1) << unit_bits;
        let end = start.saturating_add(length);
        while until < end {
            let Some(next) = status(until)? else { break };
            let expected = first.offset.map(|offset| offset + (until - start));
            if next != (Status { offset: expected, ..first }) {
                break;
            }
            until += 1 << unit_bits;
        }
        Ok((first, until.min(end) - start))
    }

    /// Reads an extent of this image's that has just been looked up.
    fn read(&self, extent: Extent, into: &mut [u8]) -> io::Result<()> {
        match extent.offset {
            _ if extent.zero => into.fill(0),
            Some(offset) => read_zero_padded(self.data_file(), offset, into)?,
            None => self.read_compressed(extent.start, into)?,
        }
        Ok(())
    }

    fn read_compressed(&self, start: u64, into: &mut [u8]) -> io::Result<()> {
        let Some(header) = &self.layer.header else { return Ok(()) };
        let compression = Compression::of(header.compression_type);
        let compression = compression.ok_or_else(|| corrupt("compressed cluster", start))?;
        read_clusters(header.cluster_size(), start, into, |at, cluster| {
            let entry = (at & ((1 << header.l2_table_bits()) - 1)) >> header.cluster_bits;
            let raw = self.l2.as_ref().and_then(|(_, entries)| entries.get(entry as usize));
            let Some(L2Entry::Compressed { offset, length }) =
                raw.map(|raw| L2Format::of(header).decode(*raw))
            else {
                return Err(corrupt("compressed cluster", at));
            };
            let mut data = vec![0; length as usize];
            read_zero_padded(&self.layer.file, offset, &mut data)?;
            compression.decompress(&data, cluster)
        })
    }

    fn read_l2(&self, offset: u64) -> io::Result<Vec<Raw>> {
        let Some(header) = &self.layer.header else { return Ok(Vec::new()) };
        let size = header.cluster_size();
        if !offset.is_multiple_of(size)
            || offset.checked_add(size).is_none_or(|end| end > self.layer.file_len)
        {
            return Err(corrupt("L2 table", offset));
        }
        let mut table = vec![0; size as usize];
        self.layer.file.read_exact_at(&mut table, offset)?;
        Ok(L2Format::of(header).entries(&table).collect())
    }
}

fn status_of(entry: L2Entry, within: u64, unit_bits: u32, cluster_size: u64) -> io::Result<Status> {
    let at = |cluster: Option<HostCluster>| match cluster {
        None => Ok(None),
        Some(cluster) if cluster.offset.is_multiple_of(cluster_size) => Ok(Some(cluster.offset + within)),
        Some(cluster) => Err(corrupt("cluster", cluster.offset)),
    };
    let zero = |cluster| Ok(Status { allocated: true, zero: true, offset: at(cluster)?, ..UNALLOCATED });
    let data = |cluster| Ok(Status { allocated: true, data: true, offset: at(cluster)?, ..UNALLOCATED });
    match entry.subcluster((within >> unit_bits) as u32) {
        Some(Subcluster::Unallocated(cluster)) => Ok(Status { offset: at(cluster)?, ..UNALLOCATED }),
        Some(Subcluster::Zero(cluster)) => zero(cluster),
        Some(Subcluster::Data(cluster)) => data(Some(cluster)),
        Some(Subcluster::Compressed) => {
            Ok(Status { allocated: true, data: true, compressed: true, ..UNALLOCATED })
        }
        None => Err(corrupt("subcluster", within)),
    }
}

fn corrupt(what: &str, offset: u64) -> io::Error {
    let reason = format!("{what} at {offset:#x}, where none can be: see `ringpair img check`");
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Reads from a file, which may end first.
fn read_zero_padded(file: &File, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, offset) {
            Ok(0) => {
                into.fill(0);
                break;
            }
            Ok(n) => {
                offset += n as u64;
                into = &mut into[n..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a file has a hole at an offset, and how far that goes.
fn hole(file: &File, start: u64, length: u64) -> io::Result<(bool, u64)> {
    let end = start.saturating_add(length);
    match seek(file, SeekFrom::Data(start)) {
        Ok(data) if data > start => Ok((true, data.min(end) - start)),
        Ok(_) => match seek(file, SeekFrom::Hole(start)) {
            Ok(hole) if hole > start => Ok((false, hole.min(end) - start)),
            Ok(_) | Err(_) => Ok((false, length)),
        },
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => Ok((true, length)),
        // No holes on this file system.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((false, length)),
        Err(errno) => Err(errno.into()),
    }
}
