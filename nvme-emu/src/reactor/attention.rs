//! Which controllers a round of a reactor looks at, so that idle ones cost the busy ones next to nothing.
//!
//! To look at a controller takes a few cache lines that are its own; with 64 of them, a round that looked at all would
//! cost more than the commands that it finds. So controllers that have something to do are *warm* and looked at in
//! every round, and become *cold* after [`PATIENCE`] rounds in which others had something to do and they had not. (A
//! round in which nobody had costs nobody anything: were it counted, all would be cold after a pause that they shared,
//! and would have to be found again one by one.) Cold ones take turns: one turn for so much work done
//! ([`WORK_PER_TURN`]), or for so many rounds without any ([`ROUNDS_PER_TURN`]). That bounds how long the first command of
//! a controller that was idle waits: for [`WORK_PER_TURN`] of others' work, times the number of cold ones. Before a
//! reactor sleeps it looks at all of them anyway.

/// Rounds with nothing, while others had something, after which a controller is cold.
const PATIENCE: u8 = 64;
/// Units of work (a command, or [`BYTES_PER_UNIT`]) of the warm ones between two turns of cold ones.
const WORK_PER_TURN: u64 = 32;
/// Bytes moved that count as a unit of work.
pub(super) const BYTES_PER_UNIT: u64 = 4096;
/// Rounds that found nothing between two turns.
const ROUNDS_PER_TURN: u64 = 4;
/// A round that found nothing, in units of work.
const IDLE_ROUND: u64 = WORK_PER_TURN / ROUNDS_PER_TURN;

/// The attention of one reactor. Controllers have numbers from 0.
#[derive(Debug, Default)]
pub(super) struct Attention {
    warm: Vec<usize>,
    /// By controller: rounds that it stays warm without work; 0: it is cold.
    patience: Vec<u8>,
    /// What a round with nothing to do costs: 1 if the last round found work, otherwise 0.
    toll: u8,
    /// Whose turn is next, if it is cold then.
    next: usize,
    /// Work done since the last turn.
    credit: u64,
}

impl Attention {
    /// One more controller.
    pub(super) fn add(&mut self) {
        self.patience.push(0);
        self.warm(self.patience.len() - 1);
    }

    /// Something happened to it.
    pub(super) fn warm(&mut self, controller: usize) {
        if std::mem::replace(&mut self.patience[controller], PATIENCE) == 0 {
            self.warm.push(controller);
        }
    }

    /// The warm ones: the one at this position, counted from 0.
    #[inline]
    pub(super) fn at(&self, position: usize) -> Option<usize> {
        self.warm.get(position).copied()
    }

    /// The one at this position was looked at, and had something to do or not. Says where the next one is.
    #[inline]
    pub(super) fn looked(&mut self, position: usize, busy: bool) -> usize {
        let patience = &mut self.patience[self.warm[position]];
        *patience = if busy { PATIENCE } else { *patience - self.toll };
        if *patience == 0 {
            self.warm.swap_remove(position);
            return position;
        }
        position + 1
    }

    /// After a round with so much work (0: it found nothing): how many turns there are for cold ones.
    #[inline]
    pub(super) fn turns(&mut self, work: u64) -> usize {
        self.toll = u8::from(work > 0);
        let cold = self.patience.len() - self.warm.len();
        if cold == 0 {
            return 0;
        }
        self.credit += if work == 0 { IDLE_ROUND } else { work };
        if self.credit < WORK_PER_TURN {
            return 0;
        }
        let turns = (self.credit / WORK_PER_TURN).min(cold as u64);
        self.credit %= WORK_PER_TURN;
        turns as usize
    }

    /// The cold one whose turn it is.
    pub(super) fn next_cold(&mut self) -> Option<usize> {
        for _ in 0..self.patience.len() {
            let controller = self.next;
            self.next = if controller + 1 < self.patience.len() { controller + 1 } else { 0 };
            if self.patience[controller] == 0 {
                return Some(controller);
            }
        }
        None
    }

    /// The warm ones, in no order.
    pub(super) fn all_warm(&self) -> &[usize] {
        &self.warm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of `controllers` is always busy, with so much work a round; the looks at each of the others in so many rounds.
    fn looks_at_others(controllers: usize, work: u64, rounds: usize) -> Vec<usize> {
        let mut attention = Attention::default();
        (0..controllers).for_each(|_| attention.add());
        let mut looks = vec![0; controllers];
        for _ in 0..rounds {
            let mut position = 0;
            while let Some(controller) = attention.at(position) {
                looks[controller] += 1;
                position = attention.looked(position, controller == 0);
            }
            for _ in 0..attention.turns(work) {
                looks[attention.next_cold().unwrap()] += 1;
            }
        }
        looks.split_off(1)
    }

    /// One controller, which had nothing to do while others had.
    fn with_a_cold_one() -> Attention {
        let mut attention = Attention::default();
        attention.add();
        while attention.at(0).is_some() {
            attention.looked(0, false);
            attention.turns(1);
        }
        attention
    }

    #[test]
    fn a_busy_controller_among_64_pays_for_few_looks_at_the_others() {
        let looks: usize = looks_at_others(64, 1, 10_000).iter().sum();
        assert!(looks <= 63 * (usize::from(PATIENCE) + 1) + 10_000 / WORK_PER_TURN as usize, "{looks}");
    }

    #[test]
    fn every_idle_controller_has_its_turn_within_the_bound() {
        let bound = 63 * WORK_PER_TURN as usize;
        for rounds in [bound * 2, bound * 10] {
            let looks = looks_at_others(64, 1, usize::from(PATIENCE) + rounds);
            let least = looks.iter().min().unwrap() - usize::from(PATIENCE);
            assert!(least >= rounds / bound - 1, "{least} looks in {rounds} rounds");
        }
    }

    #[test]
    fn large_transfers_give_the_others_their_turn_sooner() {
        let looks = looks_at_others(64, 33 * 32, usize::from(PATIENCE) + 100);
        assert!(looks.iter().all(|&looks| looks >= usize::from(PATIENCE) + 100 * 33 / 63 - 1), "{looks:?}");
    }

    #[test]
    fn a_controller_that_something_happens_to_is_looked_at_in_every_round_again() {
        let mut attention = with_a_cold_one();
        assert_eq!(attention.next_cold(), Some(0));
        attention.warm(0);
        attention.warm(0);
        assert_eq!(attention.all_warm(), [0]);
        assert_eq!(attention.turns(1000), 0);
    }

    #[test]
    fn in_rounds_that_find_nothing_nobody_becomes_cold() {
        let rounds = 10 * usize::from(PATIENCE);
        assert_eq!(looks_at_others(64, 0, rounds), [rounds; 63]);
    }

    #[test]
    fn rounds_that_find_nothing_bring_the_cold_ones_their_turns() {
        let mut attention = with_a_cold_one();
        attention.credit = 0;
        let turns: usize = (0..4 * ROUNDS_PER_TURN).map(|_| attention.turns(0)).sum();
        assert_eq!(turns, 4);
    }
}
