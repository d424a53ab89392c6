//! A controller: bringing it up, asking it about itself, shutting it down.

mod bring_up;
mod condition;
mod handle;
mod shared;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, NamespaceIdentificationDescriptors, NamespaceIdentifier,
    NamespaceList, cns,
};
use nvme_spec::registers::{Cap, Version};
use nvme_spec::{Status, SubmissionQueueEntry};
use zerocopy::{FromBytes, IntoBytes};

use crate::admin::AdminData;
use crate::dma::{DmaBuffer, DmaMapping};
use crate::error::Error;
use crate::events::{NamespaceWatch, Watched};
use crate::io_queue;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::queue_pair::QueuePair;
use crate::recovery::inbox::Request;
use crate::recovery::{Condition, RecoveryCounters};
use crate::transport::{DmaMemory, Transport};
pub(crate) use bring_up::identify_command;
pub(crate) use condition::Pulse;
pub(crate) use handle::Handle;
pub(crate) use shared::Shared;

/// More namespaces than any controller has.
const MAX_NAMESPACES: usize = 1 << 16;

/// A controller, enabled and identified. Clones are handles to the same one, for any thread. When the last of them
/// and the last of its queue pairs is dropped, the controller is shut down in an orderly way (CC.SHN).
#[derive(Clone)]
pub struct Controller {
    shared: Arc<Handle>,
}

impl Controller {
    /// Takes a controller in whatever state it is, disables it, enables it, and identifies it.
    ///
    /// # Errors
    ///
    /// The controller cannot be reached, does not do what it should in time, or cannot be worked with.
    pub fn open(transport: Box<dyn Transport>, options: Options) -> Result<Self, Error> {
        Ok(Self { shared: Arc::new(Handle::open(transport, options)?) })
    }

    /// What to call it in messages.
    pub fn name(&self) -> &str {
        self.shared.registers().transport().name()
    }

    /// What it says about itself (Identify, CNS 01h).
    pub fn identify(&self) -> &IdentifyController {
        &self.shared.identify
    }

    /// The version of the specification that it says it follows.
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// Its capabilities register.
    pub fn capabilities(&self) -> Cap {
        self.shared.cap()
    }

    /// Largest read or write, in bytes.
    pub fn max_transfer(&self) -> u32 {
        self.shared.max_transfer()
    }

    /// The memory page size that the controller was enabled with (CC.MPS), in bytes.
    pub fn memory_page_size(&self) -> u64 {
        self.shared.memory_page_size()
    }

    /// How many queue pairs the controller has granted.
    pub fn max_queues(&self) -> u16 {
        self.shared.queue_ids().granted
    }

    /// How many of them [`Controller::queue_pair`] can make: with [`Options::interrupts`], each takes a vector.
    pub fn usable_queues(&self) -> u16 {
        io_queue::most(&self.shared)
    }

    /// Whether shadow doorbells are in use.
    pub fn shadow_doorbells(&self) -> bool {
        self.shared.shadow().is_some()
    }

    /// The identifiers of the active namespaces, in order.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or refuses.
    pub fn namespace_ids(&self) -> Result<Vec<u32>, Error> {
        if self.shared.version < Version::new().with_mjr(1).with_mnr(1) {
            // NVMe 1.0 has no list: all of them are there.
            return Ok((1..=self.shared.identify.nn.min(1024)).collect());
        }
        let mut nsids: Vec<u32> = Vec::new();
        while nsids.len() < MAX_NAMESPACES {
            let last = nsids.last().copied().unwrap_or(0);
            let list: Box<NamespaceList> = self.identify_as(cns::ACTIVE_NAMESPACE_ID_LIST, last)?;
            let before = nsids.len();
            // A list that does not ascend, or goes on past the largest identifier that there is, would never end.
            let valid = last + 1..=self.shared.identify.nn.min(0xffff_fffe);
            nsids.extend(list.0.iter().take_while(|nsid| **nsid != 0).filter(|nsid| valid.contains(nsid)));
            if nsids.len() - before < list.0.len() || nsids.last() == Some(valid.end()) {
                return Ok(nsids);
            }
        }
        let what = format!("it says that it has more than {MAX_NAMESPACES} namespaces");
        Err(self.shared.unsupported(what))
    }

    /// What the controller says about a namespace (Identify, CNS 00h). All zeroes: it is not active.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or there can be no such namespace.
    pub fn identify_namespace(&self, nsid: u32) -> Result<Box<IdentifyNamespace>, Error> {
        self.identify_as(cns::NAMESPACE, nsid)
    }

    /// A namespace's identifiers (Identify, CNS 03h); none before NVMe 1.3.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify_namespace`].
    pub fn namespace_identifiers(&self, nsid: u32) -> Result<Vec<NamespaceIdentifier>, Error> {
        if self.shared.version < Version::new().with_mjr(1).with_mnr(3) {
            return Ok(Vec::new());
        }
        let list: Box<NamespaceIdentificationDescriptors> =
            self.identify_as(cns::NAMESPACE_IDENTIFICATION_DESCRIPTOR_LIST, nsid)?;
        Ok(list.iter().collect())
    }

