//! Random faults under random work: what is common to queue pairs and disks.

pub mod disks;
pub mod model;
pub mod queue_pairs;
pub mod script;
pub mod slow_disk;
pub mod workload;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block_core::Operation;
use block_core::mem::MemDisk;
use nvme_emu::namespace::{Identity, Namespace, NamespaceOptions};
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine, EngineOptions, FaultScript, PollMode};
use nvme_loopback::Loopback;
use nvme_vfio::{Controller, Options, Recovery};
use proptest::prelude::*;

use crate::drive::memory::{SharedMemory, run};
use model::{SLOT, Slot};
use script::{Script, script};
use slow_disk::SlowDisk;

/// Everything about one run. Prints as what to type to have it again, but for the machine's moods.
#[derive(Clone, Debug)]
pub struct Case {
    pub script: Script,
    /// What the work begins with.
    pub seed: u64,
    pub requests: u64,
    pub queues: u16,
    pub depth: u16,
    pub resets: u32,
    /// Whether threads sleep until there is something to do, or poll.
    pub sleeps: bool,
    /// How long the emulated controller's disk may take for a request, in milliseconds.
    pub slow_ms: u64,
}

impl Case {
    pub fn any() -> impl Strategy<Value = Self> {
        let sizes = (10..400_u64, 1..4_u16, 1..20_u16, 1..6_u32);
        (script(), any::<u64>(), sizes, any::<bool>(), prop_oneof![2 => Just(0), 3 => 1..6_u64]).prop_map(
            |(script, seed, (requests, queues, depth, resets), sleeps, slow_ms)| Self {
                script,
                seed,
                requests,
                queues,
                depth,
                resets,
                sleeps,
                slow_ms,
            },
        )
    }

    /// Deadlines far below those that people choose, and a window that no reset leaves.
    pub fn options(&self) -> Options {
        let recovery = Recovery {
            abort_timeout: Duration::from_millis(30),
            resets: self.resets,
            window: Duration::from_secs(600),
        };
        Options {
            // One more, for the disk's own.
            queues: self.queues + 1,
            depth: self.depth,
            interrupts: self.sleeps,
            io_timeout: Duration::from_millis(50),
            admin_timeout: Duration::from_millis(100),
            recovery: Some(recovery),
            ..Options::default()
        }
    }

    pub fn slots(&self) -> usize {
        usize::from(self.queues) * workload::SLOTS
    }
}

/// An emulated controller that follows a case's script, and what is behind it.
pub struct Emulated {
    engine: Engine,
    memory: Arc<MemDisk>,
}

impl Emulated {
    /// Starts it, and opens it as the case says; which may fail, as the script may have it.
    pub fn start(case: &Case) -> (Self, Result<Controller, nvme_vfio::Error>) {
        let poll = if case.seed.is_multiple_of(3) { PollMode::Always } else { PollMode::Adaptive };
        let engine = Engine::start(EngineOptions { poll, ..EngineOptions::default() }).unwrap();
        let memory = Arc::new(MemDisk::with_capacity((case.slots() * SLOT) as u64).unwrap());
        let disk = SlowDisk { memory: memory.clone(), longest: Duration::from_millis(case.slow_ms) };
        let options = NamespaceOptions { block_size: Some(512), identity: Identity::Fresh };
        let namespace = Namespace::new(1, Arc::new(disk), &options).unwrap();
        let subsystem = Subsystem::new(SubsystemOptions::default(), vec![namespace]).unwrap();
        let faults = Some(FaultScript::parse(&case.script.0).unwrap());
        let function = engine
            .add_controller(&subsystem, &ControllerOptions { faults, ..ControllerOptions::default() })
            .unwrap();
        let transport = Loopback::new("loopback", function).unwrap();
        (Self { engine, memory }, Controller::open(Box::new(transport), case.options()))
    }

    /// Ends it, and looks at what is on its disk.
    pub fn check_disk(self, slots: &[Slot]) -> Result<(), TestCaseError> {
        self.engine.shutdown();
        let mut queue = block_core::Disk::open_queue(&*self.memory, 1).unwrap();
        let memory = SharedMemory::new(SLOT);
        for (number, slot) in slots.iter().enumerate() {
            let place = ((number * SLOT) as u64, SLOT as u64);
            run(&mut *queue, Operation::Read, place, &[memory.segment(0, SLOT)]).unwrap();
            let found = memory.read(0, SLOT);
            if let Some(wrong) = slot.impossible(0, &found) {
                let (there, history) = (&found[wrong..wrong + 4], slot.history.join("\n"));
                let message =
                    format!("slot {number} has {there:02x?} at {wrong} on the disk after\n{history}");
                return Err(TestCaseError::fail(message));
            }
        }
        Ok(())
    }
}

/// Tries a few times, unless the controller was given up.
pub fn persistently<T, E: fmt::Display>(
    controller: &Controller,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, String> {
    for _ in 0..5 {
        match attempt() {
            Err(_) if controller.failure().is_none() => thread::sleep(Duration::from_millis(10)),
            result => return result.map_err(|error| error.to_string()),
        }
    }
    attempt().map_err(|error| error.to_string())
}

/// xorshift64*: for what is not worth shrinking.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
