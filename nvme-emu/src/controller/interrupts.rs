//! Interrupts: which eventfd a vector fires, and the pin.

use rustix::io::write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Where vectors lead. An immutable snapshot that reactors hold; changes make another one.
///
/// The MSI-X table in BAR0 is storage only: a vfio-user client keeps the real one (it traps the guest's accesses
/// to it), masks and routes by it, and connects and disconnects eventfds here.
#[derive(Clone, Debug)]
pub(crate) struct Vectors {
    pub(crate) intx: Option<Arc<OwnedFd>>,
    pub(crate) msix: Vec<Option<Arc<OwnedFd>>>,
}

impl Vectors {
    pub(crate) fn new(msix: u16) -> Self {
        Self { intx: None, msix: vec![None; usize::from(msix)] }
    }

    /// MSI-X is in use when the client has connected any of its vectors; otherwise the pin is.
    pub(crate) fn uses_msix(&self) -> bool {
        self.msix.iter().any(Option::is_some)
    }

    /// Fires an MSI-X vector, if it is connected.
    #[inline]
    pub(crate) fn fire_msix(&self, vector: u16) -> bool {
        self.msix.get(usize::from(vector)).is_some_and(fire)
    }
}

/// Adds 1 to the eventfd; at its limit (nobody has looked for 2^64 interrupts) there is nothing to add.
fn fire(eventfd: &Option<Arc<OwnedFd>>) -> bool {
    eventfd.as_ref().is_some_and(|fd| write(fd.as_fd(), &1u64.to_ne_bytes()).is_ok())
}

/// The pin: level-triggered, asserted while any completion queue with interrupts enabled has entries that the guest
/// has not taken, masked by INTMS, by the command register, and by itself each time that it fires (as
/// `VFIO_IRQ_INFO_AUTOMASKED` says) until the client unmasks it at the guest's end of interrupt.
#[derive(Debug, Default)]
pub(crate) struct Pin {
    /// Completion queues that ask for an interrupt.
    asserting: AtomicU32,
    masked: AtomicBool,
    /// INTMS/INTMC; bit 0 is the pin's.
    pub(crate) interrupt_mask: AtomicU32,
    /// Command register: Interrupt Disable.
    pub(crate) disabled: AtomicBool,
    /// Set when the pin's state has to be looked at again by whoever knows the queues.
    pub(crate) recheck: AtomicBool,
}

impl Pin {
    /// As after power on; which queues assert it is theirs to say.
    pub(crate) fn reset(&self) {
        self.masked.store(false, Ordering::Release);
        self.interrupt_mask.store(0, Ordering::Release);
        self.disabled.store(false, Ordering::Release);
    }

    /// One more completion queue asks.
    pub(crate) fn assert(&self) {
        self.asserting.fetch_add(1, Ordering::AcqRel);
    }

    /// One fewer asks.
    pub(crate) fn deassert(&self) {
        self.asserting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Interrupt Status of the configuration space.
    pub(crate) fn is_asserted(&self) -> bool {
        self.asserting.load(Ordering::Acquire) > 0
    }

    pub(crate) fn set_masked(&self, masked: bool) {
        self.masked.store(masked, Ordering::Release);
    }

    /// Fires if the level asks for it and nothing masks it. Says whether it fired.
    pub(crate) fn update(&self, vectors: &Vectors) -> bool {
        if !self.is_asserted()
            || self.interrupt_mask.load(Ordering::Acquire) & 1 != 0
            || self.disabled.load(Ordering::Acquire)
            || vectors.intx.is_none()
            || self.masked.swap(true, Ordering::AcqRel)
        {
            return false;
        }
        fire(&vectors.intx)
    }

    /// Fires whatever the level (a client testing its wiring).
    pub(crate) fn fire(&self, vectors: &Vectors) {
        fire(&vectors.intx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::read;

    fn pin_with_eventfd() -> (Pin, Vectors) {
        let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        (Pin::default(), Vectors { intx: Some(fd), msix: vec![] })
    }

    fn fired(vectors: &Vectors) -> bool {
        read(vectors.intx.as_ref().unwrap(), &mut [0; 8]).is_ok()
    }

    #[test]
    fn the_pin_fires_once_until_it_is_unmasked() {
        let (pin, vectors) = pin_with_eventfd();
        pin.assert();
        assert!(pin.update(&vectors) && fired(&vectors));
        assert!(!pin.update(&vectors) && !fired(&vectors));
        pin.set_masked(false);
        assert!(pin.update(&vectors) && fired(&vectors), "the level is still there");
        pin.deassert();
        pin.set_masked(false);
        assert!(!pin.update(&vectors) && !fired(&vectors));
    }

    #[test]
    fn a_masked_pin_stays_quiet_and_fires_afterwards() {
        let (pin, vectors) = pin_with_eventfd();
        pin.interrupt_mask.store(1, Ordering::Relaxed);
        pin.assert();
        assert!(!pin.update(&vectors));
        pin.interrupt_mask.store(0, Ordering::Relaxed);
        assert!(pin.update(&vectors));
    }

    #[test]
    fn vectors_past_the_table_do_not_fire() {
        let vectors = Vectors::new(2);
        assert!(!vectors.uses_msix() && !vectors.fire_msix(0) && !vectors.fire_msix(2));
    }
}
