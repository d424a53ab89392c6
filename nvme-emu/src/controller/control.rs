//! The control thread: one loop over one channel, for all controllers of an engine.

use super::interrupts::Vectors;
use super::queues::Queues;
use super::resize::KnownCapacities;
use super::shared::{Finding, Shared};
use super::write_cache::WriteCache;
use crate::admin::{Admin, AsyncEvent, CommandError};
use crate::memory::MemoryMap;
use crate::pci::function::{Answer, Call, InterruptKind};
use crate::reactor::handle::ReactorHandle;
use crate::reactor::message::{ControllerIndex, Message, ShardRequest, Ticket, Tuning};
use crate::subsystem::Subsystem;
use block_core::CapacityWatcher;
use crossbeam::channel::{Receiver, Sender};
use nvme_spec::log_page::ParameterErrorLocation;
use nvme_spec::{Status, SubmissionQueueEntry};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the control thread hears of.
pub(crate) enum Event {
    /// A controller that has just been made, in order of the indexes.
    Add(Box<Controller>),
    /// A front door's call.
    Call(ControllerIndex, Call, Answer),
    /// A command of the admin queue.
    Admin(ControllerIndex, Box<SubmissionQueueEntry>),
    /// A reactor has done what a ticket names.
    Done(Ticket, Result<(), i32>),
    /// [`Shared::take_findings`] has some.
    Found(ControllerIndex),
    /// A disk of a controller's may have become another size.
    Resized(ControllerIndex),
    /// Resets all controllers, and answers.
    Stop(Sender<()>),
    /// The reactors have ended, and with them the disks' queues: flushes all disks, and ends the thread.
    Exit,
}

/// What a controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Disabled,
    Enabling,
    /// Enabled, or failed to be (CSTS.CFS).
    Enabled,
    Disabling,
}

/// What runs when all reactors have answered; the error is the first one's.
pub(super) type Then = Box<dyn FnOnce(&mut Control, Result<(), i32>) + Send>;

struct Pending {
    left: usize,
    result: Result<(), i32>,
    then: Then,
}

/// A controller, as its control thread knows it.
pub(crate) struct Controller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) admin: Admin,
    pub(super) map: Arc<MemoryMap>,
    pub(super) vectors: Arc<Vectors>,
    pub(super) state: State,
    /// Resets that have been acted on, of [`super::registers::Registers::disables`].
    pub(super) handled_disables: u32,
    /// What waits for a reset to be through.
    pub(super) after_reset: Vec<Then>,
    pub(super) queues: Queues,
    pub(super) max_transfer: u32,
    pub(super) write_cache: WriteCache,
    pub(super) warned_of_private_memory: bool,
    pub(super) capacities: KnownCapacities,
    /// The disks call it for as long as it is here.
    _resized: Arc<CapacityWatcher>,
}

impl Controller {
    pub(crate) fn new(
        shared: Arc<Shared>,
        admin: Admin,
        max_transfer: u32,
        resized: Arc<CapacityWatcher>,
    ) -> Self {
        let vectors = Arc::new(Vectors::new(shared.io_queues + 1));
        Self {
            shared,
            capacities: KnownCapacities::of(admin.subsystem()),
            _resized: resized,
            admin,
            map: Arc::default(),
            vectors,
            state: State::Disabled,
            handled_disables: 0,
            after_reset: Vec::new(),
            queues: Queues::default(),
            max_transfer,
            write_cache: WriteCache::default(),
            warned_of_private_memory: false,
        }
    }

    pub(crate) fn vectors(&self) -> Arc<Vectors> {
        self.vectors.clone()
    }

    pub(super) fn subsystem(&self) -> Arc<Subsystem> {
        self.admin.subsystem().clone()
    }

    /// The features that the data path acts on, as they are now.
    pub(super) fn tuning(&self) -> Tuning {
        let features = self.admin.features();
        let coalescing = features.interrupt_coalescing();
        Tuning {
            burst: features.arbitration().arbitration_burst().unwrap_or(u32::MAX),
            write_cache: features.volatile_write_cache() && !self.write_cache.is_unused(),
            coalescing_threshold: coalescing.aggregation_threshold(),
            coalescing_time_us: u32::try_from(coalescing.aggregation_time().as_micros()).unwrap_or(u32::MAX),
            coalescing_disabled: (0..=self.shared.io_queues)
                .map(|vector| features.coalescing_disabled(vector))
                .collect(),
        }
    }

