//! The commands of a request: reads and writes of its own memory or through bounce pages, zeroes, discards.

use block_core::{Operation, RequestFlags, Segment};

use super::request::{Part, Refusal, token};
use super::work::{MAX_PIECES, Work};
use crate::dma::DmaRange;
use crate::queue_pair::{QueuePair, SubmitError};

impl Work {
    /// Sends the next read or write of a request, from or to its own memory if that can be.
    #[inline]
    pub(super) fn send_piece(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (at, done, left) = (slot.offset + slot.done, slot.done, slot.len - slot.done);
        let operation = slot.operation;
        let block_mask = self.limits.block() - 1;
        let whole = left & !block_mask;
        if at & block_mask == 0 && whole > 0 {
            let len = self.limits.split(at, whole) as usize;
            if self.describe(segments, done as usize, len) {
                match self.transfer(pair, index, operation, (at, len), None) {
                    Err(SubmitError::Data(_)) => {}
                    sent => {
                        self.command(index, sent)?;
                        self.slots[index].done += len as u64;
                        self.counters.bytes_direct.add(len as u64);
                        return Ok(());
                    }
                }
            }
        }
        self.bounce_piece(pair, index, segments)
    }

    /// Finds the memory of bytes `skip..skip + len` of the segments for the controller; false: it cannot be pointed to.
    #[inline]
    pub(super) fn describe(&mut self, segments: &[Segment], skip: usize, len: usize) -> bool {
        let Self { ranges, view, .. } = self;
        ranges.clear();
        let mut found = true;
        block_core::segments::pieces(segments, skip, len, |base, n| {
            let iova = if found { view.translate(base, n) } else { None };
            let room = ranges.len() < MAX_PIECES;
            match (iova, ranges.last_mut()) {
                (Some(iova), Some(last)) if last.iova + u64::from(last.len) == iova => last.len += n as u32,
                (Some(iova), _) if room => ranges.push(DmaRange { iova, len: n as u32 }),
                _ => found = false,
            }
        });
        found
    }

