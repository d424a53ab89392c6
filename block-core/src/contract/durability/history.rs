//! What was asked of a disk and what it has answered; what may be left of it.

use crate::file::CacheMode;
use crate::{RequestError, RequestResult, Unmapped};
use std::fmt;
use std::ops::Range;

/// Bytes of the smallest write, of which a medium writes all or nothing.
pub(super) const SECTOR: usize = 512;

/// What a disk promises to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing, but that what it holds was written to it, and there.
    Nothing,
    /// Completed writes with FUA, and what had completed before a flush that has completed was submitted.
    Flushed,
    /// Every completed write.
    EveryWrite,
}

impl Promise {
    /// What a cache mode promises for the power failing.
    pub const fn of(cache: CacheMode) -> Self {
        match cache {
            CacheMode::Writeback | CacheMode::None => Self::Flushed,
            CacheMode::Writethrough | CacheMode::Directsync => Self::EveryWrite,
            CacheMode::Unsafe => Self::Nothing,
        }
    }
}

/// What a request does to what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Zeroes,
    /// It may leave zeroes, or everything as it was.
    MaybeZeroes,
    /// Nothing, but what it promises.
    Flush,
    /// Nothing at all: a read, a discard that is ignored.
    Nothing,
}

/// A moment, in the order of the workload and on the clock of whoever ends the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub order: u64,
    pub clock: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub kind: Kind,
    pub sectors: Range<u64>,
    pub fua: bool,
    pub submitted: Moment,
    pub completed: Option<(Moment, RequestResult)>,
}

impl Record {
    /// When it was reported to have succeeded, unless that was after `clock`.
    fn succeeded(&self, clock: u64) -> Option<Moment> {
        self.completed
            .filter(|(moment, result)| moment.clock <= clock && result.is_ok())
            .map(|(moment, _)| moment)
    }
}

/// What a [`super::Workload`] has asked of a disk, and what it was told.
#[derive(Clone, Debug)]
pub struct History {
    pub(super) seed: u64,
    /// What the disk held before: sectors that say so, or zeroes.
    pub(super) blank: bool,
    pub(super) records: Vec<Record>,
    /// For each sector, the requests that cover it.
    pub(super) covers: Vec<Vec<u32>>,
}

/// A sector that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The sector.
    pub sector: u64,
    /// What it holds, and what it may hold.
    pub reason: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {} (byte {}): {}", self.sector, self.sector * SECTOR as u64, self.reason)
    }
}

impl std::error::Error for Loss {}

/// What is in a sector, by what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Zeroes,
    /// Of this request; 0 is what was there in the beginning, request n has the number n + 1.
    Request(u64),
    Garbage,
}

const TAG: u64 = 0x7269_6e67_7061_6972;

/// What request number `id` writes to a sector.
pub(super) fn stamp(seed: u64, id: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let words = [TAG ^ seed, id, sector, id.wrapping_mul(31) ^ sector ^ seed];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words.iter().cycle()) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn read_stamp(seed: u64, sector: u64, bytes: &[u8]) -> Found {
    if bytes.iter().all(|&byte| byte == 0) {
        return Found::Zeroes;
    }
    let id = bytes.get(8..16).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
    match id {
        Some(id) if stamp(seed, id, sector) == bytes => Found::Request(id),
        _ => Found::Garbage,
    }
}

impl History {
    pub(super) fn new(seed: u64, blank: bool, capacity: u64) -> Self {
        let sectors = (capacity / SECTOR as u64) as usize;
        Self { seed, blank, records: Vec::new(), covers: vec![Vec::new(); sectors] }
    }

    /// Notes a request that has been submitted, and gives its number.
    pub(super) fn note(&mut self, record: Record) -> usize {
        let number = self.records.len();
        if !matches!(record.kind, Kind::Flush | Kind::Nothing) {
            for sector in record.sectors.clone() {
                self.covers[sector as usize].push(number as u32);
            }
        }
        self.records.push(record);
        number
    }

