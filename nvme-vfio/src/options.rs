//! What can be chosen when a controller is opened.

use std::time::Duration;

/// Options of [`crate::Controller::open`].
#[derive(Clone, Debug)]
pub struct Options {
    /// I/O queue pairs to ask the controller for. It may grant less.
    pub queues: u16,
    /// Commands in flight per queue pair. The controller (CAP.MQES) may allow less.
    pub depth: u16,
    /// Interrupts for I/O queues, so that [`crate::QueuePair::wait_fd`] can be slept on. They cost a vector each, and
    /// the controller the work of signalling.
    pub interrupts: bool,
    /// Shadow doorbells, if the controller has them and doorbell writes are trapped.
    pub shadow_doorbells: bool,
    /// Largest read or write, in bytes. The controller (MDTS) may allow less.
    pub max_transfer: u32,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// How long an I/O command may take.
    pub io_timeout: Duration,
    /// What happens when one takes longer, or the controller fails. `None`: nothing but an error: a queue pair that
    /// meets a [`crate::Fault`] stays broken, and [`crate::Controller::reset`] and new queue pairs are the way on.
    pub recovery: Option<Recovery>,
}

/// How a controller that fails is brought back; see [`crate::recovery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// How long the Abort of a command whose deadline has passed may take to end it.
    pub abort_timeout: Duration,
    /// Resets within `window` before the controller is given up.
    pub resets: u32,
    /// See `resets`.
    pub window: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            depth: 128,
            interrupts: false,
            shadow_doorbells: true,
            max_transfer: 1 << 20,
            // As Linux has them.
            admin_timeout: Duration::from_secs(60),
            io_timeout: Duration::from_secs(30),
            recovery: Some(Recovery::default()),
        }
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self { abort_timeout: Duration::from_secs(5), resets: 5, window: Duration::from_secs(600) }
    }
}
