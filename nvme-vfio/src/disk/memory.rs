//! Registered memory: where the controller finds what this process has at an address.
//!
//! Registering and taking back are rare and take a lock; each publishes a new snapshot. A queue holds the one that it
//! last saw, and compares a number before each request: no lock, no hash, and as a rule no search on the data path.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block_core::MemoryRegion;

use crate::controller::Controller;
use crate::dma::DmaMapping;
use crate::error::Error;
use crate::transport::DmaMemory;

/// All memory that was registered with one controller, whichever disk on it was told.
pub(super) struct RegisteredMemory {
    /// Counts the snapshots.
    epoch: AtomicU64,
    state: Mutex<State>,
}

struct State {
    regions: Vec<Region>,
    snapshot: Arc<[Mapped]>,
}

struct Region {
    mapping: DmaMapping,
    /// How often it was registered: once for each disk, as a rule.
    count: usize,
}

/// A registered range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapped {
    base: usize,
    len: usize,
    iova: u64,
}

impl Mapped {
    #[inline]
    fn translate(&self, address: usize, len: usize) -> Option<u64> {
        let offset = address.wrapping_sub(self.base);
        // One comparison for both ends: an address below the range wraps to an offset past its length.
        (offset < self.len && len <= self.len - offset).then(|| self.iova + offset as u64)
    }
}

