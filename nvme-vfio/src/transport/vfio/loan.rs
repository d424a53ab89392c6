//! What the kernel has lent: device and address space, until this process gives them back, which it may do while there
//! still are users of the transport.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::device::Device;
use super::{AddressSpace, OpenError, PciAddress, pci};

/// A device with its address space, as long as this process has them.
pub(super) struct Loan(RwLock<Option<Lent>>);

/// In the order in which they are given back: the device, then its address space.
struct Lent {
    device: Device,
    space: AddressSpace,
    claim: Claim,
}

/// The devices that this process has, or is about to. The kernel would give one out of an open group a second time.
static CLAIMED: Mutex<BTreeSet<PciAddress>> = Mutex::new(BTreeSet::new());

/// The right to a device, inside this process.
pub(super) struct Claim(PciAddress);

impl Claim {
    pub(super) fn new(address: PciAddress) -> Result<Self, OpenError> {
        if Self::claimed().insert(address) { Ok(Self(address)) } else { Err(OpenError::Open(address)) }
    }

    fn claimed() -> MutexGuard<'static, BTreeSet<PciAddress>> {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        Self::claimed().remove(&self.0);
    }
}

impl Loan {
    pub(super) fn new(device: Device, space: AddressSpace, claim: Claim) -> Self {
        Self(RwLock::new(Some(Lent { device, space, claim })))
    }

    fn lent(&self) -> RwLockReadGuard<'_, Option<Lent>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the device, unless it has been given back.
    pub(super) fn device<T>(&self, action: impl FnOnce(&Device) -> io::Result<T>) -> io::Result<T> {
        action(&self.lent().as_ref().ok_or_else(given_back)?.device)
    }

    /// Does something with the address space, unless it has been given back, and all that was in it.
    pub(super) fn space<T>(&self, action: impl FnOnce(&AddressSpace) -> io::Result<T>) -> io::Result<T> {
        action(&self.lent().as_ref().ok_or_else(given_back)?.space)
    }

    pub(super) fn is_over(&self) -> bool {
        self.lent().is_none()
    }

    /// Gives both back.
    pub(super) fn end(&self) {
        let lent = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Lent { device, space, claim }) = lent {
            // The kernel resets the device when it is closed, if it can. If it cannot, at least no DMA of it goes on.
            if let Err(error) = pci::stop_bus_mastering(&device) {
                tracing::debug!("switching bus mastering off: {error}");
            }
            drop(device);
            drop(space);
            drop(claim);
        }
    }
}

fn given_back() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device was given back to the kernel")
}
