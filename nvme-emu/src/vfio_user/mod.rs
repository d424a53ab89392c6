//! The vfio-user front door: a server that never blocks, run by a reactor.
//!
//! ```text
//! listener   the socket file                 answer    what the control thread has to say
//!      └───────────────┬───────────────────────────┘
//!                    server      one client at a time, epoll
//!                      │
//!                    session     the protocol, without the socket
//!    receive ──────────┼────────── send
//!                      │
//!    version  regions  dma  interrupts   one group of commands each
//!                      │
//!                    device      the PCI function
//! ```
//!
//! Register reads and writes, doorbells among them, are carried out on the spot. What may take time (memory mapped and
//! unmapped, interrupts set up, reset, the client's leaving) goes to the control thread as a
//! [`Call`](crate::pci::Call), and the client is not read on until it has been answered: order is kept for free.
//!
//! The protocol is libvfio-user's (`docs/vfio-user.rst` there, `docs/interop/vfio-user.rst` in QEMU), version 0.0.
//! Left out: DMA through messages (memory that the client does not share cannot be reached), descriptors for
//! region I/O, eventfds that mask or unmask, dirty page tracking and migration, twin sockets. Commands for
//! these are refused with `ENOTSUP`.
//!
//! Where to start reading: [`session`].

mod answer;
pub mod device;
mod dma;
mod interrupts;
mod listener;
pub mod message;
pub mod receive;
mod regions;
pub mod send;
pub mod server;
pub mod session;
mod version;

#[cfg(test)]
mod tests;

pub use device::Device;
pub use listener::BindError;
pub use server::Server;
pub use session::Session;
