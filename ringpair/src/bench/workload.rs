//! What a row does: which operation comes next, and where on the disk.

use std::fmt;
use std::str::FromStr;

/// The pattern of a row, by fio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads, one after another.
    Read,
    /// Writes, one after another.
    Write,
    /// Both, one after another.
    Mixed,
    /// Reads anywhere.
    RandomRead,
    /// Writes anywhere.
    RandomWrite,
    /// Both, anywhere.
    RandomMixed,
}

impl Pattern {
    const NAMES: [(&'static str, Self); 6] = [
        ("read", Self::Read),
        ("write", Self::Write),
        ("rw", Self::Mixed),
        ("randread", Self::RandomRead),
        ("randwrite", Self::RandomWrite),
        ("randrw", Self::RandomMixed),
    ];

    /// Whether rows of this pattern change what is on the disk.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::RandomRead)
    }

    fn random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite | Self::RandomMixed)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, pattern)| *pattern)
            .ok_or_else(|| "expected read, write, rw, randread, randwrite or randrw".to_owned())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, pattern)| pattern == self).map_or("", |(name, _)| name);
        f.pad(name)
    }
}

/// One row's work, the same for the disk and for the limits that it is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Order and operation.
    pub pattern: Pattern,
    /// Of a mixed pattern, how many of a hundred I/Os are reads.
    pub read_percent: u8,
    /// Length of an I/O in bytes.
    pub block_size: u32,
    /// I/Os that each job keeps in flight.
    pub iodepth: u16,
    /// Threads, each with a queue pair of its own.
    pub numjobs: u16,
}

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}

/// The endless sequence of I/Os that one job of a [`Workload`] makes.
///
/// Cheap enough to stand beside a data path of a hundred nanoseconds: a multiplication and a few shifts each.
pub struct Sequence {
    state: u64,
    random: bool,
    /// Reads where a 32-bit draw is below this.
    read_below: u64,
    block_size: u64,
    first: u64,
    blocks: u64,
    next: u64,
}

impl Sequence {
    /// The I/Os of job number `job` on a disk of `capacity` bytes. Random ones go anywhere; those of sequential
    /// jobs divide the disk among them. A disk must hold at least one block for each job.
    pub fn new(workload: &Workload, capacity: u64, job: u16) -> Self {
        let block_size = u64::from(workload.block_size);
        let blocks = capacity / block_size;
        let random = workload.pattern.random();
        let jobs = u64::from(workload.numjobs.max(1));
        let (first, blocks) =
            if random { (0, blocks) } else { (blocks / jobs * u64::from(job), (blocks / jobs).max(1)) };
        let read_percent = match workload.pattern {
            Pattern::Read | Pattern::RandomRead => 100,
            Pattern::Write | Pattern::RandomWrite => 0,
            Pattern::Mixed | Pattern::RandomMixed => u64::from(workload.read_percent.min(100)),
        };
        let state = u64::from(job).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self {
            state,
            random,
            read_below: (read_percent << 32).div_ceil(100),
            block_size,
            first,
            blocks,
            next: 0,
        }
    }

    /// The next I/O: what it does, and at which byte of the disk.
    #[inline]
    pub fn next(&mut self) -> (Direction, u64) {
        // xorshift64*: no statistics are drawn from it beyond "anywhere on the disk".
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let draw = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D);
        let direction = if draw & 0xFFFF_FFFF < self.read_below { Direction::Read } else { Direction::Write };
        let block = if self.random {
            // The upper bits are the good ones; the lower 32 chose the direction.
            ((u128::from(draw) * u128::from(self.blocks)) >> 64) as u64
        } else {
            let block = self.next;
            self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
            self.first + block
        };
        (direction, block * self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pattern: Pattern) -> Workload {
        Workload { pattern, read_percent: 70, block_size: 4096, iodepth: 1, numjobs: 2 }
    }

    #[test]
    fn every_name_is_read_back() {
        for (name, pattern) in Pattern::NAMES {
            assert_eq!(name.parse(), Ok(pattern));
            assert_eq!(pattern.to_string(), name);
        }
        assert!("randomread".parse::<Pattern>().is_err());
    }

    #[test]
    fn random_ios_are_aligned_inside_and_everywhere() {
        let mut sequence = Sequence::new(&workload(Pattern::RandomRead), 64 * 4096 + 100, 0);
        let mut seen = [false; 64];
        for _ in 0..4000 {
            let (direction, offset) = sequence.next();
            assert_eq!(direction, Direction::Read);
            assert_eq!(offset % 4096, 0);
            seen[(offset / 4096) as usize] = true;
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn sequential_jobs_divide_the_disk_and_wrap_around() {
        let mut second = Sequence::new(&workload(Pattern::Write), 6 * 4096, 1);
        let offsets: Vec<u64> = (0..4).map(|_| second.next().1 / 4096).collect();
        assert_eq!(offsets, [3, 4, 5, 3]);
    }

    #[test]
    fn the_mix_is_the_one_asked_for() {
        let mut sequence = Sequence::new(&workload(Pattern::RandomMixed), 1 << 30, 0);
        let reads = (0..100_000).filter(|_| sequence.next().0 == Direction::Read).count();
        assert!((69_000..71_000).contains(&reads), "{reads}");
    }
}
