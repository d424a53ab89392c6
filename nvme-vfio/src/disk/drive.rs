//! A drive: one controller, shared by the disks on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use block_core::MemoryRegion;
use nvme_spec::identify::IdentifyControllerNvm;

use super::counters::{Counters, QueueCounters};
use super::errno::errno;
use super::limits::{Limits, identify_nvm};
use super::memory::{RegisteredMemory, into_io};
use super::namespace::{DiskNamespace, NvmeDisk};
use super::open::Entry;
use crate::controller::Controller;
use crate::error::Error;
use crate::namespace::Namespace;
use crate::queue_pair::QueuePair;

/// One controller with everything that the disks on it share. It is closed when the last of them, and the last of
/// their queues, has gone.
pub struct Drive {
    controller: Controller,
    nvm: Box<IdentifyControllerNvm>,
    memory: RegisteredMemory,
    shared: Mutex<Shared>,
    /// Held by who has the queue pair that is kept for [`Drive::flush`].
    flushing: Mutex<()>,
    /// Declared last: the controller's name is free when the controller has been closed.
    _entry: Option<Entry>,
}

#[derive(Default)]
struct Shared {
    namespaces: BTreeMap<u32, Weak<DiskNamespace>>,
    queues: Vec<Weak<QueueCounters>>,
    /// What queues that have gone had counted.
    closed: Counters,
    /// Queue pairs in the hands of queues.
    handed_out: u16,
    /// Queue pairs that disks have said they will want, all together.
    expected: usize,
}

impl Drive {
    /// A drive on a controller that was opened with [`crate::Options::recovery`]. Whether its queues can be slept on is the controller's
    /// [`crate::Options::interrupts`].
    ///
    /// # Errors
    ///
    /// The controller does not answer, or was opened without recovery: nobody would say when its memory is free again
    /// after a fault.
    pub fn new(controller: Controller) -> Result<Arc<Self>, Error> {
        Self::alone(controller).map(Arc::new)
    }

    /// The same, with its place in the table of open drives, which is given up after the controller has been closed.
    pub(super) fn with_entry(controller: Controller, entry: Entry) -> Result<Arc<Self>, Error> {
        let drive = Self::alone(controller)?;
        Ok(Arc::new(Self { _entry: Some(entry), ..drive }))
    }

    fn alone(controller: Controller) -> Result<Self, Error> {
        if !controller.recovers() {
            let name = controller.name().into();
            return Err(Error::Unsupported { name, what: "disks need a controller with recovery".into() });
        }
        let nvm = identify_nvm(&controller)?;
        let memory = RegisteredMemory::new();
        let (shared, flushing) = (Mutex::default(), Mutex::default());
        Ok(Self { controller, nvm, memory, shared, flushing, _entry: None })
    }

    /// A namespace as a disk.
    ///
    /// # Errors
    ///
    /// There is no such namespace, or it is formatted in a way that cannot be used.
    pub fn disk(self: &Arc<Self>, nsid: u32, read_only: bool) -> Result<NvmeDisk, Error> {
        let mut shared = self.shared();
        if let Some(known) = shared.namespaces.get(&nsid).and_then(Weak::upgrade) {
            return Ok(NvmeDisk::new(self.clone(), known, read_only));
        }
        let namespace = self.controller.namespace(nsid)?;
        let identify = self.controller.identify();
        let minimum_page = self.controller.capabilities().memory_page_size_minimum();
        let max_transfer = self.controller.max_transfer();
        let limits = Limits::new(&namespace, identify, &self.nvm, max_transfer, minimum_page);
        let limits = limits.map_err(|what| {
            let name = self.controller.name().into();
            Error::Unsupported { name, what: format!("namespace {nsid}: {what}") }
        })?;
        let namespace = Arc::new(DiskNamespace::new(&self.controller, namespace, limits));
        shared.namespaces.insert(nsid, Arc::downgrade(&namespace));
        Ok(NvmeDisk::new(self.clone(), namespace, read_only))
    }

