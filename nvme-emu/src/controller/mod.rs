//! A controller, seen from its control thread: what it knows, and what is shared with everybody.
//!
//! One control thread serves all controllers of an engine. It is a loop over one channel of events and never waits for
//! anything in particular: what reactors have to do first is sent to them with a ticket, and the continuation runs
//! when the last of them has answered. So a slow disk of one controller delays nothing of another.
//!
//! * [`control`]: the loop, tickets, and calls of front doors;
//! * [`lifecycle`]: enable, disable, resets, shutdown;
//! * [`admin_commands`]: the admin queue's commands;
//! * [`queues`]: the admin commands about queues: create, delete, abort, doorbell buffers;
//! * [`dma`]: guest memory coming and going;
//! * [`resize`]: disks that become another size;
//! * [`write_cache`]: the switch of the volatile write cache, over resets;
//! * [`registers`], [`interrupts`], [`counters`], [`shared`]: what other threads see.

pub(crate) mod admin_commands;
pub(crate) mod control;
pub(crate) mod counters;
pub(crate) mod dma;
pub(crate) mod interrupts;
pub(crate) mod lifecycle;
pub(crate) mod queues;
pub(crate) mod registers;
mod resize;
pub(crate) mod shared;
pub(crate) mod write_cache;

pub use counters::ControllerCounters;
