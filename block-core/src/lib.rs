//! The block layer that both halves of ringpair share.
//!
//! A [`Disk`] is an open disk, shared by all threads; a [`Queue`] on it belongs to one thread, takes
//! [`Request`]s and gives [`Completion`]s. The documentation of these traits *is* the contract: what any
//! implementation must do with any offset, length and flag, and what a completed flush or FUA write promises.
//!
//! What this crate does not do: it has never heard of NVMe, and it starts no thread on the data path of its
//! callers: whoever opens a queue polls it.
//!
//! Disks that are here: [`mod@file`] (files and block devices, five cache modes, io_uring or threads), [`mem`], [`null`].
//! What is done to images as files, and not as disks, is in [`image`] and [`qcow2::offline`].
//! Whoever writes another one runs the contract's tests on it: `contract_suite!`, with the feature `contract`.
//!
//! Where to start reading: [`disk`] and [`queue`] for the contract, [`spec`] for how disks are named, [`registry`] for
//! how they are opened, [`null`] for the smallest implementation.

#[cfg(feature = "contract")]
pub mod contract;
pub mod disk;
pub mod file;
pub mod format;
pub mod image;
pub mod image_file;
pub mod mem;
pub mod null;
pub mod qcow2;
pub mod queue;
pub mod registry;
pub mod request;
pub mod segments;
pub mod spec;
pub mod write_ranges;

pub use disk::{CapacityWatcher, Disk, DiskInfo, MemoryRegion, Unmapped};
pub use image_file::ImageFile;
pub use queue::{Queue, Submission};
pub use registry::{OpenError, Registry};
pub use request::{Completion, Operation, Request, RequestError, RequestFlags, RequestResult, Segment};
pub use spec::{DiskSpec, SpecError};
