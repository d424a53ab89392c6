//! Command identifiers: which are free, and what the others belong to.

use crate::deadline::Stage;

/// A queue's command identifiers. Taking and giving back are a few instructions each.
///
/// An identifier is an index, from 0 up, and above it a tag that is another one each time that the index is used. So a
/// second completion of a command that has ended is not taken for that of the next one, even though the index is in use
/// again; it takes as many uses of the same index as there are tags until that could go wrong (256 for a queue of 128).
pub(crate) struct CommandIdentifiers {
    slots: Box<[Slot]>,
    /// Free indexes, the one used last on top: its memory is in the cache.
    free: Vec<u16>,
    index_bits: u32,
    /// Tags go from 0 to one less than this. FFFFh, which stands for "no command" in the error log, is no identifier.
    tags: u16,
}

#[derive(Clone, Copy)]
struct Slot {
    token: u64,
    /// The identifier, in use or the next one to be.
    cid: u16,
    in_flight: bool,
    stage: Stage,
}

impl CommandIdentifiers {
    /// For up to `count` (1 to 65,535) commands in flight.
    pub(crate) fn new(count: u16) -> Self {
        let index_bits = 16 - count.saturating_sub(1).leading_zeros();
        let tags = ((1_u32 << (16 - index_bits)) - 1).max(1) as u16;
        let slot = |cid| Slot { token: 0, cid, in_flight: false, stage: Stage::Unseen };
        Self { slots: (0..count).map(slot).collect(), free: (0..count).rev().collect(), index_bits, tags }
    }

    /// How many are in flight.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The index of the identifier that [`CommandIdentifiers::take`] will give.
    #[inline]
    pub(crate) fn next(&self) -> Option<usize> {
        self.free.last().map(|index| usize::from(*index))
    }

    /// Takes an identifier for a command with this token; its index, and itself.
    #[inline]
    pub(crate) fn take(&mut self, token: u64) -> Option<(usize, u16)> {
        let index = usize::from(self.free.pop()?);
        let slot = &mut self.slots[index];
        (slot.token, slot.in_flight, slot.stage) = (token, true, Stage::Unseen);
        Some((index, slot.cid))
    }

    /// The index in an identifier, which may be one that nobody has.
    #[inline]
    fn index(&self, cid: u16) -> usize {
        usize::from(cid) & ((1 << self.index_bits) - 1)
    }

    /// Gives an identifier back; the token of its command, or `None` if it is not in flight.
    #[inline]
    pub(crate) fn complete(&mut self, cid: u16) -> Option<u64> {
        let index = self.index(cid);
        let slot = self.slots.get_mut(index).filter(|slot| slot.in_flight && slot.cid == cid)?;
        slot.in_flight = false;
        let token = slot.token;
        self.retag(index);
        // Never more than there were at first, which is what was allocated.
        self.free.push(index as u16);
        Some(token)
    }

    /// Gives an index another identifier: the next command's, or, of a command in flight, its own when it is sent once
    /// more.
    #[inline]
    pub(crate) fn retag(&mut self, index: usize) -> u16 {
        let slot = &mut self.slots[index];
        let tag = (u32::from(slot.cid) >> self.index_bits) + 1;
        let tag = if tag == u32::from(self.tags) { 0 } else { tag };
        slot.cid = (tag << self.index_bits) as u16 | index as u16;
        slot.stage = Stage::Unseen;
        slot.cid
    }

    /// The identifier of the command at this index, if there is one in flight.
    pub(crate) fn at(&self, index: usize) -> Option<u16> {
        self.slots.get(index).filter(|slot| slot.in_flight).map(|slot| slot.cid)
    }

    /// Whether a command with this token is in flight.
    pub(crate) fn holds(&self, token: u64) -> bool {
        self.slots.iter().any(|slot| slot.in_flight && slot.token == token)
    }

    /// Where the deadlines of the commands in flight stand.
    pub(crate) fn stages(&mut self) -> impl Iterator<Item = (u16, &mut Stage)> {
        self.slots.iter_mut().filter(|slot| slot.in_flight).map(|slot| (slot.cid, &mut slot.stage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_is_in_flight_once_and_completes_once() {
        let mut cids = CommandIdentifiers::new(3);
        let taken: Vec<_> = (10..13).map_while(|token| cids.take(token)).collect();
        assert_eq!(taken, [(0, 0), (1, 1), (2, 2)]);
        assert_eq!((cids.take(13), cids.in_flight()), (None, 3));
        assert_eq!(cids.complete(1), Some(11));
        assert_eq!(cids.complete(1), None);
        assert_eq!(cids.complete(3), None);
        assert_eq!(cids.complete(u16::MAX), None);
        assert_eq!(cids.next(), Some(1));
    }

    #[test]
    fn an_index_used_again_has_another_identifier() {
        let mut cids = CommandIdentifiers::new(128);
        let (index, first) = cids.take(0).unwrap();
        cids.complete(first);
        let (again, second) = cids.take(1).unwrap();
        assert_eq!(index, again);
        assert_ne!(first, second);
        assert_eq!(cids.complete(first), None, "a second completion of the first command");
        assert_eq!(cids.complete(second), Some(1));
    }

    #[test]
    fn a_command_sent_once_more_has_another_identifier_and_the_same_token() {
        let mut cids = CommandIdentifiers::new(4);
        let (index, first) = cids.take(7).unwrap();
        let second = cids.retag(index);
        assert_eq!(cids.at(index), Some(second));
        assert_eq!(cids.complete(first), None);
        assert_eq!(cids.complete(second), Some(7));
        assert_eq!(cids.at(index), None);
    }

    proptest! {
        #[test]
        fn identifiers_in_flight_differ_and_none_is_ffff(
            count in prop_oneof![1..40_u16, 65_500..=65_535_u16], uses in 1..600_usize
        ) {
            let mut cids = CommandIdentifiers::new(count);
            let held: Vec<u16> = (0..count.min(20)).map_while(|_| cids.take(0)).map(|(_, cid)| cid).collect();
            for (token, cid) in held.iter().enumerate() {
                prop_assert!(*cid != u16::MAX && !held[..token].contains(cid));
            }
            cids.complete(held[0]);
            for _ in 0..uses {
                let (_, cid) = cids.take(1).unwrap();
                prop_assert!(cid != u16::MAX && !held[1..].contains(&cid));
                prop_assert_eq!(cids.complete(cid), Some(1));
            }
        }
    }
}
