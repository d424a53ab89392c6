//! Internal snapshots: taken, gone back to, deleted.

use super::image::{Image, invalid};
use super::refcounts::Refcounts;
use super::references::{Visitor, Walk, Wrong};
use super::{Progress, copied};
use crate::qcow2::layout::feature::Autoclear;
use crate::qcow2::layout::snapshot::MAX_SNAPSHOTS;
use crate::qcow2::layout::{COPIED, L1Entry, MAX_L1_SIZE, Snapshot};
use std::fmt;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// The snapshot of an id, or else of a name.
///
/// # Errors
///
/// The table cannot be read, or there is no such snapshot.
pub fn find_snapshot(image: &Image, name: &str) -> io::Result<Snapshot> {
    let (snapshots, _) = image.snapshots()?;
    let by_id = snapshots.iter().find(|snapshot| snapshot.id == name);
    let found = by_id.or_else(|| snapshots.iter().find(|snapshot| snapshot.name == name)).cloned();
    found.ok_or_else(|| {
        let there: Vec<_> =
            snapshots.iter().map(|snapshot| snapshot.name.escape_debug().to_string()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        io::Error::new(io::ErrorKind::NotFound, format!("there is no snapshot `{name}` (there are: {there})"))
    })
}

/// Takes a snapshot of the image as it is.
///
/// # Errors
///
/// There is one of that name, or the image cannot have it: a refcount would not fit into its width, it has an external
/// data file, or it has to be repaired first. Nothing has changed then.
pub fn create_snapshot(image: &mut Image, name: &str, progress: Progress<'_>) -> io::Result<()> {
    usable(image)?;
    let (mut snapshots, table_length) = image.snapshots()?;
    if snapshots.iter().any(|snapshot| snapshot.name == name) {
        return Err(refused(format!("there is a snapshot `{name}` already")));
    }
    if snapshots.len() as u64 >= MAX_SNAPSHOTS.into() {
        return Err(refused(format!("there are {MAX_SNAPSHOTS} snapshots already")));
    }
    let (l1_offset, l1_size) = (image.header().l1_table_offset, image.header().l1_size);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ids = snapshots.iter().filter_map(|snapshot| snapshot.id.parse::<u64>().ok());
    let mut snapshot = Snapshot {
        l1_table_offset: 0,
        l1_size,
        id: ids.max().unwrap_or(0).saturating_add(1).to_string(),
        name: name.to_owned(),
        date: (u32::try_from(now.as_secs()).unwrap_or(u32::MAX), now.subsec_nanos()),
        vm_clock_nsec: 0,
        vm_state_size: 0,
        disk_size: Some(image.header().size),
        icount: None,
        unknown_extra: Vec::new(),
    };
    // Asked before anything is written.
    Snapshot::encode_table(std::slice::from_ref(&snapshot)).map_err(invalid)?;
    follow(image, l1_offset, l1_size)?;

    let mut change = Change::begin(image)?;
    let copy = change.image.read_active_l1()?;
    change.refer(l1_offset, l1_size, 1, progress)?;
    snapshot.l1_table_offset = change.write_l1(&copy)?;
    snapshots.push(snapshot);
    copied::update(change.image, &mut change.refcounts)?;
    change.write_table(&snapshots, table_length)?;
    change.end()
}

/// Makes the image what it was when a snapshot was taken. What it is now is lost, unless another snapshot has it.
///
/// # Errors
///
/// There is no such snapshot, or the image has to be repaired first. Nothing has changed then.
pub fn apply_snapshot(image: &mut Image, name: &str, progress: Progress<'_>) -> io::Result<()> {
    usable(image)?;
    let snapshot = find_snapshot(image, name)?;
    let (old_offset, old_size) = (image.header().l1_table_offset, image.header().l1_size);
    let size = snapshot.disk_size.unwrap_or(image.header().size);
    let entries = image.header().l1_entries_for(size).max(snapshot.l1_size.into());
    if entries * 8 > MAX_L1_SIZE || size > i64::MAX as u64 {
        return Err(refused(format!("snapshot `{name}` has an impossible size")));
    }
    follow(image, snapshot.l1_table_offset, snapshot.l1_size)?;
    follow(image, old_offset, old_size)?;

    let mut change = Change::begin(image)?;
    change.refer(snapshot.l1_table_offset, snapshot.l1_size, 1, progress)?;
    // Nothing under the snapshot is the image's alone, whatever the flags say that it has kept.
    let mut l1 = change.image.read_l1(snapshot.l1_table_offset, snapshot.l1_size)?;
    l1.resize(entries as usize, L1Entry(0));
    let l1_offset = change.write_l1(&l1)?;
    copied::clear(change.image, &l1)?;
    change.image.sync()?;
    change.image.update_header(|header| {
        header.l1_table_offset = l1_offset;
        header.l1_size = entries as u32;
        header.size = size;
        // Bitmaps say what has changed since some time, and do not know of this.
        header.autoclear_features.remove(Autoclear::BITMAPS);
    })?;
    change.image.sync()?;
    change.drop_l1(old_offset, old_size, progress)?;
    copied::update(change.image, &mut change.refcounts)?;
    change.end()
}

/// Deletes a snapshot.
///
/// # Errors
///
/// There is no such snapshot, or the image has to be repaired first. Nothing has changed then.
pub fn delete_snapshot(image: &mut Image, name: &str, progress: Progress<'_>) -> io::Result<()> {
    usable(image)?;
    let snapshot = find_snapshot(image, name)?;
    let (mut snapshots, table_length) = image.snapshots()?;
    snapshots.retain(|other| other.id != snapshot.id || other.name != snapshot.name);
    follow(image, snapshot.l1_table_offset, snapshot.l1_size)?;

    let mut change = Change::begin(image)?;
    change.write_table(&snapshots, table_length)?;
    change.drop_l1(snapshot.l1_table_offset, snapshot.l1_size, progress)?;
    copied::update(change.image, &mut change.refcounts)?;
    change.end()
}

/// Refuses images whose refcounts mean something else, or nothing.
fn usable(image: &Image) -> io::Result<()> {
    if let Some(unsupported) = image.header().unsupported() {
        return Err(refused(unsupported.to_string()));
    }
    if image.header().external_data_file() {
        return Err(refused("an image with an external data file has no snapshots".to_owned()));
    }
    Ok(())
}

/// Makes sure that an L1 table and all under it can be followed.
fn follow(image: &Image, l1_offset: u64, l1_size: u32) -> io::Result<()> {
    struct First(Option<String>);
    impl Visitor for First {
        fn reference(&mut self, _: u64, _: u64, _: u32) {}
        fn wrong(&mut self, _: Wrong, finding: fmt::Arguments<'_>) {
            self.0.get_or_insert_with(|| finding.to_string());
        }
    }
    let mut first = First(None);
    Walk::new(image).under_l1(l1_offset, l1_size, &mut first)?;
    match first.0 {
        Some(finding) => Err(invalid(format!("{finding}: see `ringpair img check`"))),
        None => Ok(()),
    }
}

fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// A change to the image's snapshots, under the dirty bit.
struct Change<'a> {
    image: &'a mut Image,
    refcounts: Refcounts,
}