    /// What a discard does to a disk of this kind.
    pub(super) fn discard(unmapped: Unmapped) -> Kind {
        match unmapped {
            Unmapped::Zeroes => Kind::Zeroes,
            Unmapped::ZeroesIfFreed | Unmapped::Unspecified => Kind::MaybeZeroes,
            Unmapped::Ignored => Kind::Nothing,
        }
    }

    /// How many requests there were.
    pub fn requests(&self) -> usize {
        self.records.len()
    }

    /// How many of them were reported to have succeeded.
    pub fn succeeded(&self) -> usize {
        self.records.iter().filter(|record| record.succeeded(u64::MAX).is_some()).count()
    }

    /// How those that failed did, in the order in which they were submitted.
    pub fn failures(&self) -> impl Iterator<Item = RequestError> {
        self.records.iter().filter_map(|record| record.completed.and_then(|(_, result)| result.err()))
    }

    /// Holds what a disk has kept against what it has promised. `clock` is when it ended, on the clock that the workload
    /// ran with; `contents` is all of the disk.
    ///
    /// # Errors
    ///
    /// The first sector that is wrong.
    pub fn check(&self, clock: u64, promise: Promise, contents: &[u8]) -> Result<(), Loss> {
        // Whatever had completed before this was submitted is flushed.
        let flushed = self
            .records
            .iter()
            .filter(|record| record.kind == Kind::Flush && record.succeeded(clock).is_some())
            .map(|record| record.submitted.order)
            .max()
            .unwrap_or(0);
        for (sector, bytes) in (0u64..).zip(contents.chunks_exact(SECTOR)) {
            let covers = self.covers.get(sector as usize).map_or(&[][..], |covers| covers);
            let found = read_stamp(self.seed, sector, bytes);
            self.check_sector(clock, promise, flushed, covers, found)
                .map_err(|reason| Loss { sector, reason })?;
        }
        Ok(())
    }

    fn check_sector(
        &self,
        clock: u64,
        promise: Promise,
        flushed: u64,
        covers: &[u32],
        found: Found,
    ) -> Result<(), String> {
        let durable = |record: &Record| {
            record.succeeded(clock).is_some_and(|completed| match promise {
                Promise::Nothing => false,
                Promise::Flushed => record.fua || completed.order < flushed,
                Promise::EveryWrite => true,
            })
        };
        let record = |number: u32| &self.records[number as usize];
        // Whatever had ended before this was submitted has been overwritten, durably.
        let floor = covers
            .iter()
            .map(|&number| record(number))
            .filter(|record| record.kind != Kind::MaybeZeroes && durable(record))
            .map(|record| record.submitted.order)
            .max();
        let current = |number: u32| {
            let Record { submitted, completed, .. } = record(number);
            submitted.clock <= clock
                && completed.is_none_or(|(completed, _)| floor.is_none_or(|floor| completed.order > floor))
        };
        let zeroes = |number: u32| record(number).kind != Kind::Write && current(number);
        let initial = floor.is_none();
        let permitted = match found {
            Found::Zeroes => initial && self.blank || covers.iter().any(|&number| zeroes(number)),
            Found::Request(0) => initial && !self.blank,
            Found::Request(id) => {
                covers.iter().any(|&n| u64::from(n) + 1 == id && record(n).kind == Kind::Write && current(n))
            }
            Found::Garbage => false,
        };
        if permitted {
            return Ok(());
        }
        let mut reason = match found {
            Found::Zeroes => "zeroes".to_owned(),
            Found::Request(0) => "what was there in the beginning".to_owned(),
            Found::Request(id) => format!("what request {} wrote", id - 1),
            Found::Garbage => "what nobody wrote there".to_owned(),
        };
        reason.push_str("; requests to it up to then:");
        for &number in covers {
            let it = record(number);
            if it.submitted.clock <= clock {
                let word = if durable(it) { " durable" } else { "" };
                reason.push_str(&format!("\n  {number}:{word} {it:?}"));
            }
        }
        Err(reason)
    }
}
