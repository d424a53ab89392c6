//! What is done to an image by whoever holds its metadata: one thread at a time, which may block.

use super::chain::{Content, Layer};
use super::disk::Shared;
use super::fault::Fault;
use super::image::{Image, MapError, Run};
use super::mailbox::{Answer, Job};
use super::mapping::{Kind, Mapping, Table};
use super::zeroed::{Fate, Waiting, Zeroed};
use crate::file::CacheMode;
use crate::file::transfer::Transfer;
use crate::image_file::ImageFile;
use crate::request::{Operation, RequestFlags};
use crate::segments;
use std::io;
use std::sync::atomic::Ordering;

/// The image file grows by this much at a time, so that the kernel has not to be asked for each cluster.
const GROWTH: u64 = 64 << 20;

/// Clusters that are given a place in one step at most.
const MAX_ALLOCATION: u64 = 4 << 20;

/// Runs that are looked up beside the one that was asked for.
const MORE_RUNS: usize = 64;

/// The layers of a disk, and what is to be done about them.
pub(super) struct Metadata {
    layers: Vec<Layer>,
    /// Size of the data file.
    data_end: u64,
    /// The end of what is in use of it.
    used_end: u64,
    zeroed: Waiting,
    /// As much metadata as there may be in memory, of each layer.
    memory_limit: u64,
    cluster: Box<[u8]>,
}

/// Tables that there is room for in memory whatever their size, so that a request does not read and write its own over and
/// over.
const MIN_TABLES: u64 = 8;

/// What a write puts into a cluster.
enum Source<'a> {
    Transfer(&'a Transfer),
    Zeroes,
}

