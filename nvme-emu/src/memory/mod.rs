//! Guest memory: hostile, shared, changing, and reached only through here.
//!
//! * [`map`]: the memory map, an immutable snapshot: I/O virtual address in, checked [`HostRange`] out;
//! * [`mapping`]: a client's shared memory, mapped into this process for as long as anyone may touch it;
//! * [`sigbus`]: what happens when the client truncates the file behind it.
//!
//! Nothing here makes a Rust reference into guest memory: the guest's CPUs write it at any time. Copies are by
//! `memcpy` or volatile access, once; whoever copied trusts the copy and never looks again.

pub mod map;
pub mod mapping;
pub mod sigbus;

pub use map::{Access, HostRange, MemoryMap, Region, RegionMask, Unreachable};
pub use mapping::Mapping;
