//! qcow2, QEMU's copy-on-write image format (QEMU's `docs/interop/qcow2.rst`): `IMAGE.qcow2`, or `format=qcow2`.
//!
//! | option | |
//! |---|---|
//! | `format=` | `qcow2`; without it the name has to say so |
//! | `backing=` | a file that takes the place of the backing file which the image names |
//! | `backing-format=` | `raw` or `qcow2`, of that one; by its name otherwise |
//! | `l2-cache-size=` | the largest table of mappings, and the most of its metadata that is kept; 32M at most by default |
//!
//! and those of the file that it is in: `cache=`, `aio=`, `readonly=`, `discard=` (see [`mod@crate::file`]).
//!
//! The image's metadata is imago's; the guest's data goes through the queues of the file, at the offset that the
//! metadata says. What a request meets, in order: `queue` finds its clusters in the table of `mapping.rs` and sends it
//! on; what is not there goes through `mailbox.rs` to a thread of `workers.rs`, which asks `metadata`. That allocates,
//! copies, zeroes and discards in `image.rs`, which is imago with `storage.rs` and `pages.rs` below it: what keeps the
//! image consistent whenever the power goes is there. `epoch.rs` says when nothing is under way any more to a cluster that
//! has been zeroed, and `zeroed.rs` which are waiting for that; `fault.rs` what of all this tests can break. `chain.rs` opens the layers, by the rules of `backing_chain.rs`.
//!
//! What is on the medium is read by [`layout`], and by nothing else of ours; [`offline`] checks and repairs images, and has
//! their internal snapshots.
//!
//! What imago does not know is read by `entries.rs` and `compressed.rs`: subclusters, and zstd.
//!
//! Not here: encryption, and writing to images with extended L2 entries (`layout` refuses both by name); persistent
//! bitmaps, which are marked as out of date when an image is opened for writing; refcounts that are updated late
//! (`lazy_refcounts` is read, but refcounts are always right).

pub(crate) mod backing_chain;
mod chain;
pub(crate) mod compressed;
mod disk;
mod entries;
mod epoch;
mod fault;
mod image;
pub mod layout;
mod mailbox;
mod mapping;
mod metadata;
pub mod offline;
mod open;
mod pages;
mod queue;
mod storage;
mod workers;
mod zeroed;

pub use disk::Qcow2Disk;
#[cfg(feature = "contract")]
pub use fault::{Fault, Step};
