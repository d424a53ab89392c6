//! qcow2, QEMU's copy-on-write image format (QEMU's `docs/interop/qcow2.rst`).
//!
//! What is on the medium is read by [`layout`], and by nothing else of ours.

pub mod layout;
