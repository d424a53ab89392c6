//! An image file that is worked on: its header, and reading and writing pieces of it.

use crate::qcow2::layout::feature::{Autoclear, Incompatible};
use crate::qcow2::layout::l1::{self, L1Entry};
use crate::qcow2::layout::{Extension, MAX_CLUSTER_SIZE};
use crate::qcow2::layout::{Header, LayoutError, Snapshot, Version, bitmap::Bitmap, extension, snapshot};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// An image file that nobody else uses, and its header.
pub struct Image {
    file: File,
    header: Header,
    len: Cell<u64>,
    /// Where tests see what is written, in its order.
    #[cfg(test)]
    pub(super) journal: std::cell::RefCell<Vec<(u64, Vec<u8>)>>,
}

impl Image {
    /// Reads the header. Locks are the caller's.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or (as `InvalidData`) is no qcow2 image.
    pub fn open(file: File) -> io::Result<Self> {
        let header = Header::read(&file)?;
        let len = Cell::new(size(&file)?);
        Ok(Self {
            file,
            header,
            len,
            #[cfg(test)]
            journal: std::cell::RefCell::default(),
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the image file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len.get()
    }

    /// Length of the image file in clusters, the last of which may not be there as a whole.
    pub fn file_clusters(&self) -> u64 {
        self.file_len().div_ceil(self.header.cluster_size())
    }

    /// Bytes that the file system has given the file.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Fills a buffer; what lies behind the end of the file is zero.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut n = 0;
        while n < buffer.len() {
            let Some(at) = offset.checked_add(n as u64).filter(|at| *at < self.file_len()) else { break };
            match self.file.read_at(&mut buffer[n..], at) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer[n..].fill(0);
        Ok(())
    }

    /// Writes, and makes the file longer where it has to.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.journal.borrow_mut().push((offset, data.to_vec()));
        self.file.write_all_at(data, offset)?;
        self.len.set(self.file_len().max(offset.saturating_add(data.len() as u64)));
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// One cluster, whose offset the caller has checked.
    pub(super) fn read_cluster(&self, offset: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(self.header.cluster_size() as usize, 0);
        self.read(offset, buffer)
    }

    /// An L1 table: so much of it as the file has.
    pub(super) fn read_l1(&self, offset: u64, entries: u32) -> io::Result<Vec<L1Entry>> {
        let bytes = (u64::from(entries) * 8).min(self.file_len().saturating_sub(offset));
        let mut table = vec![0; bytes as usize];
        self.read(offset, &mut table)?;
        Ok(l1::entries(&table).collect())
    }

    /// The active L1 table.
    pub(super) fn read_active_l1(&self) -> io::Result<Vec<L1Entry>> {
        self.read_l1(self.header.l1_table_offset, self.header.l1_size)
    }

    /// The snapshot table, and how many bytes it takes.
    ///
    /// # Errors
    ///
    /// It cannot be read, or (as `InvalidData`) is no snapshot table.
    pub fn snapshots(&self) -> io::Result<(Vec<Snapshot>, u64)> {
        let Header { nb_snapshots, snapshots_offset, cluster_bits, .. } = self.header;
        if nb_snapshots == 0 {
            return Ok((Vec::new(), 0));
        }
        // Its length is nowhere: read more of it until it is whole.
        let most = snapshot::MAX_TABLE_SIZE.min(self.file_len().saturating_sub(snapshots_offset)) as usize;
        let mut read = most.min(1 << 16);
        loop {
            let mut bytes = vec![0; read];
            self.read(snapshots_offset, &mut bytes)?;
            match Snapshot::parse_table(&bytes, nb_snapshots, cluster_bits) {
                Ok((snapshots, length)) => return Ok((snapshots, length as u64)),
                Err(LayoutError::Short(_)) if read < most => read = read.saturating_mul(8).min(most),
                Err(error) => return Err(invalid(error)),
            }
        }
    }

    /// The bitmaps extension, if there is one that says it is consistent.
    pub fn bitmaps_extension(&self) -> Option<extension::Bitmaps> {
        if !self.header.autoclear_features.contains(Autoclear::BITMAPS) {
            return None;
        }
        self.header.extensions.iter().find_map(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(*bitmaps),
            _ => None,
        })
    }

    /// The bitmaps.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or (as `InvalidData`) is none.
    pub fn bitmaps(&self) -> io::Result<Vec<Bitmap>> {
        let Some(extension) = self.bitmaps_extension() else { return Ok(Vec::new()) };
        if extension.directory_offset.saturating_add(extension.directory_size) > self.file_len() {
            return Err(invalid(LayoutError::Short("bitmap directory")));
        }
        let mut bytes = vec![0; extension.directory_size as usize];
        self.read(extension.directory_offset, &mut bytes)?;
        Bitmap::parse_directory(&bytes, extension.nb_bitmaps, self.header.cluster_bits).map_err(invalid)
    }

    /// Writes the header anew, with changes. The whole of it, for extensions or names may have changed too; and without
    /// autoclear features that we do not know, as the specification asks of whoever writes.
    ///
    /// # Errors
    ///
    /// It no longer fits into its cluster, or the file cannot be written.
    pub fn update_header(&mut self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header.clone();
        header.autoclear_features &= Autoclear::BITMAPS | Autoclear::RAW_EXTERNAL_DATA;
        change(&mut header);
        let mut bytes = header.encode().map_err(invalid)?;
        // What the old one had behind that is not to be taken for an extension.
        let old = self.header.encode().map_err(invalid)?.len();
        bytes.resize(bytes.len().max(old).min(MAX_CLUSTER_SIZE), 0);
        self.write(0, &bytes)?;
        self.header = header;
        Ok(())
    }

    /// Sets or clears the dirty bit, durably. Version 2 has none.
    pub(crate) fn set_dirty(&mut self, dirty: bool) -> io::Result<()> {
        if self.header.version < Version::V3 {
            return self.sync();
        }
        self.sync()?;
        self.update_header(|header| header.incompatible_features.set(Incompatible::DIRTY, dirty))?;
        self.sync()
    }
}

/// Length of a file or block device.
fn size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// An image that is wrong, as an error of reading it.
pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
