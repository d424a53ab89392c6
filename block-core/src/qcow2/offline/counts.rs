//! How often each cluster is referred to, counted in bounded memory.
//!
//! Clusters are counted in chunks, and only chunks that something refers to are there. When there are more than the
//! limit, those of the highest clusters are dropped, and the metadata is walked once more for what was dropped: each pass
//! has the next so many chunks, from the lowest cluster up.

use std::collections::BTreeMap;

/// Clusters of a chunk.
pub(super) const CHUNK: u64 = 512;

/// Chunks in memory at once: 128 MiB, for 2 TiB of 64 KiB clusters in a pass.
const LIMIT: usize = 64 << 10;

/// References of a pass.
pub(super) struct Counts {
    from: u64,
    until: u64,
    limit: usize,
    chunks: BTreeMap<u64, Box<[u32; CHUNK as usize]>>,
}

impl Counts {
    /// The first pass.
    pub fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    pub fn with_limit(limit: usize) -> Self {
        Self { from: 0, until: u64::MAX, limit: limit.max(1), chunks: BTreeMap::new() }
    }

    /// Counts references to clusters, as far as they are this pass's.
    pub fn add(&mut self, first: u64, clusters: u64, times: u32) {
        let mut at = first.max(self.from);
        let end = first.saturating_add(clusters);
        while at < end.min(self.until) {
            let chunk = at / CHUNK;
            let stop = end.min((chunk + 1).saturating_mul(CHUNK));
            if let Some(counts) = self.chunk(chunk) {
                for cluster in at..stop {
                    let count = &mut counts[(cluster % CHUNK) as usize];
                    *count = count.saturating_add(times);
                }
            }
            at = stop;
        }
    }

    fn chunk(&mut self, chunk: u64) -> Option<&mut [u32; CHUNK as usize]> {
        if !self.chunks.contains_key(&chunk) {
            if self.chunks.len() >= self.limit {
                let highest = *self.chunks.last_key_value()?.0;
                self.until = highest.max(chunk) * CHUNK;
                if chunk > highest {
                    return None;
                }
                self.chunks.pop_last();
            }
            self.chunks.insert(chunk, Box::new([0; CHUNK as usize]));
        }
        self.chunks.get_mut(&chunk).map(|counts| &mut **counts)
    }

    /// The references to a cluster of this pass.
    pub fn get(&self, cluster: u64) -> u32 {
        self.chunks.get(&(cluster / CHUNK)).map_or(0, |counts| counts[(cluster % CHUNK) as usize])
    }

    /// The clusters that this pass has counted.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.from..self.until
    }

    /// The first clusters of the chunks that something refers to.
    pub fn chunks(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.keys().map(|chunk| chunk * CHUNK)
    }

    /// The next pass, if one is needed.
    pub fn next(mut self) -> Option<Self> {
        if self.until == u64::MAX {
            return None;
        }
        self.chunks.clear();
        Some(Self { from: self.until, until: u64::MAX, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn every_reference_is_counted_in_one_pass(
            references in proptest::collection::vec((0u64..20_000, 1u64..1500, 1u32..4), 0..40),
            limit in 1usize..5,
        ) {
            let mut model = HashMap::<u64, u32>::new();
            for (first, clusters, times) in &references {
                for cluster in *first..first + clusters {
                    *model.entry(cluster).or_default() += times;
                }
            }
            let mut counted = 0;
            let mut pass = Some(Counts::with_limit(limit));
            while let Some(mut counts) = pass {
                for (first, clusters, times) in &references {
                    counts.add(*first, *clusters, *times);
                }
                prop_assert!(counts.chunks.len() <= limit);
                prop_assert_eq!(counts.range().start, counted);
                for cluster in counts.range().start..counts.range().end.min(25_000) {
                    prop_assert_eq!(counts.get(cluster), model.get(&cluster).copied().unwrap_or(0));
                }
                counted = counts.range().end;
                pass = counts.next();
            }
            prop_assert_eq!(counted, u64::MAX);
        }
    }
}
