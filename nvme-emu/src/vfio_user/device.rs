//! What the server needs of a PCI function; tests put something simpler in its place.

use crate::pci::function::DoorbellPage;
use crate::pci::{Answer, Call, InterruptKind, PciFunction};

/// A PCI function as a vfio-user server drives it. The methods are those of [`PciFunction`], and mean the same.
pub trait Device {
    /// [`PciFunction::read_config`]
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// [`PciFunction::write_config`]
    fn write_config(&self, offset: u64, data: &[u8]);
    /// [`PciFunction::bar0_len`]
    fn bar0_len(&self) -> u64;
    /// [`PciFunction::read_bar0`]
    fn read_bar0(&self, offset: u64, data: &mut [u8]);
    /// [`PciFunction::write_bar0`]
    fn write_bar0(&self, offset: u64, data: &[u8]);
    /// [`PciFunction::doorbell_page`]
    fn doorbell_page(&self) -> Option<DoorbellPage<'_>>;
    /// [`PciFunction::interrupt_vectors`]
    fn interrupt_vectors(&self, kind: InterruptKind) -> u32;
    /// [`PciFunction::call`]
    fn call(&self, call: Call, answer: Answer);
}

impl Device for PciFunction {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.write_config(offset, data);
    }

    fn bar0_len(&self) -> u64 {
        self.bar0_len()
    }

    fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        self.read_bar0(offset, data);
    }

    fn write_bar0(&self, offset: u64, data: &[u8]) {
        self.write_bar0(offset, data);
    }

    fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        self.doorbell_page()
    }

    fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        self.interrupt_vectors(kind)
    }

    fn call(&self, call: Call, answer: Answer) {
        self.call(call, answer);
    }
}
