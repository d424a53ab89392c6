//! The threads that run the data path.
//!
//! A *reactor* is a thread that runs to completion: doorbells → SQEs → requests → CQEs → interrupts, without a lock, an
//! allocation or a system call per command. State that it touches has one owner, itself: the control thread changes
//! it by message.
//!
//! * [`run`]: the loop; [`attention`]: which controllers it looks at; [`poller`]: when it sleeps; [`handle`], [`alarm`] and
//!   [`message`]: how others reach it;
//! * [`shard`]: a controller's share of a reactor: the data path; [`shard_composites`]: commands of several requests;
//!   [`shard_control`]: what happens to it; [`shard_faults`]: where it misbehaves, if a script says so;
//! * [`submission_queue`], [`completion_queue`], [`doorbell`], [`doorbell_page`]: what the specification calls so;
//! * [`disk_queues`]: the other end; [`stages`]: where the time goes, for whoever asks; [`probes`]: static probes;
//! * [`front_door`]: servers that a reactor runs besides; [`doors`]: when it looks at them.

pub(crate) mod alarm;
mod attention;
pub(crate) mod completion_queue;
pub(crate) mod disk_queues;
pub(crate) mod doorbell;
pub(crate) mod doorbell_page;
#[cfg(test)]
mod doorbell_tests;
mod doors;
pub mod front_door;
pub(crate) mod handle;
pub(crate) mod message;
pub(crate) mod poller;
mod probes;
pub(crate) mod run;
pub(crate) mod shard;
mod shard_composites;
mod shard_control;
mod shard_faults;
pub(crate) mod stages;
pub(crate) mod submission_queue;

pub use front_door::FrontDoor;
pub use stages::StageTimes;

use crate::controller::counters::Counter;

/// How reactors look for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollMode {
    /// Spin while there is work and for a little longer, then sleep. Doorbells are trapped and shadowed.
    #[default]
    Adaptive,
    /// Spin for as long as a controller is enabled: for a core given to the job. Doorbells can be mapped by the client,
    /// which then sends no messages at all.
    Always,
}

/// What a reactor counts for itself, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ReactorStatistics {
    pub(crate) sleeps: Counter,
    /// Messages received.
    pub(crate) messages: Counter,
}
