//! Everything in an image that refers to a cluster of its file.
//!
//! An L2 table that several L1 tables share is read once, and counts as often as it is shared: so an image costs what
//! its metadata costs to read, however often its tables name each other.

use super::image::Image;
use crate::qcow2::layout::bitmap;
use crate::qcow2::layout::l2::{HostCluster, L2Entry, L2Format, Raw};
use crate::qcow2::layout::refcount::TableEntry;
use crate::qcow2::layout::{Extension, Snapshot};
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// What is told of an image's references. Offsets passed to [`Visitor::reference`] are inside the file.
pub(super) trait Visitor {
    /// Something refers to these bytes of the file, so often.
    fn reference(&mut self, offset: u64, length: u64, times: u32);

    /// Something is wrong, and was not followed.
    fn wrong(&mut self, what: Wrong, finding: fmt::Arguments<'_>);

    /// An L2 entry of the active L1 table.
    fn active_entry(&mut self, raw: Raw, entry: L2Entry) -> io::Result<()> {
        let _ = (raw, entry);
        Ok(())
    }

    /// So many of so many L2 tables are done.
    fn table(&mut self, done: u64, of: u64) {
        let _ = (done, of);
    }
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// One entry; nothing else depends on it.
    Entry,
    /// A table: what it refers to is not known, and may be anywhere.
    Table,
}

/// An L2 table, and who refers to it.
#[derive(Clone, Copy, Default)]
struct Table {
    times: u32,
    /// Guest offset that it begins to map, where the active L1 table refers to it.
    active: Option<u64>,
}

/// Whose an L1 table is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Active,
    Snapshot,
    Nobody,
}

/// Walks over all of an image.
pub(super) struct Walk<'a> {
    image: &'a Image,
    tables: BTreeMap<u64, Table>,
    /// Bytes that are left for tables that do not overlap: as many as the file has.
    budget: u64,
}

impl<'a> Walk<'a> {
    pub fn new(image: &'a Image) -> Self {
        Self { image, tables: BTreeMap::new(), budget: image.file_len() }
    }

    /// Everything, but for the refcounts' own clusters, which [`Walk::refcounts`] has.
    pub fn all(&mut self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let header = self.image.header();
        self.refer(visitor, Wrong::Entry, "the header", 0, header.cluster_size());
        self.l1("the active L1 table", header.l1_table_offset, header.l1_size, Owner::Active, visitor)?;
        self.snapshots(visitor)?;
        for extension in &header.extensions {
            if let Extension::Encryption(encryption) = extension {
                let length = encryption.length.next_multiple_of(header.cluster_size());
                self.refer(visitor, Wrong::Entry, "the encryption header", encryption.offset, length);
            }
        }
        self.bitmaps(visitor)?;
        self.l2_tables(visitor)
    }

    /// The refcount table and its blocks.
    pub fn refcounts(&self, table: &[TableEntry], visitor: &mut dyn Visitor) {
        let header = self.image.header();
        let length = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        self.refer(visitor, Wrong::Entry, "the refcount table", header.refcount_table_offset, length);
        for (index, entry) in table.iter().enumerate() {
            if entry.reserved() {
                visitor
                    .wrong(Wrong::Entry, format_args!("refcount table entry {index} has reserved bits set"));
            }
            let Some(offset) = entry.block_offset() else { continue };
            self.refer_cluster(visitor, format_args!("refcount block {index}"), offset);
        }
    }

    /// What one L1 table refers to, and nothing else.
    pub fn under_l1(&mut self, offset: u64, entries: u32, visitor: &mut dyn Visitor) -> io::Result<()> {
        self.l1("the L1 table", offset, entries, Owner::Nobody, visitor)?;
        self.l2_tables(visitor)
    }

