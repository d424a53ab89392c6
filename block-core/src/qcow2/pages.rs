//! The image's metadata on its way to the file: kept in memory as it changes, and written in an order that no loss of
//! power can turn into a corrupt image.
//!
//! imago writes its tables when it likes to and in an order that is right only if every write reaches the medium before
//! the next one. Here its writes stay in memory, page by page, and imago's reads find them there. [`Pages::write_back`]
//! then takes the image from one consistent state to the next, in steps between which the file is flushed:
//!
//! 1. refcounts, each the larger one of what it was and what it is to be;
//! 2. refcount table entries, and then the header's pointer to that table, where they have changed;
//! 3. L2 tables, and with them everything else;
//! 4. L1 table entries, where they have changed;
//! 5. refcounts as they are to be.
//!
//! Before step 3 all data that the guest or a copy-on-write has put into new clusters is on the medium too. So whatever
//! is lost, each cluster that something points to is counted and holds what it should: what a loss of power can leave
//! behind is clusters that are counted and not used.

use super::fault::{Fault, Faults, Step};
use super::layout::{Header, L1Entry, refcount};
use crate::image_file::ImageFile;
use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The largest page, as a power of two; smaller where clusters are.
const MAX_PAGE_BITS: u32 = 12;

/// The most bytes that are written in one call.
const MAX_WRITE: usize = 1 << 20;

/// The image's metadata: the file, and what is not in it yet.
pub(super) struct Pages {
    file: Arc<dyn ImageFile>,
    header: Header,
    page_bits: u32,
    state: Mutex<State>,
    dirty: AtomicUsize,
    /// A cluster may have been freed that is still in use on the medium.
    freed: AtomicBool,
    /// Bytes that imago has read, or that were written back for it, and so may keep.
    known: AtomicU64,
    writes: AtomicU64,
    /// The end of the last page that was ever written.
    end: AtomicU64,
    pub faults: Faults,
}

/// The number of a page, and what it is to be.
type Page<'a> = (u64, Cow<'a, [u8]>);

struct State {
    dirty: BTreeMap<u64, Box<[u8]>>,
    /// Those with refcounts that have changed since somebody looked for clusters that are not in use any more.
    recounted: BTreeSet<u64>,
    tables: Tables,
    /// Clusters that hold metadata, for nobody to take them for data.
    metadata: HashSet<u64>,
    /// The refcount table or the header has changed: `tables` has to be found out again.
    moved: bool,
    /// Where the refcount table is to be.
    refcount_table: Range<u64>,
}

/// Where the tables are that have a place in the order.
#[derive(Clone, Default)]
struct Tables {
    refcount_table: Range<u64>,
    refcount_blocks: HashSet<u64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Pages {
    /// The metadata of an image with this header.
    pub fn open(file: Arc<dyn ImageFile>, header: &Header) -> io::Result<Self> {
        let pages = Self {
            file,
            header: header.clone(),
            page_bits: header.cluster_bits.min(MAX_PAGE_BITS),
            state: Mutex::new(State {
                dirty: BTreeMap::new(),
                recounted: BTreeSet::new(),
                tables: Tables::default(),
                metadata: HashSet::new(),
                moved: false,
                refcount_table: 0..0,
            }),
            dirty: AtomicUsize::new(0),
            freed: AtomicBool::new(false),
            known: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            end: AtomicU64::new(0),
            faults: Faults::default(),
        };
        if !pages.file.info().read_only {
            let mut state = locked(&pages.state);
            pages.find_tables(&mut state)?;
            pages.find_metadata(&mut state)?;
            drop(state);
        }
        Ok(pages)
    }

    /// The file.
    pub fn file(&self) -> &Arc<dyn ImageFile> {
        &self.file
    }

    /// How many bytes are waiting to be written.
    pub fn dirty_bytes(&self) -> u64 {
        (self.dirty.load(Ordering::Relaxed) as u64) << self.page_bits
    }

    /// Bytes of metadata that are in the file, and that imago has met since it was last asked to forget: as much as it may
    /// keep of them.
    pub fn bytes_known(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }

    /// imago keeps nothing any more.
    pub fn forget_bytes_known(&self) {
        self.known.store(0, Ordering::Relaxed);
    }

    /// The end of all metadata that has been written, in whole clusters.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// How many pages have been written.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Notes that references to clusters are about to go.
    pub fn freeing(&self) {
        self.freed.store(true, Ordering::Relaxed);
    }

    /// Notes that everything that has gone so far has been looked for by [`Pages::frees_a_cluster`].
    pub fn looked_at(&self) {
        self.freed.store(false, Ordering::Relaxed);
    }

    /// Whether the refcounts here free a cluster that, by the file's, is in use: of those that have changed since this last
    /// said no.
    pub fn frees_a_cluster(&self) -> io::Result<bool> {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        if state.moved {
            // Which pages have refcounts is found out when they are written back.
            return Ok(true);
        }
        let order = self.header.refcount_order;
        let mut was = vec![0; 1 << self.page_bits];
        for number in &state.recounted {
            let Some(page) = state.dirty.get(number) else { continue };
            self.file.read_at(number << self.page_bits, &mut was)?;
            let free =
                |index| refcount::get(&was, index, order) > 0 && refcount::get(page, index, order) == 0;
            if (0..(page.len() << 3) >> order).any(free) {
                return Ok(true);
            }
        }
        state.recounted.clear();
        Ok(false)
    }

    /// Whether a cluster may have been freed whose old use is still on the medium: then none may be taken.
    pub fn freed(&self) -> bool {
        self.freed.load(Ordering::Relaxed)
    }

    /// Whether a cluster of the file holds metadata.
    pub fn is_metadata(&self, cluster: u64) -> bool {
        locked(&self.state).metadata.contains(&cluster)
    }

    /// What imago reads, and may keep.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.known.fetch_add(into.len() as u64, Ordering::Relaxed);
        self.look(offset, into)
    }

