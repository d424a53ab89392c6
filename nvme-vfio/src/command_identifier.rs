//! Command identifiers: which are free, and what the others belong to.

use std::time::{Duration, Instant};

/// A queue's command identifiers, from 0 up. Taking and giving back are a few instructions each.
pub(crate) struct CommandIdentifiers {
    slots: Box<[Slot]>,
    /// Free identifiers, the one used last on top: its memory is in the cache.
    free: Vec<u16>,
    epoch: Instant,
}

#[derive(Clone, Copy)]
struct Slot {
    token: u64,
    in_flight: bool,
    /// When [`CommandIdentifiers::expired`] first saw it, in milliseconds since `epoch`, plus 1; 0: not yet.
    seen: u64,
}

impl CommandIdentifiers {
    pub(crate) fn new(count: u16) -> Self {
        let slots = vec![Slot { token: 0, in_flight: false, seen: 0 }; count.into()].into();
        Self { slots, free: (0..count).rev().collect(), epoch: Instant::now() }
    }

    /// How many are in flight.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The identifier that [`CommandIdentifiers::take`] will give.
    #[inline]
    pub(crate) fn next(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Takes an identifier for a command with this token.
    #[inline]
    pub(crate) fn take(&mut self, token: u64) -> Option<u16> {
        let cid = self.free.pop()?;
        self.slots[usize::from(cid)] = Slot { token, in_flight: true, seen: 0 };
        Some(cid)
    }

    /// Gives an identifier back; the token of its command, or `None` if it is not in flight.
    #[inline]
    pub(crate) fn complete(&mut self, cid: u16) -> Option<u64> {
        let slot = self.slots.get_mut(usize::from(cid)).filter(|slot| slot.in_flight)?;
        slot.in_flight = false;
        // Never more than there were at first, which is what was allocated.
        self.free.push(cid);
        Some(slot.token)
    }

    /// Looks for a command that has been in flight for `limit`, counted from the first look at it. So commands need
    /// no clock when they are submitted, and deadlines are as exact as looks are frequent.
    pub(crate) fn expired(&mut self, now: Instant, limit: Duration) -> Option<u16> {
        let now = now.saturating_duration_since(self.epoch).as_millis() as u64 + 1;
        let limit = limit.as_millis() as u64;
        for (cid, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.in_flight) {
            if slot.seen == 0 {
                slot.seen = now;
            } else if now - slot.seen.min(now) >= limit {
                return Some(cid as u16);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_flight_once_and_completes_once() {
        let mut cids = CommandIdentifiers::new(3);
        let taken: Vec<u16> = (10..13).map_while(|token| cids.take(token)).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!((cids.take(13), cids.in_flight()), (None, 3));
        assert_eq!(cids.complete(1), Some(11));
        assert_eq!(cids.complete(1), None);
        assert_eq!(cids.complete(3), None);
        assert_eq!(cids.complete(u16::MAX), None);
        assert_eq!((cids.next(), cids.take(14)), (Some(1), Some(1)));
    }

    #[test]
    fn the_deadline_counts_from_the_first_look() {
        let mut cids = CommandIdentifiers::new(2);
        let limit = Duration::from_millis(100);
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        cids.take(0);
        assert_eq!(cids.expired(at(1000), limit), None);
        cids.take(1);
        assert_eq!(cids.expired(at(1050), limit), None);
        assert_eq!(cids.expired(at(1120), limit), Some(0));
        cids.complete(0);
        assert_eq!(cids.expired(at(1120), limit), None);
        assert_eq!(cids.expired(at(1170), limit), Some(1));
    }

    #[test]
    fn an_identifier_used_again_has_a_new_deadline() {
        let mut cids = CommandIdentifiers::new(1);
        let limit = Duration::from_millis(100);
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        cids.take(0);
        cids.expired(at(0), limit);
        cids.complete(0);
        cids.take(1);
        assert_eq!(cids.expired(at(500), limit), None);
    }
}
