//! Writes, and zeroes, of parts of blocks: read the blocks at the edges, change them, write them back.
//!
//! Such a write has its blocks for itself ([`block_core::write_ranges`]) from before the first read to after the last
//! write. It goes through them window by window, each as large as bounce pages allow.

use block_core::{Operation, RequestFlags, Segment};

use super::bounce::Chain;
use super::request::{Part, Refusal};
use super::work::{Progress, Work};
use crate::queue_pair::QueuePair;

/// Whole blocks in bounce pages, of which the request covers a part.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) chain: Chain,
    /// Where it is on the disk, and its length: whole blocks.
    start: u64,
    len: usize,
    /// Where in it the request's bytes begin, and how many they are.
    lead: usize,
    bytes: usize,
    step: Step,
    /// Its commands in flight.
    pub(super) pending: u32,
}

/// What is to be done next with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Read the first block, the last block.
    Edges { head: bool, tail: bool },
    /// Write it; then it is done with.
    Written,
}

impl Window {
    /// The window at `at`, of which a request has `left` bytes; at most `most` bytes long.
    fn place(at: u64, left: u64, block: u64, most: u64) -> (u64, usize) {
        let start = at & !(block - 1);
        // Inside the disk, which consists of whole blocks.
        let end = (at + left).next_multiple_of(block);
        (start, (end - start).min(most) as usize)
    }

    fn new(chain: Chain, (start, len): (u64, usize), at: u64, left: u64, block: u64) -> Self {
        let lead = (at - start) as usize;
        let bytes = (len - lead).min(usize::try_from(left).unwrap_or(usize::MAX));
        let block = block as usize;
        let (first, end) = (lead > 0 || lead + bytes < block, lead + bytes);
        // The last block, unless it is the first.
        let tail = end < len && len > block;
        Self { chain, start, len, lead, bytes, step: Step::Edges { head: first, tail }, pending: 0 }
    }
}

impl Work {
    /// Goes on with an exclusive write as far as that is possible now.
    pub(super) fn advance_exclusive(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<Progress, Refusal> {
        let (block, zeroes_at_once) = (self.limits.block(), self.limits.write_zeroes > 0);
        loop {
            let slot = &mut self.slots[index];
            let (at, left) = (slot.offset + slot.done, slot.len - slot.done);
            let zero = slot.operation == Operation::WriteZeroes;
            let Some(window) = &mut slot.window else {
                if left == 0 {
                    return Ok(Progress::Sent);
                }
                if zero && zeroes_at_once && at & (block - 1) == 0 && left >= block {
                    self.send_zeroes(pair, index)?;
                    continue;
                }
                let most = if zero && zeroes_at_once { block } else { self.limits.max_bounce.into() };
                let place = Window::place(at, left, block, most);
                let chain = self.bounce.take(place.1).ok_or(Refusal::NoRoom)?;
                self.slots[index].window = Some(Window::new(chain, place, at, left, block));
                continue;
            };
            match window.step {
                Step::Edges { head: true, tail } => {
                    self.read_edge(pair, index, true)?;
                    self.step(index, Step::Edges { head: false, tail });
                }
                Step::Edges { head, tail: true } => {
                    self.read_edge(pair, index, false)?;
                    self.step(index, Step::Edges { head, tail: false });
                }
                _ if window.pending > 0 => return Ok(Progress::Waits),
                Step::Edges { .. } => {
                    self.write_window(pair, index, segments)?;
                    self.step(index, Step::Written);
                }
                Step::Written => {
                    slot.done += window.bytes as u64;
                    if let Some(window) = slot.window.take() {
                        self.bounce.give_back(window.chain);
                    }
                }
            }
        }
    }

    fn step(&mut self, index: usize, step: Step) {
        if let Some(window) = &mut self.slots[index].window {
            window.step = step;
            window.pending += 1;
        }
    }

    /// Reads the first or the last block of a window.
    fn read_edge(&mut self, pair: &mut QueuePair, index: usize, first: bool) -> Result<(), Refusal> {
        let Some(window) = &self.slots[index].window else { return Ok(()) };
        let block = self.limits.block() as usize;
        let at = if first { 0 } else { window.len - block };
        let start = window.start + at as u64;
        self.ranges.clear();
        self.bounce.describe(&window.chain, at, block, &mut self.ranges);
        self.send_with_part(pair, index, Operation::Read, (start, block), Part::Window)
            .map_err(|(refusal, _)| refusal)?;
        self.counters().blocks_read_to_write.add(1);
        Ok(())
    }

    /// Puts the request's bytes into a window and writes it.
    fn write_window(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let Some(window) = &slot.window else { return Ok(()) };
        // (Again, if there was no room for the command the last time: nobody else changes these pages.)
        if slot.operation == Operation::WriteZeroes {
            self.bounce.zero(&window.chain, window.lead, window.bytes);
        } else {
            // SAFETY: whoever submitted the request promises that its segments are valid until it ends.
            unsafe {
                self.bounce.fill(&window.chain, window.lead, segments, slot.done as usize, window.bytes)
            };
        }
        let (place, bytes) = ((window.start, window.len), window.bytes as u64);
        self.ranges.clear();
        self.bounce.describe(&window.chain, 0, window.len, &mut self.ranges);
        self.send_with_part(pair, index, Operation::Write, place, Part::Window)
            .map_err(|(refusal, _)| refusal)?;
        self.counters().bytes_bounced.add(bytes);
        Ok(())
    }

    /// Whether a request's writes are to be durable.
    #[inline]
    pub(super) fn fua(&self, index: usize) -> bool {
        self.limits.volatile_cache && self.slots[index].flags.contains(RequestFlags::FUA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_cover_a_request_and_read_just_the_blocks_that_it_covers_in_part(
            at in 0u64..10_000, len in 1u64..10_000, shift in 9u32..13, most_blocks in 1u64..5,
        ) {
            let block = 1u64 << shift;
            let (mut done, mut read) = (0, Vec::new());
            while done < len {
                let (at, left) = (at + done, len - done);
                let place = Window::place(at, left, block, most_blocks * block);
                let window = Window::new(Chain::default(), place, at, left, block);
                let (start, window_len) = (window.start, window.len as u64);
                prop_assert!(start % block == 0 && window_len % block == 0 && window_len <= most_blocks * block);
                prop_assert!(start + window.lead as u64 == at && window.bytes > 0);
                prop_assert!(window.lead + window.bytes <= window.len);
                let Step::Edges { head, tail } = window.step else { unreachable!() };
                read.extend(head.then_some(start));
                read.extend(tail.then_some(start + window_len - block));
                done += window.bytes as u64;
            }
            prop_assert_eq!(done, len);
            let (first, last) = (at / block * block, (at + len - 1) / block * block);
            let in_part = |start: u64| start < at || start + block > at + len;
            let mut expected = vec![first, last];
            expected.dedup();
            expected.retain(|&start| in_part(start));
            prop_assert_eq!(read, expected);
        }
    }
}