    /// What somebody reads who keeps nothing of it.
    pub fn look(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_through(&locked(&self.state), offset, into)
    }

    fn read_through(&self, state: &State, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, into)?;
        let end = offset.saturating_add(into.len() as u64);
        let pages = offset >> self.page_bits..=end >> self.page_bits;
        for (&number, page) in state.dirty.range(pages) {
            let start = number << self.page_bits;
            let (from, to) = (start.max(offset), (start + page.len() as u64).min(end));
            if from < to {
                into[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }

    /// What imago writes.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let bits = self.header.cluster_bits;
        let end =
            offset.checked_add(data.len() as u64).ok_or_else(|| invalid("a write past all files".into()))?;
        if offset >> bits == 0 {
            // Its first cluster is the header's: a refcount that says otherwise is wrong.
            if offset != 0 || data.len() > 104 {
                return Err(invalid("the header's cluster is not counted".into()));
            }
            state.moved = true;
            if let Some(fields) = data.get(48..60) {
                self.move_refcount_table(state, self.refcount_table(fields)?);
            }
        }
        if offset < state.tables.refcount_table.end && end > state.tables.refcount_table.start {
            state.moved = true;
        }
        state.metadata.extend(offset >> bits..=(end.saturating_sub(1)) >> bits);
        self.end.fetch_max(end.next_multiple_of(1 << bits), Ordering::Relaxed);
        let mut at = offset;
        while at < end {
            let number = at >> self.page_bits;
            let start = number << self.page_bits;
            let n = (start + (1 << self.page_bits)).min(end) - at;
            let from = &data[(at - offset) as usize..(at - offset + n) as usize];
            let (page, is_new) = match state.dirty.entry(number) {
                Entry::Occupied(entry) => (entry.into_mut(), false),
                Entry::Vacant(entry) => {
                    let mut page = vec![0; 1 << self.page_bits].into_boxed_slice();
                    if n < 1 << self.page_bits {
                        self.file.read_at(start, &mut page)?;
                    }
                    (entry.insert(page), true)
                }
            };
            let place = &mut page[(at - start) as usize..(at - start + n) as usize];
            // imago writes whole blocks, whatever has changed in them.
            if state.tables.refcount_blocks.contains(&(at >> bits)) && (is_new || place != from) {
                state.recounted.insert(number);
            }
            place.copy_from_slice(from);
            at += n;
        }
        self.dirty.store(state.dirty.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Where the header's fields say that the refcount table is.
    fn refcount_table(&self, fields: &[u8]) -> io::Result<Range<u64>> {
        let (offset, clusters) = fields.split_at(8);
        let offset = u64::from_be_bytes(offset.try_into().unwrap_or_default());
        let clusters = u32::from_be_bytes(clusters.try_into().unwrap_or_default());
        let len = u64::from(clusters) << self.header.cluster_bits;
        if len > super::layout::MAX_REFCOUNT_TABLE_SIZE {
            return Err(invalid("the refcount table is too large".into()));
        }
        Ok(offset..offset.saturating_add(len))
    }

    /// The refcount table is to be somewhere else: where it was is for others, and what has not been written of it yet never
    /// will be.
    fn move_refcount_table(&self, state: &mut State, to: Range<u64>) {
        let from = std::mem::replace(&mut state.refcount_table, to);
        if from.start != state.refcount_table.start {
            let bits = self.header.cluster_bits;
            for cluster in from.start >> bits..from.end >> bits {
                state.metadata.remove(&cluster);
            }
            let pages = from.start >> self.page_bits..from.end >> self.page_bits;
            state.dirty.retain(|page, _| !pages.contains(page));
        }
    }

    /// Finds the refcount table and its blocks, as they will be.
    fn find_tables(&self, state: &mut State) -> io::Result<()> {
        let mut fields = [0; 12];
        self.read_through(state, 48, &mut fields)?;
        let range = self.refcount_table(&fields)?;
        let mut table = vec![0; (range.end - range.start) as usize];
        self.read_through(state, range.start, &mut table)?;
        let blocks = table.as_chunks::<8>().0.iter();
        let blocks = blocks.filter_map(|raw| refcount::TableEntry(u64::from_be_bytes(*raw)).block_offset());
        state.tables = Tables {
            refcount_table: range.clone(),
            refcount_blocks: blocks.map(|block| block >> self.header.cluster_bits).collect(),
        };
        state.metadata.extend(state.tables.refcount_blocks.iter().copied());
        state.refcount_table = range;
        state.moved = false;
        Ok(())
    }

    /// Finds what the image has for metadata when it is opened.
    fn find_metadata(&self, state: &mut State) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let l1_bytes = u64::from(self.header.l1_size) * 8;
        let mut clusters = |offset: u64, len: u64| {
            let end = offset.saturating_add(len).div_ceil(1 << bits);
            state.metadata.extend(offset >> bits..end);
        };
        clusters(0, 1);
        clusters(self.header.l1_table_offset, l1_bytes);
        let table = state.tables.refcount_table.clone();
        clusters(table.start, table.end - table.start);
        if self.header.nb_snapshots > 0 {
            // The rest of it is counted, or a check finds it.
            clusters(self.header.snapshots_offset, 1);
        }
        let mut l1 = vec![0; l1_bytes as usize];
        self.read_through(state, self.header.l1_table_offset, &mut l1)?;
        let tables = l1.as_chunks::<8>().0.iter();
        let tables = tables.filter_map(|raw| L1Entry(u64::from_be_bytes(*raw)).l2_table_offset());
        state.metadata.extend(tables.map(|offset| offset >> bits));
        Ok(())
    }

    /// Writes everything to the file, in order. With `durable` it is on the medium when this returns, and so is all data
    /// that was written before.
    ///
    /// The caller lets nobody change the image until it returns. After an error, what has not been written is still
    /// here, and the medium still consistent.
    pub fn write_back(&self, data_file: &dyn ImageFile, durable: bool) -> io::Result<()> {
        let external = durable && !self.same_file(data_file) && !self.faults.has(Fault::DataFileForgotten);
        let too_late = self.faults.has(Fault::MetadataBeforeDataFile);
        if external && !too_late {
            data_file.flush()?;
        }
        self.write_dirty(durable)?;
        if external && too_late { data_file.flush() } else { Ok(()) }
    }

    /// Writes everything to the file, in order; with `durable` it is on the medium when this returns.
    fn write_dirty(&self, durable: bool) -> io::Result<()> {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let file_first = self.faults.has(Fault::MetadataAfterFile);
        let barrier = |file: &dyn ImageFile| if durable && !file_first { file.flush() } else { Ok(()) };
        if state.dirty.is_empty() {
            self.freed.store(false, Ordering::Relaxed);
            return barrier(&*self.file);
        }
        if durable && file_first {
            self.file.flush()?;
        }
        let before = state.tables.clone();
        if state.moved {
            self.find_tables(state)?;
        }
        let mut steps = self.steps(state, &before)?;
        if self.faults.has(Fault::StepsReversed) {
            steps.reverse();
        }
        for (step, pages) in steps {
            let needed = match step {
                Step::Refcounts => false,
                // Before it, what the caller was promised has been done.
                Step::LoweredRefcounts => true,
                _ => !pages.is_empty(),
            };
            if needed && !self.faults.has(Fault::NoBarrierBefore(step)) {
                barrier(&*self.file)?;
            }
            self.write_pages(pages.iter().map(|(number, page)| (*number, &**page)))?;
        }
        self.known.fetch_add(self.dirty_bytes(), Ordering::Relaxed);
        state.dirty.clear();
        state.recounted.clear();
        self.dirty.store(0, Ordering::Relaxed);
        self.freed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What each step writes; `before` are the tables that the file has.
    fn steps<'a>(&self, state: &'a State, before: &Tables) -> io::Result<[(Step, Vec<Page<'a>>); 6]> {
        let l1 =
            self.header.l1_table_offset..self.header.l1_table_offset + u64::from(self.header.l1_size) * 8;
        let mut steps = Step::ALL.map(|step| (step, Vec::new()));
        for (&number, page) in &state.dirty {
            let start = number << self.page_bits;
            let inside =
                |range: &Range<u64>| range.start < start + (1 << self.page_bits) && start < range.end;
            let cluster = start >> self.header.cluster_bits;
            let mut add = |step: Step, page| steps[step as usize].1.push((number, page));
            if state.tables.refcount_blocks.contains(&cluster) {
                if before.refcount_table.contains(&start) {
                    return Err(invalid("refcounts where the file still has its refcount table".into()));
                }
                // A block that the file does not know yet has nothing to be compared with.
                let known = before.refcount_blocks.contains(&cluster);
                let lowers = known && !self.faults.has(Fault::RefcountsLoweredFirst);
                match if lowers { self.larger(page, number)? } else { None } {
                    Some(larger) => {
                        add(Step::Refcounts, Cow::Owned(larger.into_vec()));
                        add(Step::LoweredRefcounts, Cow::Borrowed(&**page));
                    }
                    None => add(Step::Refcounts, Cow::Borrowed(&**page)),
                }
            } else {
                let step = if inside(&state.tables.refcount_table) {
                    Step::RefcountTable
                } else if number == 0 {
                    Step::Header
                } else if inside(&l1) {
                    Step::L1Table
                } else {
                    Step::L2Tables
                };
                add(step, Cow::Borrowed(&**page));
            }
        }
        Ok(steps)
    }

    fn same_file(&self, other: &dyn ImageFile) -> bool {
        std::ptr::addr_eq(&raw const *self.file, other)
    }

    /// A page of refcounts, each the larger one of the file's and the new one. `None` if that is the new page.
    fn larger(&self, new: &[u8], number: u64) -> io::Result<Option<Box<[u8]>>> {
        let mut merged = vec![0; new.len()].into_boxed_slice();
        self.file.read_at(number << self.page_bits, &mut merged)?;
        let order = self.header.refcount_order;
        let mut lowered = false;
        for index in 0..(new.len() << 3) >> order {
            let (was, is) = (refcount::get(&merged, index, order), refcount::get(new, index, order));
            if was > is {
                lowered = true;
            } else if was < is && !refcount::set(&mut merged, index, order, is) {
                return Err(invalid("a refcount that cannot be".into()));
            }
        }
        Ok(lowered.then_some(merged))
    }

    /// Writes pages, in ascending order, with as few calls as they are contiguous.
    fn write_pages<'a>(&self, pages: impl Iterator<Item = (u64, &'a [u8])>) -> io::Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut next = 0;
        for (number, page) in pages {
            if !run.is_empty() && (number != next || run.len() >= MAX_WRITE) {
                self.write_run(next, &mut run)?;
            }
            run.extend_from_slice(page);
            next = number + 1;
        }
        self.write_run(next, &mut run)
    }

    /// Writes the pages before `next`.
    fn write_run(&self, next: u64, run: &mut Vec<u8>) -> io::Result<()> {
        if !run.is_empty() {
            self.writes.fetch_add((run.len() >> self.page_bits) as u64, Ordering::Relaxed);
            self.file.write_at((next << self.page_bits) - run.len() as u64, run)?;
            run.clear();
        }
        Ok(())
    }
}
