//! The block layer: disks, queues, cache modes, formats and protocols.