fn corrupt(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

impl Metadata {
    pub fn new(layers: Vec<Layer>, memory_limit: u64) -> io::Result<Self> {
        let mut metadata = Self {
            layers,
            data_end: 0,
            used_end: 0,
            zeroed: Waiting::default(),
            memory_limit,
            cluster: Box::default(),
        };
        let size = metadata.data().size()?;
        let cluster = metadata.image()?.header.cluster_size();
        metadata.cluster = vec![0; cluster as usize].into_boxed_slice();
        metadata.memory_limit = memory_limit.max(MIN_TABLES * cluster);
        metadata.data_end = size;
        metadata.used_end = size.next_multiple_of(cluster);
        Ok(metadata)
    }

    /// The topmost image.
    fn image(&self) -> io::Result<&Image> {
        match self.layers.first() {
            Some(Layer { content: Content::Qcow2(image), .. }) => Ok(image),
            _ => Err(corrupt("no image")),
        }
    }

    #[cfg(feature = "contract")]
    pub fn set_fault(&self, fault: Fault) {
        self.images().for_each(|image| image.pages.faults.set(fault));
    }

    fn images(&self) -> impl Iterator<Item = &Image> {
        self.layers.iter().filter_map(|layer| match &layer.content {
            Content::Qcow2(image) => Some(&**image),
            Content::Raw(_) => None,
        })
    }

    /// The data file of the topmost image.
    fn data(&self) -> &dyn ImageFile {
        &*self.layers[0].data
    }

    pub fn pages_written(&self) -> u64 {
        self.image().map_or(0, |image| image.pages.writes())
    }

    /// Metadata in memory, our own pages and what imago may keep.
    pub fn bytes_in_memory(&self) -> u64 {
        self.images().map(|image| image.pages.dirty_bytes() + image.pages.bytes_known()).sum()
    }

    /// Does what a queue could not do, or finds out what it did not know.
    ///
    /// # Safety
    ///
    /// The job's segments are valid.
    pub unsafe fn carry_out(&mut self, shared: &Shared, job: &mut Job) -> io::Result<Answer> {
        if job.operation != Operation::Read {
            shared.writable().map_err(io::Error::from_raw_os_error)?;
        }
        let mapping = match job.operation {
            // SAFETY: handed on from the caller.
            Operation::Read => unsafe { self.read(shared, &mut job.transfer) },
            // SAFETY: as above.
            Operation::Write => unsafe { self.write(shared, &mut job.transfer) },
            Operation::WriteZeroes | Operation::Discard => {
                self.write_zeroes(shared, &mut job.transfer, job.flags)
            }
            Operation::Flush => self.flush(shared).map(|()| Mapping::UNKNOWN),
        }?;
        Ok(Answer::GoOn(mapping))
    }

    /// Keeps the metadata in memory within its limit: what has changed is written back, and then what imago knows can be
    /// forgotten.
    fn trim(&mut self, shared: &Shared) -> io::Result<()> {
        for image in self.images().skip(1) {
            if image.pages.bytes_known() > self.memory_limit {
                image.forget()?;
            }
        }
        let image = self.image()?;
        if image.pages.dirty_bytes() + image.pages.bytes_known() <= self.memory_limit {
            return Ok(());
        }
        if !shared.dirty.load(Ordering::SeqCst) {
            return image.forget();
        }
        // What can never be written back stays.
        if shared.writable().is_ok() { self.write_back(shared) } else { Ok(()) }
    }

    /// What clusters are from `first` on, at most `max` of them, and how many go on the same way.
    fn resolve(&self, shared: &Shared, first: u64, max: u64) -> io::Result<(Mapping, u64)> {
        let bits = shared.cluster_bits;
        let offset = first << bits;
        let mut len = max << bits;
        for (depth, layer) in self.layers.iter().enumerate() {
            let image = match &layer.content {
                Content::Raw(size) if offset >= *size => break,
                Content::Raw(size) => {
                    // Behind its end the file reads as zeroes.
                    let count = len.min(size - offset).div_ceil(1 << bits);
                    let mapping = Mapping::read_only(depth, offset);
                    return Ok((mapping.ok_or_else(|| corrupt("too large a file"))?, count));
                }
                Content::Qcow2(image) => image,
            };
            let size = if depth == 0 { image.whole_size() } else { image.header.size };
            if offset >= size {
                break;
            }
            let (run, found) = image.look_up(offset, len.min(size - offset))?;
            if found < 1 << bits {
                // Smaller clusters than the overlay's, or the image ends in the middle of one.
                return Ok((Mapping::APART, 1));
            }
            len = len.min(found);
            let count = len >> bits;
            let mapping = match run {
                Run::Unallocated => continue,
                Run::Zero => Some(Mapping::ZERO),
                Run::Compressed => Some(Mapping::APART),
                Run::Data { offset, ours } if depth == 0 && ours && !shared.info.read_only => image
                    .writable(offset, count << bits, self.data_end)
                    .ok()
                    .or(Mapping::read_only(0, offset)),
                Run::Data { offset, .. } => Mapping::read_only(depth, offset),
            };
            return Ok((mapping.ok_or_else(|| corrupt("data at an offset that cannot be"))?, count));
        }
        Ok((Mapping::ZERO, len >> bits))
    }

    /// What a cluster is; notes it in the table, and with it some of what follows.
    fn look_up(&self, shared: &Shared, cluster: u64) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        let end = (cluster + Table::rest_of_page(cluster)).min(shared.info.capacity.div_ceil(1 << bits));
        let (mapping, count) = self.resolve(shared, cluster, end.saturating_sub(cluster).max(1))?;
        shared.table.set_run(cluster, count, mapping, bits);
        let mut next = cluster + count;
        for _ in 0..MORE_RUNS {
            if next >= end {
                break;
            }
            // Whoever asks for it learns what is wrong with it.
            let Ok((mapping, count)) = self.resolve(shared, next, end - next) else { break };
            shared.table.set_run(next, count, mapping, bits);
            next += count;
        }
        Ok(mapping)
    }

    /// Reads what is compressed or in pieces; says where the next cluster is that is not.
    unsafe fn read(&mut self, shared: &Shared, transfer: &mut Transfer) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        while transfer.left > 0 {
            if let Err(error) = self.trim(shared) {
                tracing::warn!(%error, "cannot keep the metadata within its limit");
            }
            let cluster = transfer.offset >> bits;
            let mapping = self.look_up(shared, cluster)?;
            if mapping.kind() != Kind::Apart {
                return Ok(mapping);
            }
            self.read_cluster(cluster << bits)?;
            let skip = (transfer.offset - (cluster << bits)) as usize;
            let n = (self.cluster.len() - skip).min(transfer.left as usize);
            // SAFETY: the cluster's bytes are ours; the caller vouches for the segments.
            unsafe { segments::scatter(self.cluster[skip..].as_ptr(), transfer.segments(), 0, n) };
            transfer.advance(n as u64);
        }
        Ok(Mapping::ZERO)
    }

    /// Reads a cluster of the guest's, wherever it is, into `self.cluster`.
    fn read_cluster(&mut self, offset: u64) -> io::Result<()> {
        let mut cluster = std::mem::take(&mut self.cluster);
        let result = read_layers(&self.layers, offset, &mut cluster);
        self.cluster = cluster;
        result
    }

    /// Gives what a write covers a place, as far as that can be written by the queue, and writes what cannot.
    unsafe fn write(&mut self, shared: &Shared, transfer: &mut Transfer) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        while transfer.left > 0 {
            self.trim(shared)?;
            let cluster = transfer.offset >> bits;
            let last = (transfer.offset + transfer.left - 1) >> bits;
            let max = (MAX_ALLOCATION >> bits).max(1);
            let (mapping, count) = self.resolve(shared, cluster, (last - cluster + 1).min(max))?;
            match mapping.kind() {
                Kind::Data => {
                    shared.table.set_run(cluster, count, mapping, bits);
                    return Ok(mapping);
                }
                Kind::Zero => return self.allocate(shared, cluster, count),
                _ => {}
            }
            let n = ((cluster + 1) << bits).min(transfer.offset + transfer.left) - transfer.offset;
            self.copy(shared, transfer.offset, n, &Source::Transfer(transfer))?;
            transfer.advance(n);
        }
        Ok(Mapping::ZERO)
    }

    /// Gives clusters that read as zeroes a place that does too.
    fn allocate(&mut self, shared: &Shared, cluster: u64, count: u64) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        // One by one they get the places back that they have; several get one behind the other, wherever they were.
        let range = cluster << bits..(cluster + count) << bits;
        let count = (self.zeroed.movable(&range, &shared.clock) >> bits).max(1);
        self.before_allocating(shared)?;
        // Whether it succeeds or not.
        shared.dirty.store(true, Ordering::SeqCst);
        let image = self.image()?;
        let (data_end, used_end) = (self.data_end, self.used_end);
        let mut place = Place { image, data: self.data(), data_end, used_end };
        let mapped = image.map(cluster << bits, count << bits, |host, len| {
            place.take(shared, host, len)?;
            // What lies behind the end of all that was ever used is zeroes already.
            let used = used_end.max(image.pages.end());
            let stale =
                if image.header.external_data_file() { len } else { used.saturating_sub(host).min(len) };
            if stale > 0 {
                place.data.zero_at(host, stale, false)?;
            }
            Ok(())
        });
        (self.data_end, self.used_end) = (place.data_end, place.used_end);
        let (host, len) = mapped.map_err(|error| unmapped(shared, error))?;
        let mapping = Mapping::data(host).ok_or_else(|| corrupt("data at an offset that cannot be"))?;
        shared.counters().allocated.fetch_add((len >> bits) as usize, Ordering::Relaxed);
        shared.table.set_run(cluster, len >> bits, mapping, bits);
        Ok(mapping)
    }

    /// Writes `len` bytes at `offset`, all in one cluster that is not ours to write in place: to a new one, with
    /// everything that the old one reads as.
    fn copy(&mut self, shared: &Shared, offset: u64, len: u64, source: &Source<'_>) -> io::Result<()> {
        let bits = shared.cluster_bits;
        let start = offset >> bits << bits;
        if len < 1 << bits {
            self.read_cluster(start)?;
        }
        let range = (offset - start) as usize..(offset - start + len) as usize;
        match source {
            Source::Zeroes => self.cluster[range].fill(0),
            Source::Transfer(transfer) => {
                let to = self.cluster[range].as_mut_ptr();
                // SAFETY: `to` has room for `len` bytes; the segments are those of a job under way.
                unsafe { segments::gather(transfer.segments(), 0, to, len as usize) };
            }
        }
        self.before_allocating(shared)?;
        shared.dirty.store(true, Ordering::SeqCst);
        let image = self.image()?;
        let mut place = Place { image, data: self.data(), data_end: self.data_end, used_end: self.used_end };
        let mapped = image.map(start, 1 << bits, |host, len| {
            place.take(shared, host, len)?;
            place.data.write_at(host, &self.cluster)
        });
        (self.data_end, self.used_end) = (place.data_end, place.used_end);
        let (host, _) = mapped.map_err(|error| unmapped(shared, error))?;
        let mapping = Mapping::data(host).ok_or_else(|| corrupt("data at an offset that cannot be"))?;
        shared.counters().copied.fetch_add(1, Ordering::Relaxed);
        shared.table.set_run(start >> bits, 1, mapping, bits);
        Ok(())
    }

    /// A cluster that was freed is still in use on the medium until the metadata that freed it is there too.
    fn before_allocating(&mut self, shared: &Shared) -> io::Result<()> {
        if self.image()?.pages.freed() && !shared.faults.has(Fault::FreedTakenAtOnce) {
            self.write_back(shared)
        } else {
            Ok(())
        }
    }

    /// Makes a range read as zeroes, as far as that is a matter of metadata; what is left is data of one cluster that the
    /// queue can zero where it is.
    fn write_zeroes(
        &mut self,
        shared: &Shared,
        transfer: &mut Transfer,
        flags: RequestFlags,
    ) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        let cluster_size = 1 << bits;
        while transfer.left > 0 {
            self.trim(shared)?;
            let cluster = transfer.offset >> bits;
            let end = transfer.offset + transfer.left;
            let whole_end = if end == shared.info.capacity {
                end.next_multiple_of(cluster_size)
            } else {
                end >> bits << bits
            };
            if transfer.offset == cluster << bits && whole_end > transfer.offset {
                let n = self.zero_clusters(shared, cluster, (whole_end >> bits) - cluster, flags)?;
                transfer.advance((n << bits).min(transfer.left));
                continue;
            }
            let mapping = self.look_up(shared, cluster)?;
            let n = ((cluster + 1) << bits).min(end) - transfer.offset;
            match mapping.kind() {
                Kind::Data => return Ok(mapping),
                Kind::Zero => {}
                _ => self.copy(shared, transfer.offset, n, &Source::Zeroes)?,
            }
            transfer.advance(n);
        }
        Ok(Mapping::ZERO)
    }

    /// Makes some of these clusters read as zeroes, from the first one on; says how many.
    fn zero_clusters(
        &mut self,
        shared: &Shared,
        cluster: u64,
        count: u64,
        flags: RequestFlags,
    ) -> io::Result<u64> {
        let bits = shared.cluster_bits;
        let may_unmap = flags.contains(RequestFlags::MAY_UNMAP);
        let (mapping, count) = self.resolve(shared, cluster, count)?;
        let image = self.image()?;
        match mapping.kind() {
            Kind::Zero => return Ok(count),
            Kind::Data if !image.has_zero_clusters() || image.data_file_is_raw() => {
                self.data().zero_at(mapping.offset(), count << bits, may_unmap)?;
                return Ok(count);
            }
            _ if !image.has_zero_clusters() => {
                self.copy(shared, cluster << bits, 1 << bits, &Source::Zeroes)?;
                return Ok(1);
            }
            _ => {}
        }
        self.before_allocating(shared)?;
        shared.dirty.store(true, Ordering::SeqCst);
        let zeroed = self.image()?.zero(cluster << bits, count << bits);
        let len = zeroed.inspect_err(|error| end_writing(shared, error))?;
        let count = len.div_ceil(1 << bits);
        shared.table.correct(cluster, count, Mapping::ZERO);
        let range = cluster << bits..(cluster + count) << bits;
        let fate = if may_unmap && shared.info.unmapped != crate::Unmapped::Ignored {
            let host = (mapping.kind() == Kind::Data).then_some(mapping.offset());
            shared.to_give_away.store(true, Ordering::Relaxed);
            Fate::GivenAway { host }
        } else {
            self.zeroed.forget_passed(&shared.clock);
            Fate::Stays
        };
        self.zeroed.add(range, fate, shared.clock.wind());
        Ok(count)
    }

    /// Gives away the clusters that nobody uses any more.
    pub fn give_away(&mut self, shared: &Shared) -> io::Result<()> {
        if !self.zeroed.any_to_give_away() || shared.writable().is_err() {
            return Ok(());
        }
        let passed = self.zeroed.take_passed(&shared.clock);
        shared.to_give_away.store(self.zeroed.any_to_give_away(), Ordering::Relaxed);
        for Zeroed { guest, fate, .. } in passed {
            let Fate::GivenAway { host } = fate else { continue };
            let mut at = guest.start;
            while at < guest.end {
                self.trim(shared)?;
                let image = self.image()?;
                let (run, mut len) = image.look_up(at, guest.end - at)?;
                // Unless it has been written again since.
                if run == Run::Zero {
                    shared.dirty.store(true, Ordering::SeqCst);
                    // SAFETY: no request is under way that found it in the table, and it reads as zeroes since.
                    let given = unsafe { image.give_away(at, len) };
                    len = given.inspect_err(|error| end_writing(shared, error))?;
                    let clusters = (len >> shared.cluster_bits) as usize;
                    shared.counters().given_away.fetch_add(clusters, Ordering::Relaxed);
                    if let Some(host) = host
                        && let Err(error) = self.data().zero_at(host + (at - guest.start), len, true)
                    {
                        tracing::warn!(%error, "cannot give discarded clusters back to the file system");
                    }
                }
                at += len;
            }
        }
        Ok(())
    }

    /// Makes the metadata, and all data that has been written, durable; as far as the cache mode does that.
    pub fn flush(&mut self, shared: &Shared) -> io::Result<()> {
        if shared.info.read_only {
            return Ok(());
        }
        shared.writable().map_err(io::Error::from_raw_os_error)?;
        self.give_away(shared)?;
        self.write_back(shared)
    }

    fn write_back(&mut self, shared: &Shared) -> io::Result<()> {
        shared.counters().flushes.fetch_add(1, Ordering::Relaxed);
        let durable = shared.cache != CacheMode::Unsafe;
        let image = self.image()?;
        image.write_back(self.data(), durable).inspect_err(|error| end_writing(shared, error))?;
        shared.dirty.store(false, Ordering::SeqCst);
        if image.pages.bytes_known() > self.memory_limit {
            image.forget()?;
        }
        Ok(())
    }

    /// Leaves the image as it should be found.
    pub fn close(&mut self, shared: &Shared) -> io::Result<()> {
        self.flush(shared)?;
        let image = self.image()?;
        let end = self.used_end.max(image.pages.end());
        if !image.header.external_data_file() && end < self.data_end {
            self.data().resize(end)?;
        }
        Ok(())
    }
}