impl<'a> Change<'a> {
    fn begin(image: &'a mut Image) -> io::Result<Self> {
        image.set_dirty(true)?;
        let refcounts = Refcounts::load(image)?;
        Ok(Self { image, refcounts })
    }

    fn end(mut self) -> io::Result<()> {
        self.refcounts.flush(self.image)?;
        self.image.set_dirty(false)
    }

    /// Changes the refcounts of all that is under an L1 table. If one of them cannot be, the others are changed back.
    fn refer(&mut self, l1_offset: u64, l1_size: u32, by: i64, progress: Progress<'_>) -> io::Result<()> {
        let (changed, result) = self.change(l1_offset, l1_size, by, u64::MAX, progress);
        if result.is_err() && by > 0 {
            self.change(l1_offset, l1_size, -by, changed, progress).1?;
            self.refcounts.flush(self.image)?;
            self.image.set_dirty(false)?;
        }
        result?;
        self.refcounts.flush(self.image)
    }

    /// Changes at most so many refcounts, always in the same order, and says how many.
    fn change(
        &mut self,
        l1_offset: u64,
        l1_size: u32,
        by: i64,
        most: u64,
        progress: Progress<'_>,
    ) -> (u64, io::Result<()>) {
        let (image, refcounts) = (&*self.image, &mut self.refcounts);
        let mut visit = ChangeEach { image, refcounts, by, most, done: 0, result: Ok(()), progress };
        let walked = Walk::new(image).under_l1(l1_offset, l1_size, &mut visit);
        (visit.done, visit.result.and(walked))
    }