    /// Failures of the data path go into the error log.
    pub(super) fn take_reports(&mut self) {
        for failure in self.shared.take_failures() {
            self.admin.record_error(CommandError {
                sqid: failure.sqid,
                cid: failure.cid,
                status: failure.status,
                location: ParameterErrorLocation::NONE,
                lba: failure.lba,
                nsid: failure.nsid,
            });
        }
    }

    fn bad_doorbell(&mut self, event: AsyncEvent) {
        self.admin.bad_doorbell(event, None);
        self.post_events();
    }

    /// Posts a completion to the admin queue.
    pub(super) fn complete_admin(&self, cid: u16, status: Status, dw0: u32) {
        self.to_home(ShardRequest::CompleteAdmin { cid, status, dw0 });
    }

    pub(super) fn to_home(&self, request: ShardRequest) {
        let home = &self.shared.reactors[self.shared.home];
        home.send(Message::ToShard(self.shared.index, request, None));
    }

    /// Completes Asynchronous Event Requests that have something to say.
    pub(super) fn post_events(&mut self) {
        while let Some(event) = self.admin.take_event_completion() {
            let request =
                ShardRequest::CompleteParked { cid: event.cid, status: Status::SUCCESS, dw0: event.dw0 };
            self.to_home(request);
        }
        let Some(faults) = self.shared.faults.clone() else { return };
        while faults.has_event()
            && let Some(cid) = self.admin.take_event_request()
        {
            let dw0 = faults.take_event().unwrap_or(0);
            self.to_home(ShardRequest::CompleteParked { cid, status: Status::SUCCESS, dw0 });
        }
    }
}

/// The control thread's state.
pub(crate) struct Control {
    pub(super) reactors: Arc<[ReactorHandle]>,
    pub(super) controllers: Vec<Controller>,
    pending: HashMap<Ticket, Pending>,
    next_ticket: u64,
    /// Held by every controller that is not yet reset, and who is told when none is left.
    pub(super) stopping: Option<(Arc<()>, Sender<()>)>,
}

impl Control {
    pub(crate) fn new(reactors: Arc<[ReactorHandle]>) -> Self {
        Self { reactors, controllers: Vec::new(), pending: HashMap::new(), next_ticket: 0, stopping: None }
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self, events: &Receiver<Event>) {
        for event in events {
            match event {
                Event::Add(controller) => self.controllers.push(*controller),
                Event::Call(index, call, answer) => self.call(index, call, answer),
                Event::Admin(index, sqe) => self.admin(index, &sqe),
                Event::Done(ticket, result) => self.done(ticket, result),
                Event::Found(index) => self.found(index),
                Event::Resized(index) => self.resized(index),
                Event::Stop(answer) => self.stop(answer),
                Event::Exit => return self.flush(),
            }
            self.finish_stop();
        }
    }

    fn found(&mut self, index: ControllerIndex) {
        for finding in self.controllers[index].shared.take_findings() {
            let controller = &mut self.controllers[index];
            match finding {
                Finding::InvalidDoorbellRegister => {
                    controller.bad_doorbell(AsyncEvent::InvalidDoorbellRegister)
                }
                Finding::InvalidDoorbellValue => controller.bad_doorbell(AsyncEvent::InvalidDoorbellValue),
                Finding::MissingMemory => self.fault(index),
                Finding::SubsystemReset => self.subsystem_reset(index),
                Finding::FunctionReset => self.function_reset(index),
                Finding::Configured => self.reconcile(index),
                Finding::ScriptedEvent => controller.post_events(),
            }
        }
    }

    /// Sends a request to one reactor's shard of a controller and goes on with `then` when it has been done.
    pub(super) fn ask(&mut self, index: ControllerIndex, reactor: usize, request: ShardRequest, then: Then) {
        let ticket = self.ticket(1, then);
        self.reactors[reactor].send(Message::ToShard(index, request, Some(ticket)));
    }

