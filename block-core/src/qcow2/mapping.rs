//! Where the guest's clusters are, as the data path looks it up.
//!
//! One table for a disk, read by its queues without a lock and written by whoever holds the disk's metadata. It is a cache
//! of a fixed size: pages of 512 clusters, each in one of the four places of its set. What is not in it is found out
//! beside the queues, in the image.
//!
//! An entry may be read just before it changes. What it says then stays true for as long as the reader has a request
//! under way, for clusters are only given away once the queues have let go of them: see [`super::epoch`].

use super::backing_chain::MAX_LAYERS;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// Clusters of a page, as a power of two.
const PAGE_BITS: u32 = 9;
const PAGE: usize = 1 << PAGE_BITS;
const WAYS: usize = 4;

/// Bytes of a page.
const PAGE_BYTES: u64 = (PAGE * size_of::<u64>()) as u64;

/// What a cluster of the guest is, in 64 bits: an offset in bits 9 to 55, the layer whose data file it is in above, the
/// kind below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping(u64);

/// What can be done with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody has looked.
    Unknown,
    /// It is in a data file, to be read and written there.
    Data,
    /// It is in a data file, to be read there.
    ReadOnly,
    /// It reads as zeroes.
    Zero,
    /// Only who holds the metadata can read it: it is compressed, or in pieces.
    Apart,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:#x} of layer {}", self.kind(), self.offset(), self.layer())
    }
}

const LAYER_BIT: u32 = 56;
const KIND_MASK: u64 = 7;
const OFFSET_MASK: u64 = ((1 << LAYER_BIT) - 1) & !0x1ff;

/// Any layer of a chain fits above bit 56.
const _: () = assert!(MAX_LAYERS <= 1 << (u64::BITS - LAYER_BIT));

impl Mapping {
    pub const UNKNOWN: Self = Self(0);
    pub const ZERO: Self = Self(3);
    pub const APART: Self = Self(4);

    /// Data of the topmost layer, which may be written in place. `None` if no offset is like that.
    pub fn data(offset: u64) -> Option<Self> {
        (offset & !OFFSET_MASK == 0).then_some(Self(offset | 1))
    }

    /// Data of some layer.
    pub fn read_only(layer: usize, offset: u64) -> Option<Self> {
        (offset & !OFFSET_MASK == 0 && layer < MAX_LAYERS)
            .then_some(Self((layer as u64) << LAYER_BIT | offset | 2))
    }

    #[inline]
    pub fn kind(self) -> Kind {
        match self.0 & KIND_MASK {
            0 => Kind::Unknown,
            1 => Kind::Data,
            2 => Kind::ReadOnly,
            3 => Kind::Zero,
            _ => Kind::Apart,
        }
    }

    /// Where in the layer's data file.
    #[inline]
    pub fn offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    #[inline]
    pub fn layer(self) -> usize {
        (self.0 >> LAYER_BIT) as usize
    }

    /// What the `n`th cluster after this one is, if it goes on the same way.
    #[inline]
    pub fn following(self, n: u64, cluster_bits: u32) -> Self {
        match self.kind() {
            Kind::Data | Kind::ReadOnly => Self(self.0.wrapping_add(n << cluster_bits)),
            _ => self,
        }
    }
}

/// The table.
pub(super) struct Table {
    sets: Box<[Set]>,
    entries: Box<[AtomicU64]>,
    replaced: AtomicUsize,
}

/// Which page is in which place: its number and 1, or 0 for none.
#[derive(Default)]
#[repr(align(64))]
struct Set {
    tags: [AtomicU64; WAYS],
    /// The place that goes next.
    next: AtomicUsize,
}

impl Table {
    /// What a disk of so many clusters needs to have all of them in the table, in bytes.
    pub fn bytes_for(clusters: u64) -> u64 {
        clusters.div_ceil(PAGE as u64).saturating_mul(PAGE_BYTES)
    }

