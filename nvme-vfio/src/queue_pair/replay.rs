//! Which commands are sent once more after a reset, and what is kept of each to do so.

use nvme_spec::{NvmOpcode, SubmissionQueueEntry};
use zerocopy::FromZeros;

/// A command as it was sent, for as long as it is in flight.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) command: SubmissionQueueEntry,
    /// Its place in the order of all commands posted.
    pub(super) place: u32,
    /// Resets that were this command's own fault: its deadline led to them.
    blame: u8,
}

impl Default for Sent {
    fn default() -> Self {
        Self { command: SubmissionQueueEntry::new_zeroed(), place: 0, blame: 0 }
    }
}

/// Resets that one command may cause before it is not sent once more.
const MAX_BLAME: u8 = 1;

impl Sent {
    /// A new command.
    #[inline]
    pub(super) fn keep(&mut self, command: &SubmissionQueueEntry, place: u32) {
        *self = Self { command: *command, place, blame: 0 };
    }

    /// Whether the controller may have seen it, having been told of all commands up to this place.
    pub(super) fn was_seen(&self, rung: u32) -> bool {
        // Places wrap around, and so do differences between them.
        (self.place.wrapping_sub(rung) as i32) <= 0
    }

    /// Its deadline has led to a reset.
    pub(super) fn take_blame(&mut self) {
        self.blame = self.blame.saturating_add(1);
    }

    /// Whether it goes out (once more) after a reset: [`crate::recovery`] has the table and the reasons.
    pub(super) fn goes_out_again(&self, rung: u32) -> bool {
        !self.was_seen(rung) || (self.blame <= MAX_BLAME && is_repeatable(NvmOpcode(self.command.opcode)))
    }
}

/// Whether a command does the same when it is done twice, with nothing of the same queue pair's owner in between.
fn is_repeatable(opcode: NvmOpcode) -> bool {
    matches!(
        opcode,
        NvmOpcode::READ
            | NvmOpcode::VERIFY
            | NvmOpcode::WRITE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::WRITE_UNCORRECTABLE
            | NvmOpcode::DATASET_MANAGEMENT
            | NvmOpcode::FLUSH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(opcode: NvmOpcode) -> Sent {
        let mut sent = Sent::default();
        sent.keep(&SubmissionQueueEntry::new(opcode, 0), 0);
        sent
    }

    #[test]
    fn what_the_controller_has_not_seen_goes_out_whatever_it_is() {
        let mut sent = sent(NvmOpcode::COMPARE);
        assert!(!sent.goes_out_again(0));
        sent.place = 5;
        assert!(sent.goes_out_again(4));
        assert!(sent.goes_out_again(u32::MAX));
        assert!(!sent.goes_out_again(5));
    }

    #[test]
    fn a_command_that_leads_to_a_second_reset_is_not_sent_a_third_time() {
        let mut sent = sent(NvmOpcode::READ);
        sent.take_blame();
        assert!(sent.goes_out_again(0));
        sent.take_blame();
        assert!(!sent.goes_out_again(0));
    }

    #[test]
    fn what_may_answer_something_else_the_second_time_is_not_repeated() {
        for opcode in [NvmOpcode::COMPARE, NvmOpcode::COPY, NvmOpcode::RESERVATION_ACQUIRE, NvmOpcode(0x80)] {
            assert!(!sent(opcode).goes_out_again(0), "{opcode}");
        }
    }
}