    /// The controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// What all queues on it have done so far.
    pub fn counters(&self) -> Counters {
        let shared = self.shared();
        let mut sum = shared.closed;
        shared.queues.iter().filter_map(Weak::upgrade).for_each(|queue| queue.add_to(&mut sum));
        sum
    }

    pub(super) fn memory(&self) -> &RegisteredMemory {
        &self.memory
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many queue pairs the disks' queues can have at a time. One is kept for `flush`, unless it is the only one; it
    /// takes no vector.
    fn usable(&self) -> u16 {
        let (usable, granted) = (self.controller.usable_queues(), self.controller.max_queues());
        if granted > 1 { usable.min(granted - 1) } else { usable }
    }

    /// What would give more of them.
    fn more_queue_pairs(&self) -> &'static str {
        if self.usable() < self.controller.max_queues().saturating_sub(1) {
            "poll=always: the drive has not so many interrupt vectors as queues"
        } else {
            "more queue pairs (queues=) if the drive has them"
        }
    }

    /// A disk on it will have so many queues at a time, and not as many as it said before.
    pub(super) fn expect(&self, before: usize, now: usize) -> io::Result<()> {
        let usable = self.usable();
        let mut shared = self.shared();
        let expected = (shared.expected - before).saturating_add(now);
        if expected > usable.into() && now > 0 {
            let (name, more) = (self.controller.name(), self.more_queue_pairs());
            let what = format!(
                "{name}: {expected} queue pairs are wanted, one for each reactor and disk on it, and there are {usable}: \
                 use fewer reactors or disks, or {more}"
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
        }
        shared.expected = expected;
        Ok(())
    }

    /// A queue pair for one of the disks' queues, and where that counts. To be given back by [`Drive::take_back`].
    pub(super) fn hand_out(&self) -> io::Result<(QueuePair, Arc<QueueCounters>)> {
        let usable = self.usable();
        let mut shared = self.shared();
        if shared.handed_out >= usable {
            let (name, more) = (self.controller.name(), self.more_queue_pairs());
            let what = format!(
                "{name}: all of its {usable} queue pairs are in use: each disk on it takes one for every reactor; use \
                 fewer reactors, or {more}"
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
        }
        let pair = self.controller.queue_pair().map_err(into_io)?;
        let counters = Arc::<QueueCounters>::default();
        shared.handed_out += 1;
        shared.queues.push(Arc::downgrade(&counters));
        Ok((pair, counters))
    }

    /// A queue has gone.
    pub(super) fn take_back(&self, counters: &Arc<QueueCounters>) {
        let mut shared = self.shared();
        counters.add_to(&mut shared.closed);
        shared.queues.retain(|queue| !std::ptr::eq(queue.as_ptr(), Arc::as_ptr(counters)));
        shared.handed_out -= 1;
    }

    /// # Safety
    ///
    /// As [`block_core::Disk::register_memory`].
    pub(super) unsafe fn register_memory(&self, region: &MemoryRegion<'_>) -> io::Result<()> {
        // SAFETY: by this function's condition.
        let registered = unsafe { self.memory.register(&self.controller, region) };
        registered.inspect_err(|error| {
            tracing::warn!("data in {} bytes of memory will be copied: {error}", region.len);
        })
    }

    pub(super) fn unregister_memory(&self, base: *mut u8, len: usize) {
        self.memory.unregister(base, len);
    }

    /// Makes what was written to a namespace durable, blocking.
    pub(super) fn flush(&self, namespace: &Namespace) -> io::Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pair = self.controller.polled_queue_pair().map_err(into_io)?;
        pair.flush(namespace, 0).map_err(io::Error::other)?;
        pair.kick();
        let mut flushed = None;
        while flushed.is_none() {
            pair.poll(|_, result| flushed = Some(result)).map_err(io::Error::other)?;
            if flushed.is_none() {
                pair.check().map_err(io::Error::other)?;
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        match flushed {
            Some(Err(status)) => Err(io::Error::from_raw_os_error(errno(status))),
            _ => Ok(()),
        }
    }
}
