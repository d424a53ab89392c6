//! The engine: reactors, their control thread, and the controllers that they run.

use crate::admin::Admin;
use crate::controller::admin_commands::admin_options;
use crate::controller::control::{Control, Controller, Event};
use crate::controller::counters::ControllerCounters;
use crate::controller::registers::Registers;
use crate::controller::shared::Shared;
use crate::faults::{FaultScript, Faults};
use crate::pci::config_space::{ConfigSpace, Layout};
use crate::pci::function::{BAR0_LEN, MSIX_PBA, MSIX_TABLE, PciFunction};
use crate::reactor::alarm::Alarm;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::message::Message;
use crate::reactor::run::Reactor;
use crate::reactor::{FrontDoor, PollMode, ReactorStatistics};
use crate::subsystem::{Subsystem, SubsystemError};
use block_core::CapacityWatcher;
use crossbeam::channel::{Sender, unbounded};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde::Serialize;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use uuid::Uuid;

/// How to run an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Reactor threads, 1 to [`EngineOptions::MAX_REACTORS`].
    pub reactors: usize,
    /// How they look for work.
    pub poll: PollMode,
    /// CPUs to pin them to, in turn; empty: wherever the scheduler puts them.
    pub cpus: Vec<usize>,
}

impl EngineOptions {
    /// Most reactors.
    pub const MAX_REACTORS: usize = 64;
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { reactors: 1, poll: PollMode::Adaptive, cpus: Vec::new() }
    }
}

/// How to make a controller.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Most I/O queue pairs, 1 to [`ControllerOptions::MAX_QUEUES`].
    pub queues: u16,
    /// MDTS: largest transfer, 2^mdts pages of 4096 bytes.
    pub mdts: u8,
    /// What it does wrong, if it is there to test drivers with.
    pub faults: Option<FaultScript>,
    /// Whether its counters say where commands spend their time. It takes the time of one in some hundred.
    pub explain: bool,
}

impl ControllerOptions {
    /// What fits into one page of MSI-X table, with a vector for the admin queue.
    pub const MAX_QUEUES: u16 = 255;
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self { queues: 8, mdts: 8, faults: None, explain: false }
    }
}

/// Why there is no engine, or no controller.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Reactor count out of range.
    #[error("{0} reactors: must be from 1 to {max}", max = EngineOptions::MAX_REACTORS)]
    Reactors(usize),
    /// Queue count out of range.
    #[error("{0} I/O queues: must be from 1 to {max}", max = ControllerOptions::MAX_QUEUES)]
    Queues(u16),
    /// MDTS out of range.
    #[error("a maximum data transfer size of 2^{0} pages: must be from 2^1 to 2^8")]
    Mdts(u8),
    /// The subsystem is full.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// What the host said.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// Reactors and the control thread; controllers are added, and run until [`Engine::shutdown`].
pub struct Engine {
    options: EngineOptions,
    reactors: Arc<[ReactorHandle]>,
    statistics: Vec<Arc<ReactorStatistics>>,
    events: Sender<Event>,
    threads: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
    controllers: Mutex<Vec<Arc<Shared>>>,
}

/// What an engine has counted.
#[derive(Clone, Debug, Serialize)]
pub struct EngineCounters {
    /// In the order in which controllers were added.
    pub controllers: Vec<ControllerCounters>,
    /// How often each reactor slept.
    pub sleeps: Vec<u64>,
    /// Commands of I/O queues that each reactor has completed, of all controllers.
    pub commands: Vec<u64>,
    /// Messages that each reactor has received from other threads: of the control path, none of them per I/O.
    pub messages: Vec<u64>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// Options out of range, or no more threads or descriptors to be had.
    pub fn start(options: EngineOptions) -> Result<Self, EngineError> {
        let mut engine = Self::without_reactors(options)?;
        for index in 0..engine.reactors.len() {
            engine.start_reactor(index)?;
        }
        Ok(engine)
    }

    /// The control thread, and all that reactors need to run.
    fn without_reactors(options: EngineOptions) -> Result<Self, EngineError> {
        if options.reactors == 0 || options.reactors > EngineOptions::MAX_REACTORS {
            return Err(EngineError::Reactors(options.reactors));
        }
        let handles: Result<Vec<_>, _> =
            (0..options.reactors).map(|_| Alarm::new().map(ReactorHandle::new)).collect();
        let reactors: Arc<[ReactorHandle]> =
            handles.map_err(|error| EngineError::Io("no eventfd for a reactor", error))?.into();
        let statistics: Vec<_> = reactors.iter().map(|_| Arc::<ReactorStatistics>::default()).collect();
        let (events, inbox) = unbounded();
        let control = Control::new(reactors.clone());
        let control = spawn("ringpair-ctl", None, move || control.run(&inbox))?;
        Ok(Self {
            options,
            reactors,
            statistics,
            events,
            threads: Vec::new(),
            control: Some(control),
            controllers: Mutex::default(),
        })
    }

