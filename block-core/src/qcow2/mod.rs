//! qcow2, QEMU's copy-on-write image format (QEMU's `docs/interop/qcow2.rst`).
//!
//! What is on the medium is read by [`layout`], and by nothing else of ours; [`offline`] checks and repairs images, and has
//! their internal snapshots.

pub mod layout;
pub mod offline;