    /// As [`Control::ask`], to all reactors.
    pub(super) fn ask_all(&mut self, index: ControllerIndex, request: impl Fn() -> ShardRequest, then: Then) {
        let ticket = self.ticket(self.reactors.len(), then);
        for reactor in self.reactors.iter() {
            reactor.send(Message::ToShard(index, request(), Some(ticket)));
        }
    }

    fn ticket(&mut self, left: usize, then: Then) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.pending.insert(ticket, Pending { left, result: Ok(()), then });
        ticket
    }

    fn done(&mut self, ticket: Ticket, result: Result<(), i32>) {
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        pending.result = pending.result.and(result);
        pending.left -= 1;
        if pending.left == 0
            && let Some(pending) = self.pending.remove(&ticket)
        {
            (pending.then)(self, pending.result);
        }
    }

    fn call(&mut self, index: ControllerIndex, call: Call, answer: Answer) {
        match call {
            Call::MapDma(mapping) => self.map_dma(index, mapping, answer),
            Call::UnmapDma { iova, len } => self.unmap_dma(index, Some((iova, len)), answer),
            Call::UnmapAllDma => self.unmap_dma(index, None, answer),
            Call::SetInterrupts { kind, start, eventfds } => {
                self.set_interrupts(index, kind, start, eventfds, answer);
            }
            Call::DisableInterrupts(kind) => {
                self.change_vectors(index, answer, |vectors| match kind {
                    InterruptKind::Intx => vectors.intx = None,
                    InterruptKind::Msix => vectors.msix.fill(None),
                });
            }
            Call::MaskIntx(masked) => {
                let controller = &self.controllers[index];
                controller.shared.pin.set_masked(masked);
                controller.shared.pin.recheck.store(true, Ordering::Release);
                // As if the vectors were new: the reactors look at the pin again.
                self.change_vectors(index, answer, |_| {});
            }
            Call::TriggerInterrupt { kind, start, count } => {
                let controller = &self.controllers[index];
                match kind {
                    InterruptKind::Intx => controller.shared.pin.fire(&controller.vectors),
                    InterruptKind::Msix => {
                        let vectors = start..start.saturating_add(count).min(u32::from(u16::MAX));
                        for vector in vectors {
                            controller.vectors.fire_msix(vector as u16);
                        }
                    }
                }
                answer(Ok(()));
            }
            Call::Reset => {
                self.controllers[index].write_cache.allow();
                self.function_reset(index);
                answer(Ok(()));
            }
            Call::Disconnect => self.disconnect(index, answer),
        }
    }

    fn set_interrupts(
        &mut self,
        index: ControllerIndex,
        kind: InterruptKind,
        start: u32,
        eventfds: Vec<Option<OwnedFd>>,
        answer: Answer,
    ) {
        let count = match kind {
            InterruptKind::Intx => 1,
            InterruptKind::Msix => self.controllers[index].vectors.msix.len(),
        };
        let start = start as usize;
        if start.checked_add(eventfds.len()).is_none_or(|end| end > count) {
            return answer(Err(libc::EINVAL));
        }
        self.change_vectors(index, answer, |vectors| {
            let eventfds = eventfds.into_iter().map(|fd| fd.map(Arc::new));
            match kind {
                InterruptKind::Intx => vectors.intx = eventfds.flatten().next(),
                InterruptKind::Msix => {
                    vectors.msix[start..].iter_mut().zip(eventfds).for_each(|(vector, fd)| *vector = fd);
                }
            }
        });
    }

    /// Makes new vectors out of the old ones; answers when all reactors use them.
    pub(super) fn change_vectors(
        &mut self,
        index: ControllerIndex,
        answer: Answer,
        change: impl FnOnce(&mut Vectors),
    ) {
        let controller = &mut self.controllers[index];
        change(Arc::make_mut(&mut controller.vectors));
        let vectors = controller.vectors.clone();
        self.ask_all(index, || ShardRequest::Vectors(vectors.clone()), Box::new(|_, result| answer(result)));
    }

    /// Disconnects all vectors, with nobody waiting for it.
    pub(super) fn drop_interrupts(&mut self, index: ControllerIndex) {
        self.change_vectors(index, Box::new(|_| {}), |vectors| {
            vectors.intx = None;
            vectors.msix.fill(None);
        });
    }
}
