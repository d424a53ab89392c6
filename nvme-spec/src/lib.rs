#![forbid(unsafe_code)]
//! The NVMe wire format: what a host and a controller write where the other can read it.
//!
//! Every type here has the exact size, field offsets and byte order of the NVM Express Base Specification 2.0,
//! the NVM Command Set Specification 1.0 and the NVMe over PCIe Transport Specification 1.0 (sizes and offsets are
//! asserted at compile time). Fields keep the abbreviations of the specification, in snake case.
//!
//! What it does: lay out registers, queue entries and data structures; name opcodes, status codes, identifiers and
//! bits; convert 0's-based and power-of-two encodings in typed accessors (`number_of_logical_blocks()`,
//! `memory_page_size()`). Raw fields carry the specification's raw value.
//!
//! What it does not: no I/O, no memory access, no policy. It does not say which values are acceptable: any bit
//! pattern a guest sends is a valid value of these types, and judging it is the controller's or the driver's work.
//!
//! Where to start: [`SubmissionQueueEntry`] and [`CompletionQueueEntry`], then [`admin_command`] and
//! [`nvm_command`] for the dwords of each command, [`Status`] for how it ended, [`registers`] for bringing a
//! controller up.
//!
//! ```
//! use nvme_spec::{NvmOpcode, SubmissionQueueEntry, nvm_command::ReadWrite};
//! let mut sqe = SubmissionQueueEntry::new(NvmOpcode::READ, 7).with_nsid(1);
//! sqe.set_dwords(ReadWrite::new().with_slba(4096).with_number_of_logical_blocks(8));
//! assert_eq!(sqe.dwords::<ReadWrite>().number_of_logical_blocks(), 8);
//! assert_eq!(sqe.cdw12, 7); // 0's based on the wire
//! ```

#[cfg(target_endian = "big")]
compile_error!(
    "nvme-spec casts little-endian wire structures in place and supports little-endian targets only"
);

/// Asserts at compile time that a structure, or fields of it, sit where the specification puts them.
macro_rules! layout {
    ($t:ty, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$t>() == $size);
            $(assert!(core::mem::offset_of!($t, $field) == $offset);)*
        };
    };
}

pub mod admin_command;
pub mod async_event;
mod completion_queue_entry;
pub mod doorbell;
pub mod feature;
pub mod identify;
pub mod log_page;
pub mod nvm_command;
mod opcode;
pub mod prp;
pub mod registers;
pub mod sgl;
mod status;
mod submission_queue_entry;

pub use async_event::AsynchronousEvent;
pub use completion_queue_entry::CompletionQueueEntry;
pub use opcode::{AdminOpcode, NvmOpcode};
pub use sgl::SglDescriptor;
pub use status::{Status, StatusCodeType};
pub use submission_queue_entry::{
    CommandDwords, CommandFlags, DataPointer, FusedOperation, SubmissionQueueEntry,
};

/// The namespace ID that means all namespaces (Base 2.0, 3.2.1.2).
pub const NSID_BROADCAST: u32 = 0xFFFF_FFFF;
/// The submission queue ID, completion queue ID of the Admin queues (Base 2.0, 3.3).
pub const ADMIN_QUEUE_ID: u16 = 0;
