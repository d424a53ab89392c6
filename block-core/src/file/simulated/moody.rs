//! What a medium may do to anybody at any time.

use super::SECTOR;
use super::log::{Asked, Verdict};
use crate::contract::Random;

/// A [hook](super::SimulatedFile::hook) that says `EINTR` and `EAGAIN` now and then, moves less than it was asked to, and
/// for one seed in four has no `RWF_DSYNC`. Who uses a disk sees nothing of that.
pub fn moody(seed: u64) -> impl FnMut(&Asked) -> Verdict + Send {
    let mut random = Random::new(seed ^ 0x6d6f_6f64);
    let refuses_dsync = seed % 4 == 1;
    let sector = SECTOR as u64;
    move |asked| match asked {
        Asked::Write { dsync: true, .. } if refuses_dsync => Verdict::Fail(libc::EOPNOTSUPP),
        _ if random.chance(3) => Verdict::Fail(libc::EINTR),
        Asked::Read { .. } | Asked::Write { .. } if random.chance(3) => Verdict::Fail(libc::EAGAIN),
        // Never inside a sector: guests take those to be written as a whole.
        Asked::Read { len, .. } | Asked::Write { len, .. } if *len > sector && random.chance(10) => {
            Verdict::Short((1 + random.below(*len / sector - 1)) as usize * SECTOR)
        }
        _ => Verdict::Done,
    }
}