    /// A table of at most `bytes` for `clusters`, but one of four pages at least.
    pub fn new(clusters: u64, bytes: u64) -> Self {
        let pages = bytes.min(Self::bytes_for(clusters)) / PAGE_BYTES;
        let sets = (pages / WAYS as u64).max(1);
        let sets = 1usize << sets.ilog2();
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            entries: zeroed(sets * WAYS * PAGE),
            replaced: AtomicUsize::new(0),
        }
    }

    /// How many bytes it may take.
    pub fn bytes(&self) -> u64 {
        (self.entries.len() * size_of::<u64>() + self.sets.len() * size_of::<Set>()) as u64
    }

    /// How many pages had to go for others.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed) as u64
    }

    #[inline]
    fn set(&self, page: u64) -> usize {
        page as usize & (self.sets.len() - 1)
    }

    /// What is known of a cluster.
    #[inline]
    pub fn get(&self, cluster: u64) -> Mapping {
        let page = cluster >> PAGE_BITS;
        let set = self.set(page);
        let tags = &self.sets[set].tags;
        for (way, tag) in tags.iter().enumerate() {
            if tag.load(Ordering::Acquire) != page + 1 {
                continue;
            }
            let at = (set * WAYS + way) << PAGE_BITS | cluster as usize & (PAGE - 1);
            let entry = self.entries[at].load(Ordering::Acquire);
            // An entry of the page that has come instead was stored after the tag had gone: whoever sees the one sees
            // the other.
            fence(Ordering::Acquire);
            return if tag.load(Ordering::Relaxed) == page + 1 { Mapping(entry) } else { Mapping::UNKNOWN };
        }
        Mapping::UNKNOWN
    }

    /// Notes what `count` clusters are, the first as said and the others as they follow; a page that has no place gets
    /// one. Only by who holds the metadata.
    pub fn set_run(&self, first: u64, count: u64, mapping: Mapping, cluster_bits: u32) {
        for n in 0..count {
            let cluster = first + n;
            if let Some(at) = self.place(cluster >> PAGE_BITS) {
                let mapping = mapping.following(n, cluster_bits);
                self.entries[at + (cluster as usize & (PAGE - 1))].store(mapping.0, Ordering::Release);
            }
        }
    }

    /// Corrects what the table says of clusters, as far as it has them. Only by who holds the metadata.
    pub fn correct(&self, first: u64, count: u64, mapping: Mapping) {
        let mut cluster = first;
        let end = first.saturating_add(count);
        while cluster < end {
            let page = cluster >> PAGE_BITS;
            let page_end = ((page + 1) << PAGE_BITS).min(end);
            if let Some(at) = self.find(page) {
                for cluster in cluster..page_end {
                    self.entries[at + (cluster as usize & (PAGE - 1))].store(mapping.0, Ordering::SeqCst);
                }
            }
            cluster = page_end;
        }
    }

    /// The clusters of the page that `cluster` is in, from `cluster` on.
    pub fn rest_of_page(cluster: u64) -> u64 {
        PAGE as u64 - (cluster & (PAGE as u64 - 1))
    }

    fn find(&self, page: u64) -> Option<usize> {
        let set = self.set(page);
        let way = self.sets[set].tags.iter().position(|tag| tag.load(Ordering::Relaxed) == page + 1)?;
        Some((set * WAYS + way) << PAGE_BITS)
    }

    fn place(&self, page: u64) -> Option<usize> {
        if let Some(at) = self.find(page) {
            return Some(at);
        }
        let index = self.set(page);
        let set = self.sets.get(index)?;
        let free = set.tags.iter().position(|tag| tag.load(Ordering::Relaxed) == 0);
        let way = free.unwrap_or_else(|| {
            self.replaced.fetch_add(1, Ordering::Relaxed);
            set.next.fetch_add(1, Ordering::Relaxed) % WAYS
        });
        let at = (index * WAYS + way) << PAGE_BITS;
        set.tags[way].store(0, Ordering::SeqCst);
        for entry in &self.entries[at..at + PAGE] {
            entry.store(0, Ordering::Release);
        }
        set.tags[way].store(page + 1, Ordering::Release);
        Some(at)
    }
}