    fn snapshots(&mut self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let (snapshots, length) = match self.image.snapshots() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                visitor.wrong(Wrong::Table, format_args!("{error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for Snapshot { l1_table_offset, l1_size, id, .. } in &snapshots {
            let what = format!("the L1 table of snapshot {}", id.escape_debug());
            self.l1(&what, *l1_table_offset, *l1_size, Owner::Snapshot, visitor)?;
        }
        self.refer(visitor, Wrong::Entry, "the snapshot table", self.image.header().snapshots_offset, length);
        Ok(())
    }

    fn l1(
        &mut self,
        what: &str,
        offset: u64,
        entries: u32,
        owner: Owner,
        visitor: &mut dyn Visitor,
    ) -> io::Result<()> {
        let length = u64::from(entries) * 8;
        if entries == 0 || !self.table(visitor, what, offset, length) {
            return Ok(());
        }
        if owner != Owner::Nobody {
            visitor.reference(offset, length, 1);
        }
        let guest_bits = self.image.header().l2_table_bits();
        for (index, entry) in (0u64..).zip(self.image.read_l1(offset, entries)?) {
            if entry.reserved() {
                let raw = entry.0;
                visitor.wrong(
                    Wrong::Entry,
                    format_args!("entry {index} of {what} has reserved bits set ({raw:#x})"),
                );
            }
            let Some(offset) = entry.l2_table_offset() else { continue };
            if !self.check(visitor, Wrong::Table, format_args!("L2 table {index} of {what}"), offset) {
                continue;
            }
            let table = self.tables.entry(offset).or_default();
            table.times = table.times.saturating_add(1);
            if owner == Owner::Active {
                table.active.get_or_insert(index << guest_bits);
            }
        }
        Ok(())
    }

    fn l2_tables(&self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let format = L2Format::of(self.image.header());
        let cluster_size = self.image.header().cluster_size();
        let of = self.tables.len() as u64;
        let mut bytes = Vec::new();
        for (done, (offset, table)) in (0u64..).zip(&self.tables) {
            visitor.table(done, of);
            visitor.reference(*offset, cluster_size, table.times);
            self.image.read_cluster(*offset, &mut bytes)?;
            for (index, raw) in (0u64..).zip(format.entries(&bytes)) {
                if raw.entry == 0 && raw.bitmap == 0 {
                    continue;
                }
                let entry = format.decode(raw);
                self.l2_entry(*offset, index, *table, format, raw, entry, visitor);
                if table.active.is_some() {
                    visitor.active_entry(raw, entry)?;
                }
            }
        }
        visitor.table(of, of);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one place calls it")]
    fn l2_entry(
        &self,
        table_offset: u64,
        index: u64,
        table: Table,
        format: L2Format,
        raw: Raw,
        entry: L2Entry,
        visitor: &mut dyn Visitor,
    ) {
        let header = self.image.header();
        if format.reserved(raw) {
            let bits = raw.entry;
            visitor.wrong(Wrong::Entry, format_args!(
                "entry {index} of the L2 table at {table_offset:#x} has bits set that it must not have ({bits:#x})"
            ));
        }
        let what = format_args!("entry {index} of the L2 table at {table_offset:#x}");
        match entry {
            L2Entry::Unallocated | L2Entry::Zero(None) => {}
            L2Entry::Subclusters { cluster: None, allocated, .. } => {
                if allocated != 0 {
                    visitor.wrong(Wrong::Entry, format_args!("{what} has subclusters but no cluster"));
                }
            }
            L2Entry::Zero(Some(HostCluster { offset, .. }))
            | L2Entry::Data(HostCluster { offset, .. })
            | L2Entry::Subclusters { cluster: Some(HostCluster { offset, .. }), .. } => {
                if header.external_data_file() {
                    let guest = table.active.map(|guest| guest.saturating_add(index << header.cluster_bits));
                    if guest.is_some_and(|guest| guest != offset) {
                        visitor.wrong(
                            Wrong::Entry,
                            format_args!("{what} is elsewhere in the data file ({offset:#x})"),
                        );
                    }
                } else if self.check(visitor, Wrong::Entry, what, offset) {
                    visitor.reference(offset, header.cluster_size(), table.times);
                }
            }
            L2Entry::Compressed { offset, length } => {
                if header.external_data_file() {
                    visitor.wrong(
                        Wrong::Entry,
                        format_args!("{what} is compressed, which no image with a data file has"),
                    );
                } else {
                    if self.inside(visitor, Wrong::Entry, what, offset, length) {
                        visitor.reference(offset, length, table.times);
                    }
                }
            }
        }
    }

    fn bitmaps(&mut self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let Some(extension) = self.image.bitmaps_extension() else { return Ok(()) };
        let (offset, size) = (extension.directory_offset, extension.directory_size);
        self.refer(visitor, Wrong::Table, "the bitmap directory", offset, size);
        let bitmaps = match self.image.bitmaps() {
            Ok(bitmaps) => bitmaps,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                visitor.wrong(Wrong::Table, format_args!("{error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for bitmap in bitmaps {
            let length = u64::from(bitmap.table_size) * 8;
            let name = bitmap.name.escape_debug().to_string();
            if self.table(visitor, format_args!("the table of bitmap {name}"), bitmap.table_offset, length) {
                visitor.reference(bitmap.table_offset, length, 1);
                self.bitmap(&name, bitmap.table_offset, length, visitor)?;
            }
        }
        Ok(())
    }

    /// The table of a bitmap, which may be long, in pieces.
    fn bitmap(&self, name: &str, offset: u64, length: u64, visitor: &mut dyn Visitor) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let mut bytes = Vec::new();
        for at in (0..length).step_by(PIECE as usize) {
            bytes.resize((length - at).min(PIECE) as usize, 0);
            self.image.read(offset + at, &mut bytes)?;
            for raw in bytes.as_chunks::<8>().0 {
                let entry = bitmap::TableEntry(u64::from_be_bytes(*raw));
                if entry.reserved() {
                    let what = format_args!("the table of bitmap {name} has reserved bits set");
                    visitor.wrong(Wrong::Entry, what);
                }
                if let Some(offset) = entry.offset() {
                    self.refer_cluster(visitor, format_args!("a cluster of bitmap {name}"), offset);
                }
            }
        }
        Ok(())
    }

    fn refer_cluster(&self, visitor: &mut dyn Visitor, what: impl fmt::Display, offset: u64) {
        if self.check(visitor, Wrong::Entry, what, offset) {
            visitor.reference(offset, self.image.header().cluster_size(), 1);
        }
    }

    fn refer(
        &self,
        visitor: &mut dyn Visitor,
        wrong: Wrong,
        what: impl fmt::Display,
        offset: u64,
        length: u64,
    ) {
        if self.inside(visitor, wrong, what, offset, length) {
            visitor.reference(offset, length, 1);
        }
    }

    /// Whether a table can be read: it is inside the file, and all of them together are not longer than that.
    fn table(
        &mut self,
        visitor: &mut dyn Visitor,
        what: impl fmt::Display,
        offset: u64,
        length: u64,
    ) -> bool {
        if !self.inside(visitor, Wrong::Table, &what, offset, length) {
            return false;
        }
        // The file's last cluster need not be whole.
        let (left, enough) = match self.budget.checked_sub(length.min(self.image.file_len() - offset)) {
            Some(left) => (left, true),
            None => (0, false),
        };
        self.budget = left;
        if !enough {
            visitor.wrong(Wrong::Table, format_args!("{what} overlaps with other tables"));
        }
        enough
    }

    /// Whether an offset is a cluster's of this file.
    fn check(&self, visitor: &mut dyn Visitor, wrong: Wrong, what: impl fmt::Display, offset: u64) -> bool {
        let cluster_size = self.image.header().cluster_size();
        if !offset.is_multiple_of(cluster_size) {
            visitor.wrong(wrong, format_args!("{what} points to {offset:#x}, which is inside a cluster"));
            return false;
        }
        self.inside(visitor, wrong, what, offset, cluster_size)
    }

    /// Whether a range is inside the file, whose last cluster need not be whole.
    fn inside(
        &self,
        visitor: &mut dyn Visitor,
        wrong: Wrong,
        what: impl fmt::Display,
        offset: u64,
        length: u64,
    ) -> bool {
        let end = self.image.file_clusters() << self.image.header().cluster_bits;
        let inside =
            offset < self.image.file_len() && offset.checked_add(length).is_some_and(|until| until <= end);
        if !inside {
            visitor.wrong(wrong, format_args!("{what} points to {offset:#x}, behind the end of the file"));
        }
        inside
    }
}