/// Where new clusters go.
struct Place<'a> {
    image: &'a Image,
    data: &'a dyn ImageFile,
    data_end: u64,
    used_end: u64,
}

impl Place<'_> {
    /// Checks a place that imago has found, and makes the file long enough for it.
    fn take(&mut self, shared: &Shared, host: u64, len: u64) -> io::Result<()> {
        let bits = shared.cluster_bits;
        let end = host.checked_add(len).ok_or_else(|| corrupt("a cluster beyond the largest file"))?;
        let external = self.image.header.external_data_file();
        if !external && (host >> bits..end >> bits).any(|cluster| self.image.pages.is_metadata(cluster)) {
            let error = corrupt(format!("the cluster at {host:#x} is metadata and not counted as used"));
            end_writing(shared, &error);
            return Err(error);
        }
        if self.image.pages.freed() && !shared.faults.has(Fault::FreedTakenAtOnce) {
            // imago has freed a table while it looked for a place, which may be this very one.
            let durable = shared.cache != CacheMode::Unsafe;
            let written = self.image.write_back(self.data, durable);
            written.inspect_err(|error| end_writing(shared, error))?;
        }
        if end > self.data_end {
            let mut grown = if external { end } else { end.next_multiple_of(GROWTH) };
            self.data.resize(grown).or_else(|_| {
                grown = end;
                self.data.resize(grown)
            })?;
            self.data_end = grown;
        }
        self.used_end = self.used_end.max(end);
        Ok(())
    }
}

