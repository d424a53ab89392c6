//! Disks on a drive that is an emulated controller in this process.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod memory;

use std::io;
use std::sync::{Arc, Weak};

use block_core::{CapacityWatcher, Disk, DiskInfo, DiskSpec, MemoryRegion, Queue, Registry};
use nvme_emu::namespace::{Identity, Namespace, NamespaceOptions};
use nvme_emu::pci::PciFunction;
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine, EngineOptions};
use nvme_loopback::Loopback;
use nvme_vfio::disk::{Drive, NvmeDisk};
use nvme_vfio::{Controller, Options};

pub fn open(name: &str) -> Arc<dyn Disk> {
    let spec: DiskSpec = name.parse().unwrap();
    Registry::default().open(spec).unwrap_or_else(|error| panic!("{error}"))
}

/// An emulated controller with disks as its namespaces, of this block size.
pub fn controller(
    disks: Vec<Arc<dyn Disk>>,
    block_size: u32,
    options: &ControllerOptions,
) -> (Engine, PciFunction) {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let namespace = |(nsid, disk)| {
        let options = NamespaceOptions { block_size: Some(block_size), identity: Identity::Fresh };
        Namespace::new(nsid, disk, &options).unwrap()
    };
    let namespaces = (1u32..).zip(disks).map(namespace).collect();
    let subsystem = Subsystem::new(SubsystemOptions::default(), namespaces).unwrap();
    let function = engine.add_controller(&subsystem, options).unwrap();
    (engine, function)
}

/// What the driver is asked for, unless a test asks for something else.
pub fn options() -> Options {
    Options { queues: 8, interrupts: true, ..Options::default() }
}

/// A drive in this process.
pub struct Emulated {
    /// Before the engine that it is on.
    pub drive: Arc<Drive>,
    _engine: Engine,
}

impl Emulated {
    pub fn new(
        disks: Vec<Arc<dyn Disk>>,
        block_size: u32,
        emulated: &ControllerOptions,
        options: Options,
    ) -> Self {
        let (engine, function) = controller(disks, block_size, emulated);
        let transport = Loopback::new("loopback", function).unwrap();
        let controller = Controller::open(Box::new(transport), options).unwrap();
        Self { drive: Drive::new(controller).unwrap(), _engine: engine }
    }

    /// The usual one, on one disk.
    pub fn on(disk: &str) -> Self {
        Self::new(vec![open(disk)], 512, &ControllerOptions::default(), options())
    }

    pub fn disk(&self, nsid: u32) -> NvmeDisk {
        self.drive.disk(nsid, false).unwrap()
    }

    /// Its first namespace as a disk that brings the drive with it.
    pub fn into_disk(self) -> Arc<dyn Disk> {
        Arc::new(WithDrive { disk: self.disk(1), _emulated: self })
    }
}

struct WithDrive {
    disk: NvmeDisk,
    _emulated: Emulated,
}

impl Disk for WithDrive {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn watch_capacity(&self, changed: Weak<CapacityWatcher>) {
        self.disk.watch_capacity(changed);
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        self.disk.open_queue(depth)
    }

    unsafe fn register_memory(&self, region: MemoryRegion<'_>) -> io::Result<()> {
        // SAFETY: by this function's condition.
        unsafe { self.disk.register_memory(region) }
    }

    fn unregister_memory(&self, base: *mut u8, len: usize) {
        self.disk.unregister_memory(base, len);
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}
