//! Asynchronous events, acted on (Base Specification, "Asynchronous Event Request command").
//!
//! A controller reports an event once, and the next one of the same type only when the log page that goes with it has
//! been read. So each is read: what it says is logged, and a changed namespace is identified anew.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nvme_spec::admin_command::GetLogPage;
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::identify::{IdentifyNamespace, cns};
use nvme_spec::log_page::{ErrorInformation, SmartHealthInformation};
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};
use zerocopy::{FromZeros, IntoBytes};

use crate::admin::{AdminData, AdminQueue};
use crate::controller::{Shared, identify_command};
use crate::error::Error;
use crate::namespace::Namespace;

/// Events that nobody has asked for yet; the oldest go first.
const KEPT: usize = 64;

/// What a namespace's watcher is called with.
pub(crate) type Changed = Box<dyn Fn(Result<&Namespace, &Error>) + Send + Sync>;

/// A namespace that somebody watches.
pub(crate) struct Watched {
    nsid: u32,
    /// As the watcher knows it; all zeroes once it cannot be used.
    known: Mutex<Box<IdentifyNamespace>>,
    changed: Changed,
}

impl Watched {
    pub(crate) fn new(namespace: &Namespace, changed: Changed) -> Self {
        let known = Mutex::new(Box::new(namespace.identify().clone()));
        Self { nsid: namespace.nsid(), known, changed }
    }

    /// Tells the watcher, if this is news.
    fn tell(&self, name: &str, now: &IdentifyNamespace) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_bytes() == now.as_bytes() {
            return;
        }
        **known = now.clone();
        drop(known);
        match Namespace::new(self.nsid, Box::new(now.clone())) {
            Ok(namespace) => (self.changed)(Ok(&namespace)),
            Err(what) => (self.changed)(Err(&Error::Unsupported { name: name.into(), what })),
        }
    }
}

/// Each under a number of its own.
type Watchers = Mutex<Vec<(u64, Arc<Watched>)>>;

/// Keeps a watcher called: [`crate::Controller::watch_namespace`].
#[must_use = "the watch ends when this is dropped"]
pub struct NamespaceWatch {
    id: u64,
    watchers: Weak<Watchers>,
}

impl Drop for NamespaceWatch {
    fn drop(&mut self) {
        if let Some(watchers) = self.watchers.upgrade() {
            watchers.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.id);
        }
    }
}

/// Events that have come, and who watches which namespace.
#[derive(Default)]
pub(crate) struct Events {
    queues: Mutex<Queues>,
    watchers: Arc<Watchers>,
    next_watch: AtomicU64,
    /// A namespace may have changed, and has not been looked at since.
    namespaces_changed: AtomicBool,
}

#[derive(Default)]
struct Queues {
    /// For [`crate::Controller::events`].
    unread: VecDeque<AsynchronousEvent>,
    /// For the caretaker.
    unhandled: VecDeque<AsynchronousEvent>,
}

impl Events {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, events: Vec<AsynchronousEvent>) {
        let mut queues = self.queues();
        let Queues { unread, unhandled } = &mut *queues;
        for queue in [unread, unhandled] {
            queue.extend(&events);
            let surplus = queue.len().saturating_sub(KEPT);
            queue.drain(..surplus);
        }
    }

    pub(crate) fn unread(&self) -> Vec<AsynchronousEvent> {
        self.queues().unread.drain(..).collect()
    }

    pub(crate) fn watch(&self, watched: Watched) -> NamespaceWatch {
        let id = self.next_watch.fetch_add(1, Ordering::Relaxed);
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.push((id, Arc::new(watched)));
        NamespaceWatch { id, watchers: Arc::downgrade(&self.watchers) }
    }
}

impl Shared {
    /// Takes what has come.
    pub(crate) fn take_events(&self) -> Result<(), Error> {
        let events = self.admin().events()?;
        self.events().add(events);
        Ok(())
    }

    /// Takes what has come and acts on it; unless the admin queue is busy, then the next time will do.
    pub(crate) fn handle_events(&self) {
        let Some(mut admin) = self.admin_lock_within(Duration::ZERO) else { return };
        match admin.events() {
            Ok(events) => self.events().add(events),
            Err(error) => return self.inbox().report(self.generation(), &error),
        }
        loop {
            let next = self.events().queues().unhandled.pop_front();
            let Some(event) = next else { break };
            if event == AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED {
                self.events().namespaces_changed.store(true, Ordering::Relaxed);
            }
            if let Err(error) = self.handle(&mut admin, event) {
                tracing::warn!("acting on an asynchronous event: {error}");
            }
        }
        drop(admin);
        if self.events().namespaces_changed.load(Ordering::Relaxed) {
            self.look_at_namespaces();
        }
    }

