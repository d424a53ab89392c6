//! A client of any vfio-user NVMe server: ours, SPDK's.
//!
//! Registers are read and written by message. Doorbells are mapped memory where the server offers them so, else
//! posted messages. All DMA memory is handed over with its descriptor.
//!
//! The server is not trusted, but in one thing: that it does not make the file of its doorbells shorter after they have
//! been mapped, which would end this process (SIGBUS). And there is one deadline, of 20 s, for whatever it is asked.

mod connection;
mod messages;
mod region;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::event::EventfdFlags;
use rustix::process::Pid;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use zerocopy::IntoBytes;

use super::pci;
use super::{DOORBELLS_OFFSET, DmaLimits, DmaMemory, DoorbellMemory, Transport};
use connection::Connection;
use messages::{
    Command, DMA_READ_WRITE, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, RegionAccess, SetIrqs, Version,
};
use region::{Mapping, Region};

/// A connection to a vfio-user server that serves one NVMe controller.
pub struct VfioUser {
    name: String,
    connection: Connection,
    can_reset: bool,
    doorbells: Option<Mapping>,
    /// The interrupt index in use (MSI-X or MSI), and how many vectors it has.
    interrupts: Option<(u32, u32)>,
    /// Descriptors that the server takes in one message.
    max_msg_fds: usize,
    /// Connected to the admin queue's vector, on which nobody sleeps, as soon as any is: SPDK's target takes an interrupt
    /// that goes nowhere for a fatal error, and there is one for each admin command once MSI-X is enabled.
    unheard: Mutex<Option<OwnedFd>>,
}

/// The admin completion queue's vector.
const ADMIN_VECTOR: u32 = 0;

impl VfioUser {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    ///
    /// Nobody listens there, it does not speak vfio-user or another version of it, or it serves no PCI device with
    /// room for an NVMe controller's registers.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::start(format!("vfio-user:{}", path.display()), Connection::open(path)?)
    }

    /// The process that listened at the socket, where the kernel says so.
    pub fn server_process(&self) -> Option<Pid> {
        self.connection.peer_process()
    }

    fn start(name: String, connection: Connection) -> io::Result<Self> {
        let max_msg_fds = negotiate(&connection)?;
        let ask = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, flags: 0, num_regions: 0, num_irqs: 0 };
        let info: DeviceInfo = connection.call(Command::DeviceGetInfo, &[ask.as_bytes()], &[])?.head()?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 || info.num_regions <= VFIO_PCI_CONFIG_REGION_INDEX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the server's device is not a PCI device",
            ));
        }
        let bar0 = Region::query(&connection, VFIO_PCI_BAR0_REGION_INDEX)?;
        if bar0.size <= DOORBELLS_OFFSET {
            let what = format!("BAR0 has {:#x} bytes: not an NVMe controller", bar0.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let doorbells = bar0.map(DOORBELLS_OFFSET)?;
        let can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let interrupts = interrupts(&connection, info.num_irqs)?;
        let unheard = Mutex::default();
        let this = Self { name, connection, can_reset, doorbells, interrupts, max_msg_fds, unheard };
        // Its interrupts would go nowhere: the client before this one has taken its descriptors along.
        pci::disable_msix(&this)?;
        pci::enable(&this)?;
        Ok(this)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let reply = self.connection.call(Command::RegionRead, &[access.as_bytes()], &[])?;
        let bytes = reply.payload.get(size_of::<RegionAccess>()..).filter(|bytes| bytes.len() == data.len());
        let what = || format!("a read of {} bytes was answered with {}", data.len(), reply.payload.len());
        let bytes = bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, what()))?;
        data.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        self.connection.call(Command::RegionWrite, &[access.as_bytes(), data], &[]).map(drop)
    }

    /// Connects the admin queue's vector: if nothing ever was connected to it, or what was is no more.
    fn connect_admin_vector(&self, disconnected: bool) -> io::Result<()> {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        if unheard.is_some() && !disconnected {
            return Ok(());
        }
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.set_irqs(ADMIN_VECTOR, 1, &[eventfd.as_fd()])?;
        *unheard = Some(eventfd);
        Ok(())
    }

    fn set_irqs(&self, start: u32, count: u32, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let (index, _) = self.interrupts.ok_or(io::ErrorKind::Unsupported)?;
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let argsz = size_of::<SetIrqs>() as u32;
        let message = SetIrqs { argsz, flags, index, start, count };
        self.connection.call(Command::DeviceSetIrqs, &[message.as_bytes()], fds).map(drop)
    }
}

