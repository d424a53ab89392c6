//! What happens when a controller does not do what it should.
//!
//! Each controller opened with [`crate::Options::recovery`] has a *caretaker*, a thread that sleeps most of the time.
//! At every beat (an eighth of the shortest deadline, 2 to 500 ms) it looks at CSTS, takes asynchronous events, and
//! counts up a number that every queue pair compares at every poll: one load of a word that hardly ever changes is all
//! that deadlines and recovery cost an I/O. Whoever waits for an admin command, the caretaker among them, beats
//! meanwhile: deadlines of I/O do not wait for a controller that owes an answer elsewhere. Queue pairs stay with the
//! threads that own them; caretaker and owners talk through a mailbox each, in which nothing lies as long as all is well.
//!
//! # A command
//!
//! ```text
//!  in flight ──io_timeout──▶ Abort sent ──abort_timeout──▶ the controller is reset
//!      │                         │                              │
//!      ▼                         ▼                              ▼
//!  completed       completed, in time after all,      sent once more, or ended with
//!                  or with Command Abort Requested    Command Aborted By Host (below)
//! ```
//!
//! Admin commands go the same way, with `admin_timeout`; the one that did not end in time is an error
//! ([`crate::Error::Timeout`]) and is not sent once more.
//!
//! # The controller
//!
//! ```text
//!            a fault                        CC.EN = 0, or a function reset; then up again,
//!  Running ────────────▶ Recovering ◀──┐    the same controller as before (serial number)
//!     ▲                      │  │      │
//!     └──────── it is up ────┘  ├──────┘ it is not, and there are resets left in the window
//!                               ▼
//!                             Failed       DMA ended; every command ends with Host Pathing Error
//! ```
//!
//! Faults are: CSTS.CFS; registers of all ones, or none at all (removal); CSTS.RDY gone; a command that an Abort did not
//! end; a completion with an identifier that is not in flight or has ended already, for another queue, or with a head
//! outside the queue; a completion queue entry passed over (wrong Phase Tag); a doorbell that cannot be written; an admin
//! command that does not end.
//!
//! A controller that is wanted back ([`crate::transport::Transport::is_wanted_back`]: the kernel's driver is being unbound from it,
//! or it is to be unplugged) is shut down in order (CC.SHN) and given back within a beat, and fails for good, with
//! [`crate::Error::TakenBack`]. What had completed has, everything else ends with Host Pathing Error.
//!
//! A controller that nothing can reach any more ([`crate::transport::Transport::lost`]: a vfio-user server has ended or has
//! stopped answering) is not reset, as that could not help: it fails for good, with [`crate::Error::Lost`].
//!
//! # How long it takes
//!
//! One reset takes no longer than four times the time that the controller says it needs to get ready (CAP.TO and half a
//! second: to be disabled, after a function reset once more, to be enabled, and to be disabled again if that was in
//! vain), and one admin command that does not end (`admin_timeout`, `abort_timeout`); then there is a pause, of 2 s at most.
//! So a command has ended, one way or the other, after
//!
//! ```text
//! (resets + 1) × (io_timeout + abort_timeout + one reset)
//! ```
//!
//! in a controller that nothing can be done about, and after `io_timeout + abort_timeout` and a reset in one that lost it.
//! A beat comes on top of each deadline.
//!
//! All this counts on registers that answer at once, as those of a device do. A vfio-user server that is there and does
//! not answer ([`crate::transport::vfio_user`]) is waited for 20 s, whatever the deadlines are: what it does with memory
//! that it has been given is not known before. Then the connection counts as broken, and the controller is given up.
//!
//! # A queue pair
//!
//! ```text
//!             a fault of its own, or the controller is in another generation
//!  Running ───────────────────────────────────────▶ Parked ── controller failed ──▶ Broken
//!     ▲                                              │   ▲
//!     │ new queues in new memory, fetched by the     │   │ asks the caretaker for new queues,
//!     └──────────── owner's next poll ───────────────┘   └ once in each generation
//! ```
//!
//! One whose queues the controller refuses to create again is broken too ([`crate::Fault::NotRemade`]), while the others
//! go on; it stays so until it is dropped, which for a disk's queue means until the drive is opened again.
//!
//! A parked queue pair rings no doorbell and trusts no completion. It still takes commands, which go out later. When
//! its queues exist again, and so after the controller was disabled, commands that had been in flight are looked at:
//! those that had completed, by what the old completion queue says, have; of the others,
//!
//! | command | what becomes of it |
//! |---|---|
//! | Read, Verify | sent once more: nothing changes by it |
//! | Write, Write Zeroes, Write Uncorrectable, Dataset Management | sent once more: the same data at the same place, as if the first had taken longer |
//! | Flush | sent once more: it covers at least what the first would have |
//! | Compare, Copy, reservations, zone commands, vendor specific | ended: a second run may answer something else than the first |
//! | a command whose own deadline led to a reset | sent once more, and ended if that leads to the next one |
//!
//! What a controller had completed and not flushed survives a reset of the controller; if its power failed as well,
//! what its volatile cache held is lost, and nothing in the protocol says so. The driver cannot know either.
//!
//! # Memory
//!
//! A command's memory is the controller's until the command has ended, and no command is ended by this driver before
//! the controller has been disabled ([`crate::QueuePair::poll`] says so by calling back). A controller that cannot be
//! disabled has its bus mastering and all its mappings taken away first. Queues are made anew in other memory, so a late
//! completion of a former life hits nothing.

pub(crate) mod caretaker;
pub(crate) mod heartbeat;
pub(crate) mod inbox;
pub(crate) mod link;

use std::sync::atomic::{AtomicU64, Ordering};

/// How a controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it should.
    Running,
    /// It is being reset; commands wait.
    Recovering,
    /// It was given up, or back, for good. [`crate::Controller::failure`] says why.
    Failed,
}

/// What recovery has had to do since the controller was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryCounters {
    /// I/O commands whose deadline passed.
    pub expired: u64,
    /// Resets tried.
    pub resets: u64,
    /// Commands sent once more after a reset.
    pub replayed: u64,
    /// Commands ended without an answer of the controller's.
    pub failed: u64,
}

/// [`RecoveryCounters`] while they count.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) expired: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Counters {
    pub(crate) fn get(&self) -> RecoveryCounters {
        RecoveryCounters {
            expired: self.expired.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            replayed: self.replayed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
