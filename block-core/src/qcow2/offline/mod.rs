//! What is done to an image that nobody has open as a disk: checking and repairing it, its internal snapshots, and
//! compressed data in a new one.
//!
//! All of it is our own, above [`super::layout`]; none of it is on a data path. It reads the metadata piece by piece, so
//! that memory is bounded whatever the image's size, and believes nothing that it reads: what points outside the
//! file, or where it must not, is a finding and not followed.
//!
//! Whoever writes here keeps one order, so that a process that is killed costs no data: refcounts go up before
//! something new points to their clusters, the header (one sector) is what switches from old to new, and refcounts go down
//! afterwards. In between, COPIED flags and refcounts may disagree; version 3 images carry the dirty bit for so long, which
//! makes QEMU and us repair them before anything else is done.
//!
//! Start reading at [`check()`]; [`Image`] is what all of them work on.

mod check;
mod compressed;
mod copied;
mod counts;
mod image;
mod rebuild;
mod refcounts;
mod references;
mod snapshots;
#[cfg(test)]
mod tests;

pub use check::{CheckReport, Repair, check};
pub use compressed::CompressedWriter;
pub use image::Image;
pub use snapshots::{apply_snapshot, create_snapshot, delete_snapshot, find_snapshot};

/// Called now and then with what is done, and of how much.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
