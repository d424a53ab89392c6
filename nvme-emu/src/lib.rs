//! An emulated NVMe PCI function, in a process of its own.
//!
//! ```text
//!  vfio-user client (QEMU, Cloud Hypervisor, SPDK…)      a driver in this process
//!        │ socket                                               │ calls
//!  vfio_user::Server                                      nvme-loopback
//!        └──────────────┬───────────────────────────────────────┘
//!                 pci::PciFunction     configuration space, BAR0, memory map, interrupts
//!            ┌──────────┴───────────┐
//!     control thread            reactors (one thread each)
//!     controller/, admin/       reactor/: doorbells → SQEs → nvm/ → block-core → CQEs → interrupts
//! ```
//!
//! * [`pci`]: the function as its outside sees it; everything a front door needs.
//! * [`vfio_user`]: the front door for other processes: a non-blocking server, run by a reactor.
//! * [`namespace`], [`subsystem`]: namespaces, each a disk, and their identity; controllers attach them.
//! * `controller`: what the control thread knows and does: registers, enable, reset, queues coming and going.
//! * [`admin`]: the admin commands: Identify, log pages, features, asynchronous events.
//! * [`memory`]: guest memory: the only way to reach it.
//! * [`reactor`]: the data path, and the threads that run it.
//! * [`faults`]: misbehaviour by script, for testing drivers.
//! * `nvm`: the NVM command set: a validated SQE becomes requests to a disk.
//!
//! What it does not do: NVMe over Fabrics, ZNS and key-value command sets, CMB and PMR, SR-IOV, protection
//! information, migration. Guest memory that the client does not share cannot be reached; commands
//! that point into it end with Data Transfer Error.
//!
//! Where to start reading: [`pci::PciFunction`] from the outside, `reactor/run.rs` from the inside.

pub mod admin;
#[cfg(feature = "bench")]
pub mod bench;
pub mod controller;
mod engine;
pub mod faults;
pub mod memory;
pub mod namespace;
mod nvm;
pub mod pci;
pub mod reactor;
pub mod subsystem;
mod sync;
mod transfer;
pub mod vfio_user;

pub use controller::ControllerCounters;
pub use engine::{ControllerOptions, Engine, EngineCounters, EngineError, EngineOptions};
pub use faults::FaultScript;
pub use reactor::{PollMode, StageTimes};
