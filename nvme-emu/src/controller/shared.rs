//! What all threads see of a controller: its registers, its doorbells, its counters, and how to reach the thread that
//! knows more. Everything else has one owner.

use super::control::Event;
use super::counters::{Counters, ReactorCounters};
use super::interrupts::Pin;
use super::registers::Registers;
use crate::faults::Faults;
use crate::memory::sigbus::Fault;
use crate::pci::config_space::ConfigSpace;
use crate::reactor::doorbell_page::DoorbellPage;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::message::ControllerIndex;
use crossbeam::channel::Sender;
use nvme_spec::Status;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A command that failed on the data path, for the error log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedCommand {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) nsid: u32,
    pub(crate) lba: u64,
}

/// Failures that wait for the control thread to log them; older ones give way.
const MAX_FAILURES: usize = 64;

/// Something that the guest did. However often it does it, the control thread hears of it once until it has taken
/// note, so a guest cannot fill its inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Finding {
    InvalidDoorbellRegister = 1 << 0,
    InvalidDoorbellValue = 1 << 1,
    /// Guest memory turned out to have nothing behind it.
    MissingMemory = 1 << 5,
    /// NSSR was written with its signature.
    SubsystemReset = 1 << 2,
    /// A function level reset was asked for.
    FunctionReset = 1 << 3,
    /// CC was written.
    Configured = 1 << 4,
    /// A fault script has an event to report.
    ScriptedEvent = 1 << 6,
}

impl Finding {
    /// In the order in which they are to be acted on.
    const ALL: [Self; 7] = [
        Self::InvalidDoorbellRegister,
        Self::InvalidDoorbellValue,
        Self::MissingMemory,
        Self::SubsystemReset,
        Self::FunctionReset,
        Self::Configured,
        Self::ScriptedEvent,
    ];
}

pub(crate) struct Shared {
    pub(crate) index: ControllerIndex,
    /// The reactor that owns its socket and its admin queue.
    pub(crate) home: usize,
    pub(crate) io_queues: u16,
    pub(crate) registers: Registers,
    pub(crate) doorbells: Arc<DoorbellPage>,
    /// Whether clients may map the doorbells.
    pub(crate) mapped_doorbells: bool,
    /// By doorbell index: the reactor that looks at it, plus 1; 0 where there is no queue.
    owners: Box<[AtomicU8]>,
    pub(crate) config: Mutex<ConfigSpace>,
    pub(crate) msix_table: Box<[AtomicU32]>,
    pub(crate) pin: Pin,
    pub(crate) fault: Arc<Fault>,
    findings: AtomicU32,
    failures: Mutex<VecDeque<FailedCommand>>,
    pub(crate) counters: Counters,
    /// By reactor.
    pub(crate) shard_counters: Vec<Arc<ReactorCounters>>,
    pub(crate) control: Sender<Event>,
    pub(crate) reactors: Arc<[ReactorHandle]>,
    /// What it does wrong by script.
    pub(crate) faults: Option<Arc<Faults>>,
    /// Whether its shards take the time of some commands.
    pub(crate) explain: bool,
}

impl Shared {
    pub(crate) fn owners(io_queues: u16) -> Box<[AtomicU8]> {
        (0..(usize::from(io_queues) + 1) * 2).map(|_| AtomicU8::new(0)).collect()
    }

    /// Says who looks at a doorbell from now on.
    pub(crate) fn set_owner(&self, doorbell: usize, reactor: Option<usize>) {
        if let Some(owner) = self.owners.get(doorbell) {
            owner.store(reactor.map_or(0, |r| r as u8 + 1), Ordering::Release);
        }
    }

    /// A doorbell write that was trapped: the word gets the value, and its reactor is awake.
    #[inline]
    pub(crate) fn ring(&self, doorbell: usize, value: u32) {
        let owner = self.owners.get(doorbell).map_or(0, |owner| owner.load(Ordering::Acquire));
        let Some(reactor) = self.reactors.get(usize::from(owner).wrapping_sub(1)) else {
            self.found(Finding::InvalidDoorbellRegister);
            return;
        };
        if let Some(word) = self.doorbells.word(doorbell) {
            word.store(value, Ordering::Release);
        }
        reactor.wake();
    }

    /// Reports a finding, once until the control thread has taken note of it.
    #[cold]
    pub(crate) fn found(&self, finding: Finding) {
        if self.findings.fetch_or(finding as u32, Ordering::AcqRel) & finding as u32 == 0 {
            self.tell(Event::Found(self.index));
        }
    }

    /// Takes the findings so far.
    pub(crate) fn take_findings(&self) -> Vec<Finding> {
        let bits = self.findings.swap(0, Ordering::AcqRel);
        Finding::ALL.into_iter().filter(|finding| bits & *finding as u32 != 0).collect()
    }

    /// Keeps a failure for the error log.
    #[cold]
    pub(crate) fn failed(&self, failure: FailedCommand) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() == MAX_FAILURES {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// Takes the failures so far.
    pub(crate) fn take_failures(&self) -> VecDeque<FailedCommand> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the control thread. After its end there is nobody left who would miss it.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.control.send(event);
    }

    #[allow(clippy::too_many_arguments, reason = "made in one place, from all of its parts")]
    pub(crate) fn new(
        index: ControllerIndex,
        home: usize,
        io_queues: u16,
        registers: Registers,
        mapped_doorbells: bool,
        config: ConfigSpace,
        control: Sender<Event>,
        reactors: Arc<[ReactorHandle]>,
        faults: Option<Arc<Faults>>,
        explain: bool,
    ) -> std::io::Result<Self> {
        Ok(Self {
            index,
            home,
            io_queues,
            registers,
            doorbells: DoorbellPage::new()?,
            mapped_doorbells,
            owners: Self::owners(io_queues),
            config: Mutex::new(config),
            msix_table: (0..(usize::from(io_queues) + 1) * 4).map(|_| AtomicU32::new(0)).collect(),
            pin: Pin::default(),
            fault: Arc::default(),
            findings: AtomicU32::new(0),
            failures: Mutex::default(),
            counters: Counters::default(),
            shard_counters: reactors.iter().map(|_| Arc::default()).collect(),
            control,
            reactors,
            faults,
            explain,
        })
    }
}