/// Clusters have been given no place: writing ends if the metadata is not what it was before.
fn unmapped(shared: &Shared, error: MapError) -> io::Error {
    match error {
        MapError::Data(error) => error,
        MapError::Metadata(error) => {
            end_writing(shared, &error);
            error
        }
    }
}

/// The metadata is wrong, or could not be changed or written as it should have been.
fn end_writing(shared: &Shared, error: &io::Error) {
    shared.fail(error.raw_os_error().unwrap_or(libc::EIO), error);
}

/// Reads what the guest sees through these layers.
fn read_layers(layers: &[Layer], offset: u64, into: &mut [u8]) -> io::Result<()> {
    let Some((layer, below)) = layers.split_first() else {
        into.fill(0);
        return Ok(());
    };
    let image = match &layer.content {
        Content::Raw(_) => return layer.data.read_at(offset, into),
        Content::Qcow2(image) => image,
    };
    let mut done = 0;
    while done < into.len() {
        let at = offset + done as u64;
        let rest = &mut into[done..];
        let Some(there) = image.header.size.checked_sub(at).filter(|n| *n > 0) else {
            rest.fill(0);
            return Ok(());
        };
        let (run, len) = image.look_up(at, there.min(rest.len() as u64))?;
        let piece = &mut rest[..len.min(there) as usize];
        match run {
            Run::Data { offset, .. } => layer.data.read_at(offset, piece)?,
            Run::Zero => piece.fill(0),
            Run::Unallocated => read_layers(below, at, piece)?,
            Run::Compressed => image.read_compressed(at, piece)?,
        }
        done += piece.len();
    }
    Ok(())
}
