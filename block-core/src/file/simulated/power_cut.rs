//! What the medium of a simulated file may hold when the power fails.

use super::SECTOR;
use super::contents::Contents;
use super::log::{Asked, Event, Log, Operation, OperationId, Verdict};
use crate::contract::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

type Sector = [u8; SECTOR];

/// Goes through the log of a simulated file and gives, at any moment, something that its medium may hold.
pub struct PowerCut {
    operations: Vec<Operation>,
    events: Vec<(u64, Event)>,
    /// Events before this one have happened.
    at: usize,
    end: u64,
    /// As the users see the file at this moment.
    cache: Contents,
    /// What is surely on the medium, or has been and was overwritten by something that may be.
    durable: Contents,
    /// What may be on the medium instead, from the oldest to the newest: the operation that left it, and the sector.
    sectors: BTreeMap<usize, Vec<(OperationId, Box<Sector>)>>,
    /// The same of the file's length.
    lengths: Vec<(OperationId, usize)>,
    /// Operations that the next fdatasync covers.
    uncovered: BTreeSet<OperationId>,
    /// For each fdatasync under way, those that had been reported done when it was handed over.
    syncs: BTreeMap<OperationId, Vec<OperationId>>,
}

/// How much of what is not durable a power cut leaves.
enum Survivors {
    /// Nothing.
    None,
    /// All of it.
    All,
    /// Each operation as a whole or not at all, with a chance in percent.
    Operations(u64),
    /// Each sector for itself, any of the contents that it has had since.
    Sectors,
}

impl PowerCut {
    pub(super) fn new(log: &Log) -> Self {
        let (initial, operations, events) = log.record();
        Self {
            operations,
            events,
            at: 0,
            end: log.now(),
            cache: initial.clone(),
            durable: initial,
            sectors: BTreeMap::new(),
            lengths: Vec::new(),
            uncovered: BTreeSet::new(),
            syncs: BTreeMap::new(),
        }
    }

    /// The last moment.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The moments just before an `fdatasync` was reported done that had something like this to make durable: those with
    /// the most that may be on the medium or not.
    pub fn syncs(&self, wanted: impl Fn(&Asked) -> bool) -> Vec<u64> {
        let mut moments = Vec::new();
        let mut pending = false;
        for &(moment, event) in &self.events {
            let (Event::Issued(id) | Event::Applied(id) | Event::Completed(id)) = event;
            let asked = &self.operations[id].asked;
            match event {
                Event::Applied(_) => pending |= wanted(asked),
                Event::Completed(_) if *asked == Asked::Sync && std::mem::take(&mut pending) => {
                    moments.push(moment);
                }
                _ => {}
            }
        }
        moments
    }

    /// Goes on to a later moment: events before it, counted as [`super::SimulatedFile::now`] does, have happened.
    pub fn advance(&mut self, to: u64) {
        while let Some(&(moment, event)) = self.events.get(self.at)
            && moment < to
        {
            match event {
                Event::Issued(id) if self.operations[id].asked == Asked::Sync => {
                    self.syncs.insert(id, self.uncovered.iter().copied().collect());
                }
                Event::Issued(_) => {}
                Event::Applied(id) => self.apply(id),
                Event::Completed(id) => self.complete(id),
            }
            self.at += 1;
        }
    }

    fn apply(&mut self, id: OperationId) {
        let Operation { asked, verdict, data } = self.operations[id].clone();
        let before = self.cache.len();
        match asked {
            Asked::Write { offset, .. } => {
                self.cache.write(offset, &data);
                self.note(id, touched(offset, data.len() as u64));
            }
            _ if matches!(verdict, Verdict::Fail(_)) => {}
            Asked::Zero { offset, len } => {
                self.cache.zero(offset, len);
                self.note(id, touched(offset, len));
            }
            Asked::SetLen(len) => {
                // What is cut off comes back as zeroes, if ever. Nothing else was where nothing was ever written.
                let mut cut: BTreeSet<usize> =
                    touched(len, (self.cache.stored_end() as u64).saturating_sub(len)).collect();
                if (len as usize) < before {
                    cut.extend(self.sectors.range(touched(len, u64::MAX)).map(|(sector, _)| *sector));
                }
                self.cache.set_len(len as usize);
                self.note(id, cut);
            }
            Asked::Sync | Asked::Read { .. } => {}
        }
        if self.cache.len() != before {
            self.lengths.push((id, self.cache.len()));
        }
    }

    /// An operation has left these sectors as they are in the cache now.
    fn note(&mut self, id: OperationId, sectors: impl IntoIterator<Item = usize>) {
        for sector in sectors {
            let contents = Box::new(self.cache.sector(sector));
            self.sectors.entry(sector).or_default().push((id, contents));
        }
    }

