//! What the disks of a drive have done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// Counters of a drive's data path, summed over its queues.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// One queue's, written by its thread alone.
        #[derive(Debug, Default)]
        pub(super) struct QueueCounters {
            $(pub(super) $name: Counter,)*
        }

        impl QueueCounters {
            /// Adds this queue's to a sum.
            pub(super) fn add_to(&self, sum: &mut Counters) {
                $(sum.$name += self.$name.0.load(Ordering::Relaxed);)*
            }
        }

        impl Counters {
            /// Each with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Commands sent to the controller.
    commands
    /// Bytes that the controller read from or wrote to the requests' own memory.
    bytes_direct
    /// Bytes that were copied through memory of the driver's.
    bytes_bounced
    /// Blocks that were read because only a part of them was written.
    blocks_read_to_write
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds to it: no atomic read-modify-write is needed for one writer.
    #[inline]
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}
