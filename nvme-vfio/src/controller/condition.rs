//! What recovery does to a controller, and how everybody else learns of it.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{OnceLock, TryLockError};
use std::time::{Duration, Instant};

use super::{Shared, bring_up};
use crate::admin::AdminQueue;
use crate::error::{Error, Fault};
use crate::recovery::Condition;

/// What every queue pair looks at in every poll, on a cache line that is hardly ever written.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Pulse {
    /// Counts up whenever there is something to look at.
    beats: AtomicU32,
    /// Counts resets: queues made before one are of no use after it.
    generation: AtomicU32,
    condition: AtomicU8,
    /// Resets that were tried before the controller was given up; [`TAKEN_BACK`], [`LOST`]: it was not.
    resets: AtomicU32,
}

/// In place of a number of resets: the controller was wanted back.
const TAKEN_BACK: u32 = u32::MAX;
/// In place of a number of resets: none could have helped.
const LOST: u32 = u32::MAX - 1;

impl Pulse {
    #[inline]
    pub(crate) fn beats(&self) -> u32 {
        self.beats.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Has everybody look up.
    pub(crate) fn count_beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn condition(&self) -> Condition {
        // Acquire: whoever sees a new condition sees what led to it.
        match self.condition.load(Ordering::Acquire) {
            0 => Condition::Running,
            1 => Condition::Recovering,
            _ => Condition::Failed,
        }
    }

    /// How the controller has failed for good, if it has.
    pub(crate) fn failure(&self) -> Option<Fault> {
        (self.condition() == Condition::Failed).then(|| match self.resets.load(Ordering::Relaxed) {
            TAKEN_BACK => Fault::TakenBack,
            LOST => Fault::Lost,
            resets => Fault::GivenUp { resets },
        })
    }
}

/// Why a controller was given up, or back.
pub(crate) type Failure = OnceLock<String>;

impl Shared {
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.pulse().generation()
    }

    pub(crate) fn condition(&self) -> Condition {
        self.pulse().condition()
    }

    pub(crate) fn set_condition(&self, condition: Condition) {
        self.pulse().condition.store(condition as u8, Ordering::Release);
    }

    /// Fails if the controller was given up.
    pub(crate) fn check_usable(&self) -> Result<(), Error> {
        match self.pulse().failure() {
            None => Ok(()),
            Some(fault) => Err(Error::Queue { name: self.registers().name(), fault }),
        }
    }

    /// From now on, everything fails with this.
    pub(crate) fn set_failure(&self, error: &Error) {
        let resets = match error {
            Error::GivenUp { resets, .. } => *resets,
            Error::Lost { .. } => LOST,
            _ => TAKEN_BACK,
        };
        // Set once: a controller that has failed is not recovered any more.
        let _ = self.failure().set(error.to_string());
        self.pulse().resets.store(resets, Ordering::Relaxed);
        self.set_condition(Condition::Failed);
    }

    /// The admin queue, unless somebody else has it all the time, or a reset is coming.
    pub(crate) fn admin_lock_within(&self, limit: Duration) -> Option<MutexGuard<'_, AdminQueue>> {
        let start = Instant::now();
        loop {
            match self.admin_mutex().try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock)
                    if start.elapsed() < limit && !self.inbox().is_faulted(self.generation()) =>
                {
                    self.heartbeat().beat_if_due();
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    /// Resets the controller and brings it up again, without I/O queues.
    ///
    /// When this returns, whatever it returns, nothing of the old generation will be begun; and if
    /// [`Shared::is_quiet`], nothing of it goes on.
    pub(crate) fn restart(&self) -> Result<(), Error> {
        // Who has it sees in time that a fault was reported, or that the controller does not answer.
        let mut admin = self.admin();
        // Queue pairs see it before the controller does, so that none of them rings a doorbell of what comes after.
        self.pulse().generation.fetch_add(1, Ordering::SeqCst);
        self.pulse().count_beat();
        self.forget_shadow_doorbells();
        self.set_quiet(false);
        let timeout = self.registers().ready_timeout(self.cap())?;
        bring_up::disable_or_reset(self.registers(), timeout)?;
        self.set_quiet(true);
        *admin = self.new_admin_queue()?;
        self.bring_up_again(&mut admin, timeout).inspect_err(|_| {
            // The queues in use before are about to be given up. The error at hand says more than another one would.
            self.set_quiet(self.registers().disable(timeout).is_ok());
        })
    }

    fn bring_up_again(&self, admin: &mut AdminQueue, timeout: Duration) -> Result<(), Error> {
        self.set_quiet(false);
        bring_up::enable(self.registers(), self.cap(), self.memory_page_size(), timeout)?;
        let limit = self.options().admin_timeout;
        let identify = bring_up::identify_controller(self.registers(), admin, limit)?;
        if (&identify.sn, &identify.mn) != (&self.identify.sn, &self.identify.mn) {
            let (name, serial) = (self.registers().name(), |sn: &dyn std::fmt::Display| sn.to_string());
            let (found, expected) = (serial(&identify.sn), serial(&self.identify.sn));
            return Err(Error::Replaced { name, found, expected });
        }
        self.configure(admin)
    }

    /// Shuts the controller down in order, and gives it back to whoever wants it. When this returns, nothing goes on in it.
    pub(crate) fn give_back(&self) {
        // As in `restart`.
        let _admin = self.admin();
        self.pulse().generation.fetch_add(1, Ordering::SeqCst);
        self.pulse().count_beat();
        if self.condition() != Condition::Failed {
            self.shut_down();
        }
        // The address space may be that of other devices too.
        self.space().cut_off();
        self.registers().transport().give_back();
        self.set_quiet(true);
    }

    /// Ends what a controller that has been given up still does: disables it or, if that does not work, takes its memory
    /// away. Where nothing reaches it any more, its memory stays what it is.
    pub(crate) fn stop(&self, limit: Duration) {
        self.pulse().generation.fetch_add(1, Ordering::SeqCst);
        let lost = self.registers().transport().lost().is_some();
        if lost || self.is_quiet() || self.registers().disable(limit).is_ok() {
            return;
        }
        let name = self.registers().name();
        if let Err(error) = self.registers().transport().stop_dma() {
            tracing::warn!("{name}: its bus mastering cannot be switched off: {error}");
        }
        self.space().cut_off();
    }
}
