//! Requests that go piece by piece, as their clusters lie, and wait for what the table does not say.

use super::Qcow2Queue;
use crate::qcow2::mailbox::Answer;
use crate::qcow2::mapping::{Kind, Mapping};
use crate::queue::Submission;
use crate::request::{Completion, Operation, Request, RequestFlags, Segment};
use crate::segments;

impl Qcow2Queue {
    /// A request that does not go to one place as it is.
    #[cold]
    pub(super) fn submit_in_pieces(&mut self, index: u32, request: &Request<'_>) -> Submission {
        let slot = &mut self.slots[index as usize];
        slot.transfer.begin(request);
        match request.operation {
            Operation::Flush => {
                slot.transfer.left = 0;
                self.hand_over(index);
            }
            Operation::Discard => {
                // A discard has no FUA, but where the guest has nothing to flush it must not come back either.
                slot.operation = Operation::WriteZeroes;
                slot.flags = RequestFlags::MAY_UNMAP;
                self.go_on(index, Mapping::UNKNOWN);
            }
            _ => self.go_on(index, Mapping::UNKNOWN),
        }
        match self.settle(index) {
            Some(result) => Submission::Done(result),
            None => Submission::Pending,
        }
    }

    /// Hands a slot over with the next kick.
    #[cold]
    pub(super) fn hand_over(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.handed_over = true;
        let mut job = self.mailbox.job(index);
        job.operation = slot.operation;
        job.flags = slot.flags;
        std::mem::swap(&mut job.transfer, &mut slot.transfer);
        drop(job);
        self.to_hand_over.push(index);
    }

    /// Sends what is left of a request, piece by piece, until there is a reason to wait. `next` is what its next cluster
    /// is, if that is known.
    fn go_on(&mut self, index: u32, mut next: Mapping) {
        let bits = self.shared.cluster_bits;
        loop {
            let slot = &mut self.slots[index as usize];
            if slot.transfer.left == 0 || slot.errno != 0 {
                return;
            }
            let (operation, flags) = (slot.operation, slot.flags);
            let (offset, left) = (slot.transfer.offset, slot.transfer.left);
            let cluster = offset >> bits;
            let known = std::mem::replace(&mut next, Mapping::UNKNOWN);
            let mapping = if known.kind() == Kind::Unknown { self.shared.table.get(cluster) } else { known };
            let in_cluster = offset - (cluster << bits);
            let mut len = ((1 << bits) - in_cluster).min(left);
            let zeroes = operation == Operation::WriteZeroes;
            // Whole clusters are zeroed by metadata; so is the last one of the disk.
            let whole = in_cluster == 0 && (len == 1 << bits || offset + len == self.shared.info.capacity);
            match (operation, mapping.kind()) {
                (Operation::Read, Kind::Zero) => {
                    self.piece.clear();
                    let piece = &mut self.piece;
                    segments::pieces(slot.transfer.segments(), 0, len as usize, |base, len| {
                        piece.push(Segment { base, len });
                    });
                    // SAFETY: the request's segments are valid until it has completed.
                    unsafe { segments::zero(&self.piece) };
                    slot.transfer.advance(len);
                    continue;
                }
                (Operation::WriteZeroes, Kind::Zero) if !whole => {
                    // What reads as zeroes may do so because of metadata that is not durable yet.
                    let sync_last = self.sync_last(operation, flags);
                    let slot = &mut self.slots[index as usize];
                    slot.sync_last |= sync_last;
                    slot.transfer.advance(len);
                    continue;
                }
                (Operation::Read, Kind::Data | Kind::ReadOnly) | (Operation::Write, Kind::Data) => {
                    let mut clusters = 1;
                    while len < left
                        && self.shared.table.get(cluster + clusters) == mapping.following(clusters, bits)
                    {
                        len = (len + (1 << bits)).min(left);
                        clusters += 1;
                    }
                }
                (Operation::WriteZeroes, Kind::Data) if !whole => {}
                _ => return self.hand_over(index),
            }
            let sync_last = self.sync_last(operation, flags);
            let slot = &mut self.slots[index as usize];
            slot.sync_last |= sync_last;
            self.piece.clear();
            if !zeroes {
                let piece = &mut self.piece;
                segments::pieces(slot.transfer.segments(), 0, len as usize, |base, len| {
                    piece.push(Segment { base, len });
                });
            }
            let at = mapping.offset() + in_cluster;
            let layer = mapping.layer();
            if self.files[layer].is_none()
                && let Err(error) = self.open_file(layer)
            {
                self.slots[index as usize].errno = error.raw_os_error().unwrap_or(libc::EIO);
                return;
            }
            let flags = self.file_flags(flags, sync_last);
            let Some(file) = &mut self.files[layer] else { return };
            let request =
                Request { operation, offset: at, len, segments: &self.piece, flags, token: u64::from(index) };
            // SAFETY: the segments are pieces of the request's, which are valid until it has completed.
            let submission = unsafe { file.submit(request) };
            let slot = &mut self.slots[index as usize];
            match submission {
                Submission::Full => {
                    slot.stalled = true;
                    self.stalled.push(index);
                    return;
                }
                Submission::Done(Ok(())) => slot.transfer.advance(len),
                Submission::Done(Err(error)) => {
                    slot.errno = error.errno;
                    return;
                }
                Submission::Pending => {
                    slot.pieces += 1;
                    slot.transfer.advance(len);
                    self.unkicked = true;
                }
            }
        }
    }

    #[cold]
    pub(super) fn collect_answers(&mut self, completions: &mut Vec<Completion>) {
        let mut answers = std::mem::take(&mut self.answers);
        self.mailbox.collect(&mut answers);
        for (index, answer) in answers.drain(..) {
            let mut job = self.mailbox.job(index);
            let slot = &mut self.slots[index as usize];
            std::mem::swap(&mut job.transfer, &mut slot.transfer);
            drop(job);
            slot.handed_over = false;
            match answer {
                Answer::GoOn(mapping) => {
                    // A write that has been carried out for us has new metadata.
                    let changes = slot.operation != Operation::Flush && slot.operation != Operation::Read;
                    let flags = slot.flags;
                    let sync_last = changes && self.metadata_too(flags);
                    self.slots[index as usize].sync_last |= sync_last;
                    self.go_on(index, mapping);
                }
                Answer::Failed(errno) if slot.errno == 0 => slot.errno = errno,
                Answer::Failed(_) => {}
            }
            self.settle_into(index, completions);
        }
        self.answers = answers;
    }

    #[cold]
    pub(super) fn go_on_with_stalled(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.stalled.len() {
            let index = self.stalled.remove(0);
            self.slots[index as usize].stalled = false;
            self.go_on(index, Mapping::UNKNOWN);
            self.settle_into(index, completions);
        }
    }
}
