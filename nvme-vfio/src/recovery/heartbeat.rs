//! The beats at which everybody looks at deadlines.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Link;
use crate::controller::Pulse;
use crate::options::{Options, Recovery};

/// Has queue pairs look at their deadlines: those that are polled see the pulse, those whose owners sleep are woken.
pub(crate) struct Heartbeat {
    pulse: Arc<Pulse>,
    /// The mailboxes of all queue pairs.
    links: Mutex<BTreeMap<u16, Arc<Link>>>,
    interval: Duration,
    epoch: Instant,
    /// When the last beat was, in microseconds since `epoch`.
    last: AtomicU64,
}

/// How often: deadlines are late by a quarter of the shortest one at most.
fn interval(options: &Options) -> Duration {
    let abort_timeout = options.recovery.as_ref().map(|recovery: &Recovery| recovery.abort_timeout);
    let shortest = options.io_timeout.min(abort_timeout.unwrap_or(Duration::MAX));
    (shortest / 8).clamp(Duration::from_millis(2), Duration::from_millis(500))
}

impl Heartbeat {
    pub(crate) fn new(options: &Options) -> Self {
        let interval = interval(options);
        let (epoch, last) = (Instant::now(), AtomicU64::new(0));
        Self { pulse: Arc::default(), links: Mutex::default(), interval, epoch, last }
    }

    #[inline]
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// The time between two beats.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A beat.
    pub(crate) fn beat(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
        self.pulse.count_beat();
        self.links().values().for_each(|link| link.wake_if_outstanding());
    }

    /// A beat, if it is time for one.
    pub(crate) fn beat_if_due(&self) {
        let since = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        if Duration::from_micros(since) >= self.interval {
            self.beat();
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }
}
