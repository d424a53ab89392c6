//! The log of a simulated file, and its page cache.

use super::SECTOR;
use super::contents::Contents;
use crate::contract::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a simulated file is asked to do. Ranges in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A read.
    Read {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// A write.
    Write {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// With `RWF_DSYNC`.
        dsync: bool,
    },
    /// A hole, or zeroes, by `fallocate`.
    Zero {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// A new length, by `ftruncate` or `fallocate`.
    SetLen(u64),
    /// `fdatasync`.
    Sync,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Done,
    /// It fails with an errno. Of a write that fails with `EIO`, a part may have taken effect.
    Fail(i32),
    /// A read or write moves only so many bytes, at least 1 and at most what was asked.
    Short(usize),
    /// It is reported done, and is in the page cache, but an `fdatasync` has made nothing durable, and a write with
    /// `RWF_DSYNC` has not been.
    Lie,
}

/// A [hook](super::SimulatedFile::hook) that says this of the first operation that is like that, and of no other.
pub fn once(is: impl Fn(&Asked) -> bool + Send, verdict: Verdict) -> impl FnMut(&Asked) -> Verdict + Send {
    let mut left = true;
    move |asked| if is(asked) && std::mem::take(&mut left) { verdict } else { Verdict::Done }
}

/// What decides over verdicts.
pub(super) type Hook = Box<dyn FnMut(&Asked) -> Verdict + Send>;

/// The number of an operation.
pub(super) type OperationId = usize;

/// An operation that changes the file or makes changes durable.
#[derive(Clone)]
pub(super) struct Operation {
    pub asked: Asked,
    pub verdict: Verdict,
    /// What a write has written, as far as it has taken effect.
    pub data: Arc<[u8]>,
}

/// A moment in the life of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// The file's user has handed it over.
    Issued(OperationId),
    /// The page cache, or the drive's cache, has it.
    Applied(OperationId),
    /// The user has been told how it ended.
    Completed(OperationId),
}

/// The log of a file.
pub(super) struct Log {
    /// What the file held in the beginning, durably.
    initial: Contents,
    operations: Vec<Operation>,
    /// Each with the moment at which it happened.
    events: Vec<(u64, Event)>,
    /// How many moments there have been: one for each event, of whichever file of the medium.
    clock: Arc<AtomicU64>,
    /// What it holds now, as its users see it.
    cache: Contents,
    hook: Hook,
    random: Random,
}

impl Log {
    pub fn new(contents: Contents, seed: u64, clock: Arc<AtomicU64>) -> Self {
        Self {
            initial: contents.clone(),
            operations: Vec::new(),
            events: Vec::new(),
            clock,
            cache: contents,
            hook: Box::new(|_| Verdict::Done),
            random: Random::new(seed),
        }
    }

    pub fn set_hook(&mut self, hook: Hook) {
        self.hook = hook;
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn happens(&mut self, event: Event) {
        self.events.push((self.clock.fetch_add(1, Ordering::SeqCst), event));
    }

    pub fn contents(&self) -> &Contents {
        &self.cache
    }

    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// What a [`super::PowerCut`] works with.
    pub fn record(&self) -> (Contents, Vec<Operation>, Vec<(u64, Event)>) {
        (self.initial.clone(), self.operations.clone(), self.events.clone())
    }

    /// What the hook says of an operation. Reads are not logged: they change nothing.
    pub fn judge(&mut self, asked: Asked) -> Verdict {
        (self.hook)(&asked)
    }

    /// An operation that changes something has been handed over.
    pub fn issue(&mut self, asked: Asked) -> OperationId {
        let verdict = self.judge(asked);
        self.operations.push(Operation { asked, verdict, data: Arc::new([]) });
        let id = self.operations.len() - 1;
        self.happens(Event::Issued(id));
        id
    }

    /// It takes effect; `gather` copies that many first bytes of a write's data.
    pub fn apply(&mut self, id: OperationId, gather: impl FnOnce(usize) -> Vec<u8>) {
        let Operation { asked, verdict, .. } = self.operations[id];
        match asked {
            Asked::Write { offset, len, .. } => {
                let n = match verdict {
                    Verdict::Done | Verdict::Lie => len,
                    Verdict::Short(n) => (n as u64).clamp(1, len),
                    Verdict::Fail(libc::EIO) => self.random.below(len / SECTOR as u64 + 1) * SECTOR as u64,
                    Verdict::Fail(_) => 0,
                };
                let data = gather(n as usize);
                self.cache.write(offset, &data);
                self.operations[id].data = data.into();
            }
            _ if matches!(verdict, Verdict::Fail(_)) => {}
            Asked::Zero { offset, len } => self.cache.zero(offset, len),
            Asked::SetLen(len) => self.cache.set_len(len as usize),
            Asked::Sync | Asked::Read { .. } => {}
        }
        self.happens(Event::Applied(id));
    }

    /// Its user is told: how many bytes, or an errno.
    pub fn complete(&mut self, id: OperationId) -> Result<usize, i32> {
        self.happens(Event::Completed(id));
        let Operation { verdict, data, .. } = &self.operations[id];
        match *verdict {
            Verdict::Fail(errno) => Err(errno),
            _ => Ok(data.len()),
        }
    }
}
