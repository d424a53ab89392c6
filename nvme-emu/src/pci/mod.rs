//! The controller as a PCI function: what a front door shows to its client.
pub mod config_space;
pub mod function;
pub use config_space::ConfigSpace;
pub use function::{Answer, Call, DmaMapping, InterruptKind, PciFunction};
