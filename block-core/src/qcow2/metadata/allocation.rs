//! Writes to clusters that have no place of their own yet.

use super::{Metadata, corrupt, end_writing};
use crate::file::CacheMode;
use crate::file::transfer::Transfer;
use crate::image_file::ImageFile;
use crate::qcow2::disk::Shared;
use crate::qcow2::fault::Fault;
use crate::qcow2::image::{Image, MapError};
use crate::qcow2::mapping::{Kind, Mapping};
use crate::segments;
use std::io;
use std::sync::atomic::Ordering;

/// The image file grows by this much at a time, so that the kernel has not to be asked for each cluster.
const GROWTH: u64 = 64 << 20;

/// Clusters that are given a place in one step at most.
const MAX_ALLOCATION: u64 = 4 << 20;

/// What a write puts into a cluster.
pub(super) enum Source<'a> {
    Transfer(&'a Transfer),
    Zeroes,
}

impl Metadata {
    /// Gives what a write covers a place, as far as that can be written by the queue, and writes what cannot.
    pub(super) unsafe fn write(&mut self, shared: &Shared, transfer: &mut Transfer) -> io::Result<Mapping> {
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
    pub(super) fn copy(
        &mut self,
        shared: &Shared,
        offset: u64,
        len: u64,
        source: &Source<'_>,
    ) -> io::Result<()> {
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
    pub(super) fn before_allocating(&mut self, shared: &Shared) -> io::Result<()> {
        if shared.faults.has(Fault::FreedTakenAtOnce) {
            return Ok(());
        }
        if self.image()?.frees_a_cluster()? { self.write_back(shared) } else { Ok(()) }
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