    fn start_reactor(&mut self, index: usize) -> Result<(), EngineError> {
        let (handles, mode) = (self.reactors.clone(), self.options.poll);
        let statistics = self.statistics[index].clone();
        let cpu = self.options.cpus.get(index % self.options.cpus.len().max(1)).copied();
        let (ready, started) = unbounded();
        // Made on its own thread: its front doors and disk queues never leave it.
        let run = move || match Reactor::new(index, handles, mode, statistics) {
            Ok(reactor) => {
                let _ = ready.send(Ok(()));
                reactor.run();
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        self.threads.push(spawn(&format!("ringpair-r{index}"), cpu, run)?);
        let started = started.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        started.map_err(|error| EngineError::Io("no epoll descriptor for a reactor", error))
    }

    /// Starts an engine whose reactors are the caller's to run, each made on the thread that is to run it: see
    /// [`crate::bench`].
    #[cfg(feature = "bench")]
    pub(crate) fn start_stepped(
        poll: PollMode,
        reactors: usize,
    ) -> Result<(Self, Vec<crate::bench::Maker<Reactor>>), EngineError> {
        let engine = Self::without_reactors(EngineOptions { reactors, poll, ..EngineOptions::default() })?;
        let maker = |index: usize| -> crate::bench::Maker<Reactor> {
            let (handles, statistics) = (engine.reactors.clone(), engine.statistics[index].clone());
            Box::new(move || {
                let reactor = Reactor::new(index, handles, poll, statistics);
                reactor.map_err(|error| EngineError::Io("no epoll descriptor for a reactor", error))
            })
        };
        let makers = (0..reactors).map(maker).collect();
        Ok((engine, makers))
    }

    /// Adds a controller that attaches all namespaces of the subsystem.
    ///
    /// # Errors
    ///
    /// Options out of range, a full subsystem, or no memory for the doorbells.
    pub fn add_controller(
        &self,
        subsystem: &Arc<Subsystem>,
        options: &ControllerOptions,
    ) -> Result<PciFunction, EngineError> {
        if options.queues == 0 || options.queues > ControllerOptions::MAX_QUEUES {
            return Err(EngineError::Queues(options.queues));
        }
        if options.mdts == 0 || options.mdts > 8 {
            return Err(EngineError::Mdts(options.mdts));
        }
        let mapped_doorbells = self.options.poll == PollMode::Always;
        // Where doorbells can be mapped there is nothing that shadows would save.
        let admin_options = admin_options(options.queues, options.mdts, !mapped_doorbells);
        let admin = Admin::new(subsystem, admin_options)?;
        let config = ConfigSpace::new(&Layout {
            bar0_len: BAR0_LEN as u32,
            msix_vectors: options.queues + 1,
            msix_table: MSIX_TABLE as u32,
            msix_pba: MSIX_PBA as u32,
            serial: Uuid::new_v5(&Uuid::NAMESPACE_OID, subsystem.nqn().as_bytes()).as_u64_pair().0,
        })
        .map_err(|error| EngineError::Io("configuration space", io::Error::other(error)))?;
        // Held until the end, so that messages are sent in order of the indexes.
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let index = controllers.len();
        let shared = Shared::new(
            index,
            index % self.reactors.len(),
            options.queues,
            Registers::new(),
            mapped_doorbells,
            config,
            self.events.clone(),
            self.reactors.clone(),
            options.faults.as_ref().map(Faults::new),
            options.explain,
        );
        let shared = Arc::new(shared.map_err(|error| EngineError::Io("no memory for doorbells", error))?);
        let teller = shared.clone();
        let resized: Arc<CapacityWatcher> = Arc::new(move || teller.tell(Event::Resized(index)));
        let watch = Arc::downgrade(&resized);
        let controller = Controller::new(shared.clone(), admin, 4096 << options.mdts, resized.clone());
        let vectors = controller.vectors();
        shared.tell(Event::Add(Box::new(controller)));
        subsystem.namespaces().iter().for_each(|namespace| namespace.disk().watch_capacity(watch.clone()));
        // Of what happened between the namespace's making and now.
        resized();
        for reactor in self.reactors.iter() {
            reactor.send(Message::AddController(shared.clone(), vectors.clone()));
        }
        controllers.push(shared.clone());
        Ok(PciFunction::new(shared))
    }

    /// Runs a server for a controller, on its home reactor, until the engine is shut down.
    pub fn serve(&self, function: &PciFunction, front: Box<dyn FrontDoor>) {
        self.reactors[function.home()].send(Message::AddFrontDoor(front));
    }

    /// What has been counted so far.
    pub fn counters(&self) -> EngineCounters {
        let controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |shared: &Arc<Shared>| {
            let parts = shared.shard_counters.iter().map(AsRef::as_ref);
            ControllerCounters::sum(&shared.counters, parts, shared.explain)
        };
        let commands = |reactor: usize| {
            let of = |shared: &Arc<Shared>| shared.shard_counters[reactor].commands();
            controllers.iter().map(of).sum()
        };
        EngineCounters {
            controllers: controllers.iter().map(sum).collect(),
            commands: (0..self.reactors.len()).map(commands).collect(),
            sleeps: self.statistics.iter().map(|s| s.sleeps.get()).collect(),
            messages: self.statistics.iter().map(|s| s.messages.get()).collect(),
        }
    }

    /// Resets all controllers, waits for what is in flight, ends the threads, and flushes all disks. Sockets close.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(control) = self.control.take() else { return };
        let (answer, stopped) = unbounded();
        if self.events.send(Event::Stop(answer)).is_ok() {
            let _ = stopped.recv();
        }
        self.reactors.iter().for_each(|reactor| reactor.send(Message::Stop));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = self.events.send(Event::Exit);
        let _ = control.join();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(
    name: &str,
    cpu: Option<usize>,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    let body = move || {
        // So that a doze of 50 µs is not one of 100.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            if cpu < CpuSet::MAX_CPU {
                set.set(cpu);
            }
            if let Err(error) = sched_setaffinity(None, &set) {
                tracing::warn!("cannot pin a reactor to CPU {cpu}: {error}");
            }
        }
        run();
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(|error| EngineError::Io("no more threads", error))
}
