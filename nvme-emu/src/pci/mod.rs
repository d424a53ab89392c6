//! The controller as a PCI function: what a front door shows to its client.
pub mod function;
pub use function::{Answer, Call, DmaMapping, InterruptKind, PciFunction};