    fn handle(&self, admin: &mut AdminQueue, event: AsynchronousEvent) -> Result<(), Error> {
        match event.event_type() {
            AsynchronousEvent::TYPE_ERROR_STATUS => self.log_errors(admin, event),
            AsynchronousEvent::TYPE_SMART_HEALTH_STATUS => self.log_health(admin, event),
            // Which of them is of no interest: all that are watched are looked at.
            _ if event == AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED => {
                self.read_log(admin, event.lid(), &mut [0; 4096])
            }
            _ => {
                tracing::info!("{}: {event:?}", self.registers().name());
                self.read_log(admin, event.lid(), &mut [0; 512])
            }
        }
    }

    fn log_errors(&self, admin: &mut AdminQueue, event: AsynchronousEvent) -> Result<(), Error> {
        let mut log = [ErrorInformation::new_zeroed()];
        self.read_log(admin, event.lid(), log.as_mut_bytes())?;
        let (name, [entry]) = (self.registers().name(), log);
        let what = match event {
            AsynchronousEvent::INVALID_DOORBELL_REGISTER => "a doorbell of no queue was written",
            AsynchronousEvent::INVALID_DOORBELL_VALUE => "a doorbell was written with an invalid value",
            AsynchronousEvent::DIAGNOSTIC_FAILURE => "diagnostic failure",
            AsynchronousEvent::PERSISTENT_INTERNAL_ERROR => "persistent internal error",
            AsynchronousEvent::TRANSIENT_INTERNAL_ERROR => "transient internal error",
            AsynchronousEvent::FIRMWARE_IMAGE_LOAD_ERROR => "the firmware image could not be loaded",
            _ => "an error",
        };
        let (sqid, cid, status) = (entry.sqid, entry.cid, entry.status());
        tracing::error!(
            count = entry.error_count,
            "{name}: the controller reports: {what} (last in its error log: queue {sqid}, command {cid}, {status})"
        );
        Ok(())
    }

    fn log_health(&self, admin: &mut AdminQueue, event: AsynchronousEvent) -> Result<(), Error> {
        let mut log = SmartHealthInformation::new_zeroed();
        self.read_log(admin, event.lid(), log.as_mut_bytes())?;
        let (name, warning) = (self.registers().name(), log.critical_warning);
        let causes: Vec<&str> = warning.causes().collect();
        let causes = if causes.is_empty() { "over again".to_owned() } else { causes.join(", ") };
        tracing::warn!(
            temperature_kelvin = log.composite_temperature_kelvin(),
            spare_percent = log.available_spare,
            used_percent = log.percentage_used,
            "{name}: SMART critical warning: {causes}"
        );
        Ok(())
    }

    /// Reads a log page, and so clears the event that belongs to it.
    fn read_log(&self, admin: &mut AdminQueue, lid: u8, data: &mut [u8]) -> Result<(), Error> {
        let dwords = GetLogPage::new().with_lid(lid).with_number_of_bytes(data.len() as u64);
        let command =
            SubmissionQueueEntry::new(AdminOpcode::GET_LOG_PAGE, 0).with_nsid(u32::MAX).with_dwords(dwords);
        admin.run(command, AdminData::FromController(data), self.options().admin_timeout).map(drop)
    }

    /// Identifies all namespaces that are watched, and tells who watches them of changes. Where somebody runs a long admin
    /// command, or the controller does not answer, the next beat will do.
    pub(crate) fn look_at_namespaces(&self) {
        let later = || self.events().namespaces_changed.store(true, Ordering::Relaxed);
        self.events().namespaces_changed.store(false, Ordering::Relaxed);
        let watchers = self.events().watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (_, watched) in watchers {
            let mut identify = IdentifyNamespace::new_zeroed();
            let command = identify_command(cns::NAMESPACE, watched.nsid);
            let data = AdminData::FromController(identify.as_mut_bytes());
            let Some(mut admin) = self.admin_lock_within(Duration::ZERO) else { return later() };
            let result = admin.run(command, data, self.options().admin_timeout);
            drop(admin);
            match result {
                Ok(_) => {}
                // It is not there any more.
                Err(Error::Command { .. }) => identify = IdentifyNamespace::new_zeroed(),
                // About the controller, not the namespace: later.
                Err(error) => {
                    later();
                    tracing::warn!("looking at namespace {}: {error}", watched.nsid);
                    return;
                }
            }
            watched.tell(&self.registers().name(), &identify);
        }
    }
}