/// Agrees on a version, and says how many descriptors the server takes in one message.
fn negotiate(connection: &Connection) -> io::Result<usize> {
    let ours = Version { major: 0, minor: 0 };
    let capabilities = b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":65536}}\0";
    let reply = connection.call(Command::Version, &[ours.as_bytes(), capabilities], &[])?;
    let theirs: Version = reply.head()?;
    if theirs.major != ours.major {
        let what = format!("the server speaks vfio-user {}.{}, not 0.x", theirs.major, theirs.minor);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    // What a server does not say has a default, of 1 for descriptors.
    let json = reply.payload[size_of::<Version>()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let capabilities: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let max_msg_fds = capabilities["capabilities"]["max_msg_fds"].as_u64().unwrap_or(1);
    Ok(max_msg_fds.clamp(1, 16) as usize)
}

/// The best kind of interrupts that the device has: MSI-X, else MSI.
fn interrupts(connection: &Connection, num_irqs: u32) -> io::Result<Option<(u32, u32)>> {
    for index in [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX] {
        if index < num_irqs {
            let ask = IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags: 0, index, count: 0 };
            let info: IrqInfo = connection.call(Command::DeviceGetIrqInfo, &[ask.as_bytes()], &[])?.head()?;
            if info.count > 0 {
                return Ok(Some((index, info.count)));
            }
        }
    }
    Ok(None)
}

impl pci::ConfigSpace for VfioUser {
    fn read_config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, offset, data)
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(VFIO_PCI_CONFIG_REGION_INDEX, offset, data)
    }
}

impl Transport for VfioUser {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        let mut data = [0; 4];
        self.read(VFIO_PCI_BAR0_REGION_INDEX, offset, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    fn read64(&self, offset: u64) -> io::Result<u64> {
        let mut data = [0; 8];
        self.read(VFIO_PCI_BAR0_REGION_INDEX, offset, &mut data)?;
        Ok(u64::from_le_bytes(data))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.write(VFIO_PCI_BAR0_REGION_INDEX, offset, &value.to_le_bytes())
    }

    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        self.write(VFIO_PCI_BAR0_REGION_INDEX, offset, &value.to_le_bytes())
    }

    fn ring(&self, offset: u64, value: u32) -> io::Result<()> {
        let data = value.to_le_bytes();
        let access = RegionAccess { offset, region: VFIO_PCI_BAR0_REGION_INDEX, count: data.len() as u32 };
        self.connection.post(Command::RegionWrite, &[access.as_bytes(), &data])
    }

    fn doorbells(&self) -> Option<DoorbellMemory> {
        let (base, len) = self.doorbells.as_ref()?.wanted();
        Some(DoorbellMemory { base: base.cast(), len, may_trap: false })
    }

    fn dma_limits(&self) -> DmaLimits {
        // A server has no IOMMU to be narrow: 47 bits are what any CPU's page tables have.
        DmaLimits { windows: vec![0x10_0000..=(1 << 47) - 1], page_size: 4096 }
    }

    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        let Some((fd, offset)) = memory.backing else {
            let what = "a controller in another process reaches shared memory only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let argsz = size_of::<DmaMap>() as u32;
        let message = DmaMap { argsz, flags: DMA_READ_WRITE, offset, address: iova, size: memory.len };
        self.connection.call(Command::DmaMap, &[message.as_bytes()], &[fd]).map(drop)
    }

    fn unmap_dma(&self, iova: u64, len: u64) -> io::Result<()> {
        let message = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, address: iova, size: len };
        self.connection.call(Command::DmaUnmap, &[message.as_bytes()], &[]).map(drop)
    }

    fn interrupt_vectors(&self) -> u32 {
        self.interrupts.map_or(0, |(_, count)| count)
    }

    fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let mut vector = start;
        for run in eventfds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for chunk in run.chunks(self.max_msg_fds) {
                let fds: Vec<BorrowedFd<'_>> = chunk.iter().copied().flatten().collect();
                // Without descriptors, the vectors are disconnected.
                self.set_irqs(vector, chunk.len() as u32, &fds)?;
                vector += chunk.len() as u32;
            }
        }
        let disconnected = start == ADMIN_VECTOR && matches!(eventfds.first(), Some(None));
        if disconnected || start > ADMIN_VECTOR {
            self.connect_admin_vector(disconnected)?;
        }
        match self.interrupts {
            Some((VFIO_PCI_MSIX_IRQ_INDEX, _)) => pci::enable_msix(self),
            _ => Ok(()),
        }
    }

    fn reset(&self) -> io::Result<()> {
        if !self.can_reset {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.connection.call(Command::DeviceReset, &[], &[])?;
        // A reset function neither decodes its BARs nor does DMA.
        pci::enable(self)
    }

    fn stop_dma(&self) -> io::Result<()> {
        pci::stop_bus_mastering(self)
    }

    fn lost(&self) -> Option<String> {
        self.connection.lost().map(str::to_owned)
    }
}