    fn complete(&mut self, id: OperationId) {
        let Operation { asked, verdict, .. } = self.operations[id];
        let failed = matches!(verdict, Verdict::Fail(_));
        match asked {
            Asked::Read { .. } => {}
            Asked::Sync => {
                let covered = self.syncs.remove(&id).unwrap_or_default();
                // Interrupted, it has not even begun.
                let begun = verdict != Verdict::Fail(libc::EINTR) && verdict != Verdict::Fail(libc::EAGAIN);
                if failed && begun {
                    self.report_lost();
                } else if !failed && verdict != Verdict::Lie {
                    for id in covered {
                        if self.uncovered.remove(&id) {
                            self.settle(id);
                        }
                    }
                }
            }
            Asked::Write { dsync: true, .. } if failed => {
                if verdict == Verdict::Fail(libc::EIO) {
                    self.report_lost();
                }
            }
            Asked::Write { dsync: true, .. } if verdict != Verdict::Lie => self.settle(id),
            _ => {
                self.uncovered.insert(id);
            }
        }
    }

    /// The kernel has said that something is lost, and will not say so again.
    fn report_lost(&mut self) {
        self.uncovered.clear();
        for covered in self.syncs.values_mut() {
            covered.clear();
        }
    }

    /// An operation is durable, and with it the length that the file needs for it.
    fn settle(&mut self, id: OperationId) {
        let Operation { asked, data, .. } = &self.operations[id];
        let (offset, len) = match *asked {
            Asked::Write { offset, .. } => (offset, data.len() as u64),
            Asked::Zero { offset, len } => (offset, len),
            // And all that it has cut off.
            Asked::SetLen(len) => (len, u64::MAX),
            Asked::Sync | Asked::Read { .. } => (0, 0),
        };
        let is_write = matches!(asked, Asked::Write { .. });
        let own = self.lengths.iter().position(|(of, _)| *of == id);
        let needed = self.lengths.iter().position(|(_, length)| *length as u64 >= offset.saturating_add(len));
        let short = is_write && offset.saturating_add(len) > self.durable.len() as u64;
        if let Some(index) = own.max(needed.filter(|_| short))
            && let Some((_, length)) = self.lengths.drain(..=index).next_back()
        {
            self.durable.set_len(length);
        }
        for (&sector, versions) in self.sectors.range_mut(touched(offset, len)) {
            // What came before it in this sector cannot come back. It is not there if a later one is durable already.
            if let Some(index) = versions.iter().position(|(of, _)| *of == id)
                && let Some((_, contents)) = versions.drain(..=index).next_back()
            {
                self.durable.put(sector, &contents);
            }
        }
        self.sectors.retain(|_, versions| !versions.is_empty());
    }

    /// Something that the medium may hold if the power fails at this moment.
    pub fn contents(&self, random: &mut Random) -> Contents {
        let survivors = match random.below(10) {
            0 => Survivors::None,
            1 => Survivors::All,
            2 => Survivors::Operations(95),
            3 => Survivors::Operations(5),
            4..7 => Survivors::Operations(50),
            _ => Survivors::Sectors,
        };
        let mut survives = BTreeMap::new();
        let mut pick = |ids: &mut dyn DoubleEndedIterator<Item = OperationId>| -> Option<usize> {
            let ids: Vec<OperationId> = ids.collect();
            match survivors {
                Survivors::None => None,
                Survivors::All => ids.len().checked_sub(1),
                Survivors::Operations(percent) => {
                    ids.iter().rposition(|&id| *survives.entry(id).or_insert_with(|| random.chance(percent)))
                }
                Survivors::Sectors => (random.below(ids.len() as u64 + 1) as usize).checked_sub(1),
            }
        };
        let mut contents = self.durable.clone();
        let len = pick(&mut self.lengths.iter().map(|(id, _)| *id)).map(|index| self.lengths[index].1);
        contents.set_len(len.unwrap_or(self.durable.len()));
        for (&sector, versions) in &self.sectors {
            if let Some(index) = pick(&mut versions.iter().map(|(id, _)| *id)) {
                contents.put(sector, &versions[index].1);
            }
        }
        contents
    }
}

/// The sectors that a range of bytes touches.
fn touched(offset: u64, len: u64) -> Range<usize> {
    if len == 0 {
        return 0..0;
    }
    let end = offset.saturating_add(len);
    (offset / SECTOR as u64) as usize..end.div_ceil(SECTOR as u64) as usize
}
