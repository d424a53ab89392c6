//! What a queue pair's owner and the caretaker tell each other.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::io_queue::Rings;

/// A queue pair's mailbox.
pub(crate) struct Link {
    pub(crate) qid: u16,
    /// The interrupt vector that its completion queue uses.
    pub(crate) vector: Option<u16>,
    /// What its owner sleeps on.
    eventfd: Option<Arc<OwnedFd>>,
    /// Whether the owner waits for completions, as it said last.
    outstanding: AtomicBool,
    delivery: Mutex<Delivery>,
}

/// What lies in the mailbox.
pub(crate) enum Delivery {
    Nothing,
    /// The queues that were asked for.
    Rings(Box<Rings>),
    /// There will be none: the controller refused.
    Refused,
    /// The queue pair has gone.
    Closed,
}

impl Link {
    pub(crate) fn new(qid: u16, vector: Option<u16>, eventfd: Option<Arc<OwnedFd>>) -> Self {
        let delivery = Mutex::new(Delivery::Nothing);
        Self { qid, vector, eventfd, outstanding: AtomicBool::new(false), delivery }
    }

    fn lock(&self) -> MutexGuard<'_, Delivery> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner: says whether it waits for completions.
    #[inline]
    pub(crate) fn set_outstanding(&self, outstanding: bool) {
        // Only what sleeps has to be woken.
        if self.eventfd.is_some() {
            self.outstanding.store(outstanding, Ordering::Relaxed);
        }
    }

    /// The owner: fetches what has been delivered. Does not wait.
    pub(crate) fn fetch(&self) -> Delivery {
        match self.delivery.try_lock() {
            Ok(mut delivery) => std::mem::replace(&mut delivery, Delivery::Nothing),
            Err(TryLockError::Poisoned(poisoned)) => {
                std::mem::replace(&mut poisoned.into_inner(), Delivery::Nothing)
            }
            // Being delivered.
            Err(TryLockError::WouldBlock) => Delivery::Nothing,
        }
    }

    /// The owner has gone: nothing is delivered any more. What was and has not been fetched.
    pub(crate) fn close(&self) -> Option<Box<Rings>> {
        match std::mem::replace(&mut *self.lock(), Delivery::Closed) {
            Delivery::Rings(rings) => Some(rings),
            _ => None,
        }
    }

    /// The caretaker: delivers what `make` makes, unless the owner has gone.
    pub(crate) fn deliver<E>(&self, make: impl FnOnce() -> Result<Delivery, E>) -> Result<(), E> {
        let mut delivery = self.lock();
        if !matches!(*delivery, Delivery::Closed) {
            *delivery = make()?;
        }
        Ok(())
    }

    /// The caretaker: wakes the owner, if it sleeps and waits for something.
    pub(crate) fn wake_if_outstanding(&self) {
        if self.outstanding.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// The caretaker: wakes the owner.
    pub(crate) fn wake(&self) {
        if let Some(eventfd) = &self.eventfd {
            // Fails only if it is at its maximum, which is awake enough.
            let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
        }
    }
}
