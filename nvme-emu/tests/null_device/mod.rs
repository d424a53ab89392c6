//! A PCI function that does as little as can be: what is measured around it is the front door's.

use nvme_emu::pci::function::DoorbellPage;
use nvme_emu::pci::{Answer, Call, InterruptKind};
use nvme_emu::vfio_user::Device;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what reaches it. Clones are the same device.
#[derive(Clone, Default)]
pub struct NullDevice(Arc<Counts>);

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    calls: AtomicU64,
}

impl NullDevice {
    /// Writes to BAR0 and calls so far.
    pub fn seen(&self) -> (u64, u64) {
        (self.0.writes.load(Ordering::Relaxed), self.0.calls.load(Ordering::Relaxed))
    }
}

impl Device for NullDevice {
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn bar0_len(&self) -> u64 {
        0x4000
    }

    fn read_bar0(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_bar0(&self, _offset: u64, _data: &[u8]) {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        None
    }

    fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        if kind == InterruptKind::Intx { 1 } else { 9 }
    }

    /// Closes what comes with the call, and is done with it.
    fn call(&self, call: Call, answer: Answer) {
        drop(call);
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        answer(Ok(()));
    }
}
