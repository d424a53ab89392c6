//! A drive's namespace as a [`block_core::Disk`]: the protocol of `nvme://` and `vfio-user:`.
//!
//! ```text
//!   NvmeDisk    one namespace; opened by name ([`open`]) or on a Controller ([`Drive::disk`])
//!       │ open_queue()
//!   NvmeQueue   requests of any range and memory → commands; one QueuePair each, owned by one reactor
//!       │
//!   Drive       one controller, shared by all its disks: registered memory, queue pairs, counters
//! ```
//!
//! * [`open`]: names and options; each controller is opened once, and closed with its last disk.
//! * [`drive`]: what the disks on one controller share.
//! * `limits`: what Identify says, as the disk's description and as where requests are split.
//! * `memory`: registered memory: addresses of this process to I/O virtual addresses.
//! * `bounce`: pages for data that the controller cannot be pointed to.
//! * `queue`: the data path; `work` what is pending and how it goes on, `request` the state of one request, `send` the
//!   commands of it, `exclusive` writes of parts of blocks, `discard` ranges collected into one Dataset Management
//!   command.
//!
//! # Where data goes
//!
//! A request whose range consists of whole blocks, and whose segments lie in registered memory, becomes commands that
//! point at that memory: nothing is copied, and the PRP lists or SGLs, in the driver's own memory, hold addresses that
//! were checked. PRPs describe pieces that meet at page boundaries, SGLs the others where the controller has them.
//! Everything else goes through bounce pages, a write of a part of a block by reading the block, changing it and
//! writing it back, kept apart from other writes to it on every queue of this process. [`Drive::counters`] tells how
//! many bytes went which way.
//!
//! # Queue pairs
//!
//! Each open queue has a queue pair of its own; one is kept for the drive itself, if the controller grants more than
//! one. When there are no more, opening a queue is an error that says so: queue pairs are not shared between threads,
//! for that would take a lock on the data path.

mod bounce;
mod counters;
mod discard;
pub mod drive;
mod errno;
mod exclusive;
mod limits;
mod memory;
mod namespace;
pub mod open;
mod queue;
mod request;
mod send;
mod work;

pub use counters::Counters;
pub use drive::Drive;
pub use namespace::NvmeDisk;
pub use open::register;