/// Zeroes that take no memory until somebody writes to them.
fn zeroed(len: usize) -> Box<[AtomicU64]> {
    let zeroes = vec![0u64; len].into_boxed_slice();
    // SAFETY: an `AtomicU64` is laid out as a `u64`, and nobody else has the slice.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU64]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const BITS: u32 = 16;

    fn data(n: u64) -> Mapping {
        Mapping::data(n << BITS).unwrap()
    }

    #[test]
    fn a_mapping_is_what_it_was_made_of() {
        let mapping = Mapping::read_only(255, 0x00ff_ffff_ffff_fe00).unwrap();
        assert_eq!((mapping.kind(), mapping.layer()), (Kind::ReadOnly, 255));
        assert_eq!(mapping.offset(), 0x00ff_ffff_ffff_fe00);
        assert_eq!((data(3).kind(), data(3).layer(), data(3).offset()), (Kind::Data, 0, 3 << BITS));
        assert_eq!(Mapping::data(1 << 56), None);
        assert_eq!(Mapping::data(0x100), None, "in the middle of a sector");
        assert_eq!(Mapping::read_only(256, 0), None);
        assert_eq!(Mapping::ZERO.kind(), Kind::Zero);
        assert_eq!(Mapping::APART.kind(), Kind::Apart);
        assert_eq!(Mapping::UNKNOWN.kind(), Kind::Unknown);
    }

    proptest! {
        /// A cache may forget, but never says anything wrong.
        #[test]
        fn what_the_table_says_is_what_was_noted_last(
            steps in proptest::collection::vec((0u64..40_000, 1u64..600, 0u64..1000, any::<bool>()), 1..60),
            pages in 4u64..16,
        ) {
            let table = Table::new(40_000, pages * PAGE_BYTES);
            let mut model: HashMap<u64, Mapping> = HashMap::new();
            for (first, count, to, correct) in steps {
                let count = count.min(40_000 - first);
                if correct {
                    table.correct(first, count, Mapping::ZERO);
                } else {
                    table.set_run(first, count, data(to), BITS);
                }
                for n in 0..count {
                    let mapping = if correct { Mapping::ZERO } else { data(to).following(n, BITS) };
                    if !correct || model.contains_key(&(first + n)) {
                        model.insert(first + n, mapping);
                    }
                }
                if !correct {
                    let last = first + count - 1;
                    prop_assert_eq!(table.get(last), data(to).following(count - 1, BITS));
                }
            }
            for (cluster, mapping) in model {
                let found = table.get(cluster);
                prop_assert!(found == mapping || found == Mapping::UNKNOWN, "{} is {:?}", cluster, found);
            }
        }
    }

    #[test]
    fn a_table_as_large_as_the_disk_forgets_nothing() {
        let clusters = 100_000;
        let table = Table::new(clusters, u64::MAX);
        table.set_run(0, clusters, data(0), BITS);
        assert!((0..clusters).all(|n| table.get(n) == data(n) || table.replaced() > 0));
    }

    #[test]
    fn readers_never_see_a_mapping_of_another_cluster() {
        let table = Table::new(1 << 20, 4 * PAGE_BYTES);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for page in 0..8u64 {
                            let cluster = page << PAGE_BITS | 7;
                            let found = table.get(cluster);
                            assert!(found == Mapping::UNKNOWN || found == data(cluster), "{found:?}");
                        }
                    }
                });
            }
            for round in 0..20_000u64 {
                let cluster = (round % 8) << PAGE_BITS | 7;
                table.set_run(cluster, 1, data(cluster), BITS);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