impl RegisteredMemory {
    pub(super) fn new() -> Self {
        let state = State { regions: Vec::new(), snapshot: Arc::new([]) };
        Self { epoch: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps a region for the controller, or counts once more what is mapped already.
    ///
    /// # Safety
    ///
    /// As [`block_core::Disk::register_memory`].
    pub(super) unsafe fn register(
        &self,
        controller: &Controller,
        region: &MemoryRegion<'_>,
    ) -> io::Result<()> {
        let base = NonNull::new(region.base).ok_or(io::ErrorKind::InvalidInput)?;
        let (start, len) = (region.base.addr(), region.len);
        let mut state = self.state();
        if let Some(known) = state.find(start, len) {
            known.count += 1;
            return Ok(());
        }
        let overlaps = |other: &Region| {
            let (other_start, other_len) = (other.mapping.base().addr().get(), other.mapping.len() as usize);
            start < other_start + other_len && other_start < start.saturating_add(len)
        };
        if state.regions.iter().any(overlaps) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it overlaps memory that is registered",
            ));
        }
        let memory = DmaMemory { base, len: len as u64, backing: region.backing };
        // SAFETY: the memory stays until `unregister` has returned, as the caller promises, which unmaps it.
        let mapping = unsafe { controller.map_dma(&memory) }.map_err(into_io)?;
        state.regions.push(Region { mapping, count: 1 });
        self.publish(&mut state);
        Ok(())
    }

    /// Takes one registration back. With the last one, the controller cannot reach the memory any more when this
    /// returns.
    pub(super) fn unregister(&self, base: *mut u8, len: usize) {
        let mut state = self.state();
        let Some(known) = state.find(base.addr(), len) else { return };
        known.count -= 1;
        if known.count > 0 {
            return;
        }
        let (gone, left) =
            std::mem::take(&mut state.regions).into_iter().partition(|region| region.count == 0);
        state.regions = left;
        // Queues may go on looking into an old snapshot: there is no request into this memory any more that could
        // find it there, and before there is another, at the same address, they are told of the next snapshot.
        self.publish(&mut state);
        for Region { mapping, .. } in gone {
            if let Err(error) = Region::unmap(mapping) {
                tracing::error!("{error}");
            }
        }
    }

    fn publish(&self, state: &mut State) {
        let mapped = |region: &Region| Mapped {
            base: region.mapping.base().addr().get(),
            len: region.mapping.len() as usize,
            iova: region.mapping.iova(),
        };
        let mut snapshot: Vec<Mapped> = state.regions.iter().map(mapped).collect();
        snapshot.sort_unstable_by_key(|mapped| mapped.base);
        state.snapshot = snapshot.into();
        // Whoever learns of the memory after this has returned, by whatever orders that, sees the new number.
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

impl State {
    fn find(&mut self, base: usize, len: usize) -> Option<&mut Region> {
        let same = |region: &&mut Region| {
            region.mapping.base().addr().get() == base && region.mapping.len() == len as u64
        };
        self.regions.iter_mut().find(same)
    }
}

impl Region {
    fn unmap(mapping: DmaMapping) -> Result<(), Error> {
        mapping.unmap()
    }
}

/// The driver's error as the block layer's.
pub(super) fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Transport { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}

/// A queue's view of registered memory.
pub(super) struct View {
    epoch: u64,
    mapped: Arc<[Mapped]>,
    /// Where the last address was found.
    hint: usize,
}

impl View {
    pub(super) fn new(memory: &RegisteredMemory) -> Self {
        let mut view = Self { epoch: 0, mapped: Arc::new([]), hint: 0 };
        view.take(memory);
        view
    }

    /// Sees what was registered before this request was submitted.
    #[inline]
    pub(super) fn refresh(&mut self, memory: &RegisteredMemory) {
        if self.epoch != memory.epoch.load(Ordering::Acquire) {
            self.take(memory);
        }
    }

    #[cold]
    fn take(&mut self, memory: &RegisteredMemory) {
        let state = memory.state();
        // Under the lock, the two belong together.
        self.epoch = memory.epoch.load(Ordering::Acquire);
        self.mapped = state.snapshot.clone();
    }

    /// The I/O virtual address of `len` bytes; `None`: they are not in one registered region.
    #[inline]
    pub(super) fn translate(&mut self, base: *const u8, len: usize) -> Option<u64> {
        let address = base.addr();
        if let Some(iova) = self.mapped.get(self.hint).and_then(|mapped| mapped.translate(address, len)) {
            return Some(iova);
        }
        let index = self.mapped.partition_point(|mapped| mapped.base <= address).checked_sub(1)?;
        let iova = self.mapped[index].translate(address, len)?;
        self.hint = index;
        Some(iova)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view(ranges: &[(usize, usize, u64)]) -> View {
        let mapped = ranges.iter().map(|&(base, len, iova)| Mapped { base, len, iova }).collect();
        View { epoch: 0, mapped, hint: 0 }
    }

    fn at(address: usize) -> *const u8 {
        std::ptr::without_provenance(address)
    }

    #[test]
    fn what_is_not_in_one_region_is_not_found() {
        let mut view = view(&[(0x1000, 0x2000, 0x10_0000), (0x3000, 0x1000, 0x20_0000)]);
        assert_eq!(view.translate(at(0x1000), 0x2000), Some(0x10_0000));
        assert_eq!(view.translate(at(0x2fff), 1), Some(0x10_1fff));
        assert_eq!(view.translate(at(0x3001), 0xfff), Some(0x20_0001));
        assert_eq!(view.translate(at(0x2fff), 2), None, "across two");
        assert_eq!(view.translate(at(0xfff), 1), None, "before");
        assert_eq!(view.translate(at(0x4000), 1), None, "behind");
        assert_eq!(view.translate(at(0x3fff), 2), None, "over the end");
        assert_eq!(view.translate(at(usize::MAX), usize::MAX), None, "overflowing");
    }

    proptest! {
        #[test]
        fn an_address_is_found_as_by_looking_at_each_region(
            gaps in proptest::collection::vec((0usize..3, 1usize..4), 0..6),
            looks in proptest::collection::vec((0usize..40, 0usize..6), 1..40),
        ) {
            let mut base = 0;
            let ranges: Vec<_> = gaps.iter().enumerate().map(|(i, &(gap, len))| {
                base += gap;
                let range = (base, len, 1000 * (i as u64 + 1));
                base += len;
                range
            }).collect();
            let mut view = view(&ranges);
            for (address, len) in looks {
                let expected = ranges.iter().find_map(|&(base, region, iova)| {
                    let inside = address >= base && address < base + region && address + len <= base + region;
                    inside.then(|| iova + (address - base) as u64)
                });
                prop_assert_eq!(view.translate(at(address), len), expected);
            }
        }
    }
}
