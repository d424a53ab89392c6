//! A polling userspace NVMe driver: it owns a controller through a [`Transport`] and gives threads queue pairs.
//!
//! ```text
//!   Controller   open, identify, namespaces, admin commands, events, reset
//!       │ queue_pair()
//!   QueuePair    read, write, … → kick → poll      one thread each; no lock, no allocation, no system call
//!       │ doorbells, queues in DMA memory
//!   Transport    kernel VFIO │ vfio-user client │ loopback (crate nvme-loopback)
//! ```
//!
//! * [`controller`]: bringing a controller up by the book, asking it about itself, resetting it, shutting it down.
//! * [`queue_pair`]: the data path; under it `queue` (the rings), `doorbell`, `shadow_doorbell`,
//!   `command_identifier`, [`prp`] and `sgl`.
//! * [`admin`]: the admin queue: a command at a time, with a deadline; asynchronous events beside it.
//! * [`recovery`]: deadlines, resets, what becomes of commands in flight; [`events`]: what the controller reports.
//! * [`dma`]: memory that the controller reaches.
//! * [`mod@disk`]: a namespace as a [`block_core::Disk`], the protocol of `nvme://`.
//! * [`transport`]: how the controller is reached: registers, DMA, interrupts.
//!
//! A controller is not trusted to follow the rules: completions of commands that are not in flight, fatal errors,
//! removal and silence are errors ([`Fault`], [`Error`]), and it reaches no memory but [`DmaBuffer`]s, [`DmaMapping`]s and queues. What
//! can be put right by a reset is, with the queue pairs staying what they are ([`Options::recovery`]).
//!
//! What it does not do: metadata and protection information, fused commands, command sets other than NVM, the
//! controller memory buffer.
//!
//! Where to start reading: [`QueuePair`] for what an I/O costs, [`Controller::open`] for how a controller comes up.
//!
//! ```no_run
//! use nvme_vfio::{Controller, Options, transport::vfio::{Interface, Vfio}};
//!
//! let transport = Vfio::open("0000:01:00.0".parse()?, Interface::Auto)?;
//! let controller = Controller::open(Box::new(transport), Options::default())?;
//! let namespace = controller.namespace(1)?;
//! let mut queue = controller.queue_pair()?;
//! let buffer = controller.alloc_dma(4096)?;
//! let blocks = 4096 / namespace.block_size();
//! queue.read(&namespace, 0, blocks, buffer.range(0..4096), 7)?;
//! queue.kick();
//! while queue.poll(|token, result| println!("command {token}: {result:?}"))? == 0 {}
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod admin;
mod command_identifier;
pub mod controller;
mod deadline;
pub mod disk;
pub mod dma;
mod doorbell;
pub mod error;
pub mod events;
mod io_queue;
mod iova;
pub mod namespace;
pub mod options;
mod patience;
pub mod prp;
mod queue;
pub mod queue_pair;
pub mod recovery;
mod registers;
mod sgl;
mod shadow_doorbell;
mod shared_memory;
pub mod transport;

pub use admin::AdminData;
pub use controller::Controller;
pub use dma::{DmaBuffer, DmaMapping, DmaRange};
pub use error::{Error, Fault};
pub use events::NamespaceWatch;
pub use namespace::{CopyLimits, Namespace};
pub use options::{Options, Recovery};
pub use queue_pair::{QueuePair, SubmitError};
pub use recovery::{Condition, RecoveryCounters};
pub use transport::Transport;