    /// A namespace, to read and write.
    ///
    /// # Errors
    ///
    /// The controller does not answer, there is no such namespace, or it is formatted in a way that this driver does
    /// not handle.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace, Error> {
        let unsupported = |what| Error::Unsupported { name: self.name().into(), what };
        let identify = self.identify_namespace(nsid).map_err(|error| match error {
            Error::Command { status, .. } if status.is(Status::INVALID_NAMESPACE) => {
                unsupported(format!("there is no namespace {nsid}"))
            }
            error => error,
        })?;
        Namespace::new(nsid, identify).map_err(unsupported)
    }

    /// All active namespaces that can be read and written; what is wrong with others is logged.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        let mut namespaces = Vec::new();
        for nsid in self.namespace_ids()? {
            match self.namespace(nsid) {
                Ok(namespace) => namespaces.push(namespace),
                Err(error @ Error::Unsupported { .. }) => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(namespaces)
    }

    /// Memory for data, of so many bytes.
    ///
    /// # Errors
    ///
    /// There is not so much memory, or not so much address space, or the transport refuses.
    pub fn alloc_dma(&self, len: usize) -> Result<DmaBuffer, Error> {
        self.shared.space().allocate(len)
    }

    /// Lets the controller reach memory that is not the driver's own, such as a guest's, for as long as the mapping
    /// lives. It begins and ends at multiples of a page.
    ///
    /// # Errors
    ///
    /// It does not, there is not so much address space, or the transport refuses.
    ///
    /// # Safety
    ///
    /// The memory stays mapped into this process until [`DmaMapping::unmap`] has returned `Ok`, or the mapping was
    /// dropped without a warning, or the controller has been closed; and nobody has Rust references to it, for the
    /// controller writes it at any time.
    pub unsafe fn map_dma(&self, memory: &DmaMemory<'_>) -> Result<DmaMapping, Error> {
        // SAFETY: by this function's condition.
        unsafe { self.shared.space().map_foreign(memory) }
    }

    /// Creates an I/O queue pair, for one thread.
    ///
    /// # Errors
    ///
    /// All queues that the controller has granted are in use, or it refuses.
    pub fn queue_pair(&self) -> Result<QueuePair, Error> {
        io_queue::create(&self.shared)
    }

    /// The same without an interrupt, of the queues that are handed out last: for a thread that waits on the spot.
    pub(crate) fn polled_queue_pair(&self) -> Result<QueuePair, Error> {
        io_queue::create_polled(&self.shared)
    }

    /// Runs an admin command, of which all but command identifier and data pointer is set, and gives dword 0 of its
    /// completion. Other threads' admin commands wait meanwhile.
    ///
    /// # Errors
    ///
    /// The controller refused ([`Error::Command`]), or does not answer.
    pub fn admin(&self, command: SubmissionQueueEntry, data: AdminData<'_>) -> Result<u32, Error> {
        self.admin_within(command, data, self.shared.options().admin_timeout)
    }

    /// As [`Controller::admin`], for a command that may take longer or shall not.
    ///
    /// # Errors
    ///
    /// As [`Controller::admin`].
    pub fn admin_within(
        &self,
        command: SubmissionQueueEntry,
        data: AdminData<'_>,
        limit: Duration,
    ) -> Result<u32, Error> {
        self.shared.check_usable()?;
        self.shared.admin().run(command, data, limit)
    }

    /// The asynchronous events that have come since the last time, for information. With [`Options::recovery`] they
    /// have been acted on, or will be; without, the log page that an event names has to be read before the controller
    /// reports the like again.
    ///
    /// # Errors
    ///
    /// The admin queue has broken.
    pub fn events(&self) -> Result<Vec<AsynchronousEvent>, Error> {
        self.shared.check_usable()?;
        self.shared.take_events()?;
        Ok(self.shared.events().unread())
    }

    /// Has `changed` called, on a thread of the driver's, whenever the controller has reported that this namespace has
    /// changed and Identify says so too: with the namespace as it is now, or with why it cannot be used any more. Not
    /// before this returns, and not after the watch was dropped, except for a call that is under way then. Needs
    /// [`Options::recovery`].
    ///
    /// `changed` must not wait for the controller (admin commands are fine, [`Controller::reset`] is not).
    pub fn watch_namespace(
        &self,
        namespace: &Namespace,
        changed: impl Fn(Result<&Namespace, &Error>) + Send + Sync + 'static,
    ) -> NamespaceWatch {
        self.shared.events().watch(Watched::new(namespace, Box::new(changed)))
    }

    /// Resets the controller (CC.EN, or, if that does not help, the function) and brings it up again.
    ///
    /// With [`Options::recovery`], queue pairs go on afterwards by themselves, see [`crate::recovery`]. Without, all
    /// that were made before are broken by it ([`crate::Fault::Reset`]): drop them and make new ones.
    ///
    /// # Errors
    ///
    /// The controller does not come back; without recovery, it may be tried again.
    pub fn reset(&self) -> Result<(), Error> {
        if self.shared.options().recovery.is_none() {
            return self.shared.restart();
        }
        self.shared.check_usable()?;
        let (sender, receiver) = mpsc::sync_channel(1);
        self.shared.inbox().ask(Request::Reset(sender));
        // The caretaker lives as long as this handle.
        receiver.recv().unwrap_or_else(|_| self.shared.check_usable())
    }

    /// Whether it was opened with [`Options::recovery`].
    pub(crate) fn recovers(&self) -> bool {
        self.shared.options().recovery.is_some()
    }

    /// How it is doing.
    pub fn condition(&self) -> Condition {
        self.shared.condition()
    }

    /// Why it was given up, if it was.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure().get().map(String::as_str)
    }

    /// What recovery has had to do so far.
    pub fn recovery_counters(&self) -> RecoveryCounters {
        self.shared.counters().get()
    }

    fn identify_as<T: FromBytes + IntoBytes>(&self, cns: u8, nsid: u32) -> Result<Box<T>, Error> {
        let mut data = Box::new(T::new_zeroed());
        self.admin(identify_command(cns, nsid), AdminData::FromController(data.as_mut_bytes()))?;
        Ok(data)
    }
}