    /// Sends the next read or write of a request through bounce pages.
    #[cold]
    fn bounce_piece(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        segments: &[Segment],
    ) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (operation, skip) = (slot.operation, slot.done as usize);
        let (at, left) = (slot.offset + slot.done, slot.len - slot.done);
        let block = self.limits.block();
        let start = at & !(block - 1);
        // Whole blocks around what is left, which are inside the disk.
        let around = (at + left).next_multiple_of(block) - start;
        let len = self.limits.split(start, around).min(self.limits.max_bounce) as usize;
        let lead = (at - start) as usize;
        let bytes = (len - lead).min(left as usize);
        let chain = self.bounce.take(len).ok_or(Refusal::NoRoom)?;
        if operation == Operation::Write {
            // SAFETY: whoever submitted the request promises that its segments are valid until it ends.
            unsafe { self.bounce.fill(&chain, 0, segments, skip, bytes) };
        }
        self.ranges.clear();
        self.bounce.describe(&chain, 0, len, &mut self.ranges);
        let part = match operation {
            Operation::Read => Part::Read { chain, lead, skip, len: bytes },
            _ => Part::Write { chain },
        };
        if let Err((refusal, part)) = self.send_with_part(pair, index, operation, (start, len), part) {
            self.give_back(part);
            return Err(refusal);
        }
        let slot = &mut self.slots[index];
        slot.bounced = true;
        slot.done += bytes as u64;
        self.counters.bytes_bounced.add(bytes as u64);
        Ok(())
    }

    /// Sends a read or a write of the blocks at a place, with a part; the part comes back if that fails.
    pub(super) fn send_with_part(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        operation: Operation,
        place: (u64, usize),
        part: Part,
    ) -> Result<(), (Refusal, Part)> {
        // There are as many parts as commands.
        let Some(&number) = self.free_parts.last() else { return Err((Refusal::NoRoom, part)) };
        let sent = self.transfer(pair, index, operation, place, Some(number as usize));
        if let Err(refusal) = self.command(index, sent) {
            return Err((refusal, part));
        }
        self.free_parts.pop();
        self.parts[number as usize] = part;
        Ok(())
    }

    /// Sends a read or a write of `ranges`.
    #[inline]
    fn transfer(
        &mut self,
        pair: &mut QueuePair,
        index: usize,
        operation: Operation,
        (at, len): (u64, usize),
        part: Option<usize>,
    ) -> Result<(), SubmitError> {
        let (namespace, shift) = (&self.disk.namespace, self.limits.block_shift);
        let (slba, blocks, token) = (at >> shift, (len >> shift) as u32, token(index, part));
        if operation == Operation::Read {
            pair.read(namespace, slba, blocks, &self.ranges, token)
        } else {
            pair.write(namespace, slba, blocks, &self.ranges, self.fua(index), token)
        }
    }

    /// Sends the next Write Zeroes of a request; or a write of zeroes, where the controller has no such command.
    pub(super) fn send_zeroes(&mut self, pair: &mut QueuePair, index: usize) -> Result<(), Refusal> {
        let slot = &self.slots[index];
        let (at, left) = (slot.offset + slot.done, slot.len - slot.done);
        let whole = left & !(self.limits.block() - 1);
        let (sent, len);
        if self.limits.write_zeroes > 0 {
            len = whole.min(self.limits.write_zeroes);
            let deallocate = self.limits.deallocating_zeroes && slot.flags.contains(RequestFlags::MAY_UNMAP);
            let shift = self.limits.block_shift;
            let (slba, blocks) = (at >> shift, (len >> shift) as u32);
            let fua = self.fua(index);
            sent = pair.write_zeroes(&self.disk.namespace, slba, blocks, deallocate, fua, token(index, None));
        } else {
            len = self.limits.split(at, whole).into();
            let Some(zeroes) = &self.zeroes else { return Err(Refusal::Failed(libc::EOPNOTSUPP)) };
            self.ranges.clear();
            let mut left = len as usize;
            while left > 0 {
                // The same page over and over: the controller only reads it.
                let n = left.min(zeroes.len());
                self.ranges.push(zeroes.range(0..n));
                left -= n;
            }
            sent = self.transfer(pair, index, Operation::Write, (at, len as usize), None);
        }
        self.command(index, sent)?;
        self.slots[index].done += len;
        Ok(())
    }

    /// Puts the next range of a discard to the others that wait for the kick.
    pub(super) fn collect_discard(&mut self, pair: &mut QueuePair, index: usize) -> Result<(), Refusal> {
        if self.discards.as_ref().is_some_and(|discards| discards.room() == 0) {
            self.send_discards(pair)?;
        }
        let Some(discards) = &mut self.discards else { return Err(Refusal::Failed(libc::EOPNOTSUPP)) };
        let slot = &mut self.slots[index];
        let shift = self.limits.block_shift;
        let lbas = ((slot.len - slot.done) >> shift).min(discards.room());
        discards.add(index, (slot.offset + slot.done) >> shift, lbas);
        slot.done += lbas << shift;
        slot.outstanding += 1;
        Ok(())
    }

    /// Sends the ranges that wait; what does not go out now does with one of the next polls.
    pub(super) fn kick_discards(&mut self, pair: &mut QueuePair) {
        self.discards_are_late = self.send_discards(pair).is_err();
    }

    /// Sends the ranges that wait, if there are any.
    fn send_discards(&mut self, pair: &mut QueuePair) -> Result<(), Refusal> {
        let Some(discards) = self.discards.as_mut().filter(|discards| !discards.is_empty()) else {
            return Ok(());
        };
        let (Some(batch), Some(&number)) = (discards.free_batch(), self.free_parts.last()) else {
            return Err(Refusal::NoRoom);
        };
        let sent = discards.send(batch, pair, &self.disk.namespace, token(0, Some(number as usize)));
        self.note_sent(sent)?;
        self.free_parts.pop();
        self.parts[number as usize] = Part::Discard { batch };
        Ok(())
    }

    /// Notes that a command of a request was sent, or not.
    #[inline]
    pub(super) fn command(&mut self, index: usize, sent: Result<(), SubmitError>) -> Result<(), Refusal> {
        self.note_sent(sent)?;
        self.slots[index].outstanding += 1;
        Ok(())
    }

    #[inline]
    fn note_sent(&mut self, sent: Result<(), SubmitError>) -> Result<(), Refusal> {
        match sent {
            Ok(()) => {
                self.sent = true;
                self.counters.commands.add(1);
                Ok(())
            }
            Err(SubmitError::Full) => Err(Refusal::NoRoom),
            Err(error) => Err(self.refused(error)),
        }
    }

    #[cold]
    fn refused(&self, error: SubmitError) -> Refusal {
        if !matches!(error, SubmitError::Fault(_)) {
            tracing::error!("{}: {error}", self.drive.controller().name());
        }
        Refusal::Failed(libc::EIO)
    }
}
