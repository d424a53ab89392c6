//! Discards: ranges are collected until the next kick, and go out as one Dataset Management command.

use nvme_spec::nvm_command::{DatasetManagement, DatasetManagementRange};

use super::limits::DiscardLimits;
use crate::namespace::Namespace;
use crate::queue_pair::{QueuePair, SubmitError};

/// Batches in flight; more wait.
const BATCHES: usize = 8;

/// The ranges of one queue.
pub(super) struct Discards {
    limits: DiscardLimits,
    /// Collected, and not sent.
    ranges: Vec<DatasetManagementRange>,
    lbas: u64,
    /// The slot of each.
    slots: Vec<u32>,
    /// The slots of the ranges in flight.
    batches: [Vec<u32>; BATCHES],
}

impl Discards {
    pub(super) fn new(limits: DiscardLimits) -> Self {
        let (ranges, slots) = (Vec::with_capacity(limits.ranges), Vec::with_capacity(limits.ranges));
        let batches = std::array::from_fn(|_| Vec::with_capacity(limits.ranges));
        Self { limits, ranges, lbas: 0, slots, batches }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many blocks the next range may have; 0: no other fits into the batch.
    pub(super) fn room(&self) -> u64 {
        if self.ranges.len() >= self.limits.ranges {
            return 0;
        }
        // Even a limit below one block must let one through.
        let left =
            if self.ranges.is_empty() { self.limits.lbas.max(1) } else { self.limits.lbas - self.lbas };
        left.min(self.limits.range_lbas.max(1).into())
    }

    /// Adds a range of a slot, of at most [`Discards::room`] blocks.
    pub(super) fn add(&mut self, slot: usize, slba: u64, lbas: u64) {
        debug_assert!(lbas <= self.room());
        self.ranges.push(DatasetManagementRange { context_attributes: 0, length_lbas: lbas as u32, slba });
        self.lbas = self.lbas.saturating_add(lbas).min(self.limits.lbas);
        self.slots.push(slot as u32);
    }

    /// A batch to send the collected ranges as, if one is free.
    pub(super) fn free_batch(&self) -> Option<usize> {
        self.batches.iter().position(Vec::is_empty)
    }

    /// Sends the collected ranges.
    pub(super) fn send(
        &mut self,
        batch: usize,
        pair: &mut QueuePair,
        namespace: &Namespace,
        token: u64,
    ) -> Result<(), SubmitError> {
        let deallocate = DatasetManagement::new().with_ad(true);
        pair.dataset_management(namespace, deallocate, &self.ranges, token)?;
        std::mem::swap(&mut self.batches[batch], &mut self.slots);
        self.ranges.clear();
        self.lbas = 0;
        Ok(())
    }

    /// The slots of a batch that has ended, one for each of its ranges; to be given back, empty.
    pub(super) fn take(&mut self, batch: usize) -> Vec<u32> {
        std::mem::take(&mut self.batches[batch])
    }

    /// Gives the room of a batch back.
    pub(super) fn give_back(&mut self, batch: usize, mut slots: Vec<u32>) {
        slots.clear();
        self.batches[batch] = slots;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.slots.clear();
        self.lbas = 0;
        self.batches.iter_mut().for_each(Vec::clear);
    }
}