    /// Writes an L1 table into clusters of its own.
    fn write_l1(&mut self, l1: &[L1Entry]) -> io::Result<u64> {
        let bytes: Vec<u8> = l1.iter().flat_map(|entry| (entry.0 & !COPIED).to_be_bytes()).collect();
        self.write_new(bytes)
    }

    fn write_new(&mut self, mut bytes: Vec<u8>) -> io::Result<u64> {
        let cluster_size = self.image.header().cluster_size() as usize;
        bytes.resize(bytes.len().next_multiple_of(cluster_size).max(cluster_size), 0);
        let offset = self.refcounts.allocate(self.image, bytes.len() as u64)?;
        self.image.write(offset, &bytes)?;
        self.refcounts.flush(self.image)?;
        Ok(offset)
    }

    /// Writes the snapshot table anew, switches to it, and frees the old one, of so many bytes.
    fn write_table(&mut self, snapshots: &[Snapshot], old_length: u64) -> io::Result<()> {
        let bytes = Snapshot::encode_table(snapshots).map_err(invalid)?;
        let offset = if bytes.is_empty() { 0 } else { self.write_new(bytes)? };
        self.refcounts.flush(self.image)?;
        let old_offset = self.image.header().snapshots_offset;
        self.image.update_header(|header| {
            header.nb_snapshots = snapshots.len() as u32;
            header.snapshots_offset = offset;
        })?;
        self.image.sync()?;
        if old_length > 0 {
            self.refcounts.free(self.image, old_offset, old_length)?;
        }
        Ok(())
    }

    /// Lets go of an L1 table that nothing refers to any more, and of what is under it.
    fn drop_l1(&mut self, offset: u64, size: u32, progress: Progress<'_>) -> io::Result<()> {
        self.refer(offset, size, -1, progress)?;
        if size > 0 {
            self.refcounts.free(self.image, offset, u64::from(size) * 8)?;
        }
        self.refcounts.flush(self.image)
    }
}

/// Changes refcounts, cluster by cluster.
struct ChangeEach<'a, 'b> {
    image: &'a Image,
    refcounts: &'a mut Refcounts,
    by: i64,
    most: u64,
    done: u64,
    result: io::Result<()>,
    progress: Progress<'b>,
}

impl Visitor for ChangeEach<'_, '_> {
    fn reference(&mut self, offset: u64, length: u64, times: u32) {
        let bits = self.image.header().cluster_bits;
        for cluster in offset >> bits..(offset + length).div_ceil(1 << bits) {
            if self.result.is_err() || self.done >= self.most {
                return;
            }
            self.result = self.refcounts.change(self.image, cluster, self.by * i64::from(times));
            self.done += u64::from(self.result.is_ok());
        }
    }

    fn wrong(&mut self, _: Wrong, finding: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = Err(invalid(finding.to_string()));
        }
    }

    fn table(&mut self, done: u64, of: u64) {
        (self.progress)(done, of);
    }
}
