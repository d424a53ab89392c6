//! What is pending: requests, and the commands that belong to them.

use block_core::{Operation, Request, RequestError, RequestFlags, RequestResult, Segment};

use super::bounce::Chain;
use super::exclusive::Window;

/// A request that was taken and has not ended.
pub(super) struct Slot {
    pub(super) token: u64,
    pub(super) operation: Operation,
    pub(super) flags: RequestFlags,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes for which commands have been sent. (An exclusive write counts them when its window is written.)
    pub(super) done: u64,
    /// Its commands in flight, and its ranges that wait to be sent.
    pub(super) outstanding: u32,
    /// Of the first command that failed; 0: none has.
    pub(super) errno: i32,
    pub(super) hold: Hold,
    pub(super) state: State,
    /// Some of its data is in bounce pages, or was.
    pub(super) bounced: bool,
    /// Of an exclusive write: the blocks at hand.
    pub(super) window: Option<Window>,
    /// Kept where they are needed after the submission. The room stays from one request to the next.
    pub(super) segments: Vec<Segment>,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot is free.
    Free,
    /// Commands are still to be sent; the end of one in flight leads on.
    Going,
    /// Commands are still to be sent, for which there was no room, or which others' writes keep out.
    Stalled,
    /// No command is left to be sent.
    Sent,
}

/// Its place among the writes of the namespace ([`block_core::write_ranges`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Not a write.
    None,
    /// A write of whole blocks that has to wait for an exclusive one.
    WantsPlain,
    /// A write of whole blocks.
    Plain,
    /// A write of parts of blocks that has to wait for another one.
    WantsExclusive,
    /// Its blocks are kept from others, of which some are under way.
    Claimed,
    /// It is alone with its blocks.
    Exclusive,
}

impl Hold {
    /// Whether it waits for writes, of this queue or of others.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, Self::WantsPlain | Self::WantsExclusive | Self::Claimed)
    }
}

impl Slot {
    pub(super) fn free() -> Self {
        Self {
            token: 0,
            operation: Operation::Flush,
            flags: RequestFlags::NONE,
            offset: 0,
            len: 0,
            done: 0,
            outstanding: 0,
            errno: 0,
            hold: Hold::None,
            state: State::Free,
            bounced: false,
            window: None,
            segments: Vec::new(),
        }
    }

    /// Begins a request; `block_mask` is the block size less 1.
    #[inline]
    pub(super) fn begin(&mut self, request: &Request<'_>, block_mask: u64) {
        self.token = request.token;
        self.operation = request.operation;
        self.flags = request.flags;
        (self.offset, self.len, self.done) = (request.offset, request.len, 0);
        (self.outstanding, self.errno, self.bounced) = (0, 0, false);
        self.state = State::Going;
        self.hold = match request.operation {
            Operation::Read | Operation::Flush | Operation::Discard => Hold::None,
            _ if (request.offset | request.len) & block_mask == 0 => Hold::WantsPlain,
            _ => Hold::WantsExclusive,
        };
    }

    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Sent && self.outstanding == 0
    }

    #[inline]
    pub(super) fn result(&self) -> RequestResult {
        match self.errno {
            0 => Ok(()),
            errno => Err(RequestError { errno, offset: self.offset, len: self.len }),
        }
    }
}

/// What is to be done when a command ends, besides noting so.
#[derive(Debug)]
pub(super) enum Part {
    /// The part is free.
    Free,
    /// Read through bounce pages: copy out.
    Read { chain: Chain, lead: usize, skip: usize, len: usize },
    /// Written through bounce pages.
    Write { chain: Chain },
    /// Of the slot's window.
    Window,
    /// The ranges of a batch.
    Discard { batch: usize },
}

/// A command's token: its request's slot, and its part if it has one.
pub(super) fn token(slot: usize, part: Option<usize>) -> u64 {
    slot as u64 | part.map_or(0, |part| (part as u64 + 1) << 32)
}

/// The slot and the part of a token.
#[inline]
pub(super) fn of_token(token: u64) -> (usize, Option<usize>) {
    (token as u32 as usize, ((token >> 32) as usize).checked_sub(1))
}

/// Why a command was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no room now.
    NoRoom,
    /// It cannot be, with this errno.
    Failed(i32),
}
