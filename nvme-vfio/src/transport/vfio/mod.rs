//! A controller of this machine, owned through the kernel's VFIO.
//!
//! [`Vfio::open`] finds the device ([`sysfs`]), takes it by its IOMMU group (`group`) or by its own file with iommufd
//! (`cdev`), whichever the kernel offers, maps its registers (`bar`), and lets it do DMA to what is mapped for it
//! and to nothing else. Everything is the process' own: when it ends, however it ends, the kernel stops the device,
//! resets it and unlocks the memory. When the kernel wants the device back before that, it says so, and waits for it (`loan`).

mod bar;
mod cdev;
mod device;
mod group;
mod ioctl;
mod iova;
mod loan;
mod mappings;
mod no_iommu;
mod open_error;
mod shared_space;
pub mod sysfs;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;

use super::{DmaLimits, DmaMemory, DoorbellMemory, IovaSpace, Transport, pci};
use bar::Bar;
use device::Device;
use loan::{Claim, Loan};
pub use open_error::OpenError;
use shared_space::SharedSpace;
pub use sysfs::{PciAddress, PciDevice};

/// Which of the kernel's two interfaces a device is taken by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// [`Interface::Cdev`] where the kernel has it and this process may use it, else [`Interface::Group`].
    #[default]
    Auto,
    /// /dev/vfio/GROUP with a type1v2 container: every kernel with VFIO has it.
    Group,
    /// /dev/vfio/devices/vfioN with iommufd: kernels since 6.6, if built with it.
    Cdev,
    /// /dev/vfio/noiommu-GROUP: nothing keeps the device, nor an error in this program, from reading and writing all
    /// memory of the machine. For machines without an IOMMU whose devices and programs are all trusted; needs root and
    /// reserved huge pages. Never picked unasked.
    NoIommu,
}

impl Interface {
    /// All of them, by the words for them.
    pub const WORDS: [(&str, Self); 4] = [
        ("auto", Self::Auto),
        ("group", Self::Group),
        ("cdev", Self::Cdev),
        ("unsafe-no-iommu", Self::NoIommu),
    ];
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.into_iter().find(|(word, _)| *word == text);
        let expected = || Self::WORDS.map(|(word, _)| word).join("|");
        found.map(|(_, interface)| interface).ok_or_else(|| format!("vfio={text}: expected {}", expected()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.into_iter().find(|(_, interface)| interface == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// The address space of a device.
enum AddressSpace {
    Container(Arc<SharedSpace<group::Container>>),
    Ioas(Arc<SharedSpace<cdev::Ioas>>),
    Physical(no_iommu::PhysicalMemory),
}

impl AddressSpace {
    fn limits(&self) -> io::Result<DmaLimits> {
        match self {
            Self::Container(container) => Ok(container.limits()),
            Self::Ioas(ioas) => ioas.limits(),
            Self::Physical(memory) => Ok(memory.limits()),
        }
    }

    fn iovas(&self) -> Option<IovaSpace> {
        match self {
            Self::Container(container) => Some(container.iovas()),
            Self::Ioas(ioas) => ioas.iovas(),
            Self::Physical(_) => None,
        }
    }

    /// # Safety
    ///
    /// As [`Transport::map_dma`].
    unsafe fn map(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        // SAFETY: by this function's condition.
        unsafe {
            match self {
                Self::Container(container) => container.map(iova, memory),
                Self::Ioas(ioas) => ioas.map(iova, memory),
                // There is nothing to set up, and no other address.
                Self::Physical(physical) => match physical.address(memory)? {
                    address if address == iova => Ok(()),
                    _ => Err(io::ErrorKind::InvalidInput.into()),
                },
            }
        }
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        match self {
            Self::Container(container) => container.unmap(iova, len),
            Self::Ioas(ioas) => ioas.unmap(iova, len),
            // All that can be done about it is to give the device no such address any more.
            Self::Physical(_) => Ok(()),
        }
    }
}

/// A controller that this process owns. Nobody else can open it as long as this lives.
pub struct Vfio {
    name: String,
    interface: Interface,
    limits: DmaLimits,
    /// Shared with devices of the same IOMMU group.
    iovas: Option<IovaSpace>,
    interrupt_vectors: u32,
    // In the order in which they are undone: registers, then the device and its address space.
    bar: Bar,
    loan: Loan,
}

impl Vfio {
    /// Takes the controller at an address of this machine.
    ///
    /// # Errors
    ///
    /// There is no controller there, it is bound to another driver than VFIO's, somebody else has it, or this process may
    /// not: [`OpenError`] says which, and what to do.
    pub fn open(address: PciAddress, interface: Interface) -> Result<Self, OpenError> {
        let found = PciDevice::find(address).ok_or(OpenError::NoDevice(address))?;
        check(&found)?;
        let claim = Claim::new(address)?;
        let group = found.iommu_group().ok_or(OpenError::NoIommu(address))?;
        match (group.is_no_iommu(), interface) {
            (true, Interface::NoIommu) => {}
            (true, _) => return Err(OpenError::NoIommu(address)),
            (false, Interface::NoIommu) => return Err(OpenError::HasIommu(address)),
            (false, _) => {}
        }
        let (space, fd, interface) = match pick(&found, interface)? {
            Some(path) => {
                let (ioas, fd) = cdev::open(&found, &group, &path)?;
                (AddressSpace::Ioas(ioas), fd, Interface::Cdev)
            }
            None if group.is_no_iommu() => {
                let (memory, fd) = no_iommu::open(&found, &group)?;
                (AddressSpace::Physical(memory), fd, Interface::NoIommu)
            }
            None => {
                let (container, fd) = group::open(&found, &group)?;
                (AddressSpace::Container(container), fd, Interface::Group)
            }
        };
        let device = Device::new(fd).map_err(OpenError::io(address, "asking about it"))?;
        let bar = Bar::map(&device).map_err(OpenError::io(address, "mapping its registers"))?;
        pci::enable(&device).map_err(OpenError::io(address, "enabling it in PCI configuration space"))?;
        let limits = space.limits().map_err(OpenError::io(address, "asking about its IOMMU"))?;
        let (name, interrupt_vectors, iovas) =
            (address.to_string(), device.interrupt_vectors(), space.iovas());
        let loan = Loan::new(device, space, claim);
        Ok(Self { name, interface, limits, iovas, interrupt_vectors, bar, loan })
    }

    /// By which interface it was taken: never [`Interface::Auto`].
    pub fn interface(&self) -> Interface {
        self.interface
    }
}

/// Whether the device is an NVMe controller that VFIO has.
fn check(device: &PciDevice) -> Result<(), OpenError> {
    let address = device.address();
    let class = device.class().map_err(OpenError::io(address, "reading its class"))?;
    if class != sysfs::CLASS_NVME {
        return Err(OpenError::NotNvme { address, class });
    }
    match device.driver() {
        None => Err(OpenError::Unbound(address)),
        Some(_) if device.is_bound_to_vfio() => Ok(()),
        Some(driver) => Err(OpenError::OtherDriver { address, driver }),
    }
}

/// The device's file, if it shall be taken by that; `None`: by its group.
fn pick(device: &PciDevice, interface: Interface) -> Result<Option<String>, OpenError> {
    match (interface, cdev::path(device)) {
        (Interface::Group | Interface::NoIommu, _) | (Interface::Auto, None) => Ok(None),
        (Interface::Auto, Some(path)) => Ok(Some(path).filter(|path| cdev::is_permitted(path))),
        (Interface::Cdev, Some(path)) => Ok(Some(path)),
        (Interface::Cdev, None) => Err(OpenError::Missing {
            address: device.address(),
            what: "this kernel has no /dev/vfio/devices with iommufd for it: use vfio=group".into(),
        }),
    }
}

/// What an IOMMU that does not remap interrupts means.
const UNSAFE_INTERRUPTS: &str = "its IOMMU cannot remap interrupts, so that a device could forge them: switch \
                                 interrupt remapping on, or trust the device (allow_unsafe_interrupts of the \
                                 kernel's modules vfio_iommu_type1 and iommufd)";

impl Transport for Vfio {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        self.bar.read32(&self.loan, offset)
    }

    fn read64(&self, offset: u64) -> io::Result<u64> {
        // In halves, as Linux does: not every controller takes 64 bits at once.
        let low = self.read32(offset)?;
        Ok(u64::from(low) | u64::from(self.read32(offset + 4)?) << 32)
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.bar.write32(&self.loan, offset, value)
    }

    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        self.write32(offset, value as u32)?;
        self.write32(offset + 4, (value >> 32) as u32)
    }

    fn doorbells(&self) -> Option<DoorbellMemory> {
        self.bar.doorbells()
    }

    fn dma_limits(&self) -> DmaLimits {
        self.limits.clone()
    }

    fn shared_iovas(&self) -> Option<IovaSpace> {
        self.iovas.clone()
    }

    fn physical_address(&self, memory: &DmaMemory<'_>) -> Option<io::Result<u64>> {
        let address = |space: &AddressSpace| match space {
            AddressSpace::Physical(physical) => physical.address(memory),
            AddressSpace::Container(_) | AddressSpace::Ioas(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        (self.interface == Interface::NoIommu).then(|| self.loan.space(address))
    }

    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        self.loan.space(|space| {
            // SAFETY: by this function's condition.
            unsafe { space.map(iova, memory) }
        })
    }

    fn unmap_dma(&self, iova: u64, len: u64) -> io::Result<()> {
        // Whoever has nothing reaches nothing.
        if self.loan.is_over() { Ok(()) } else { self.loan.space(|space| space.unmap(iova, len)) }
    }

    fn interrupt_vectors(&self) -> u32 {
        self.interrupt_vectors
    }

    fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        self.loan.device(|device| device.set_interrupts(start, eventfds))
    }

    fn reset(&self) -> io::Result<()> {
        self.loan.device(|device| {
            device.reset()?;
            // The kernel restores configuration space after a reset; not every reset is the kernel's.
            pci::enable(device)
        })
    }

    fn stop_dma(&self) -> io::Result<()> {
        self.loan.device(|device| pci::stop_bus_mastering(device))
    }

    fn is_wanted_back(&self) -> bool {
        self.loan.device(|device| Ok(device.is_wanted_back())).unwrap_or(false)
    }

    fn give_back(&self) {
        // Mappings hold the device as well.
        if let Err(error) = self.bar.disconnect() {
            tracing::warn!(
                "{}: its registers stay mapped, so that the kernel waits for this process to end: {error}",
                self.name
            );
        }
        self.loan.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_as_they_print() {
        for (_, interface) in Interface::WORDS {
            assert_eq!(interface.to_string().parse(), Ok(interface));
        }
        let error = "type1".parse::<Interface>().unwrap_err();
        assert!(error.contains("vfio=type1") && error.contains("cdev"), "{error}");
    }

    #[test]
    fn an_address_where_nothing_is_is_an_error_that_names_it() {
        let address = "ffff:ff:1f.7".parse().unwrap();
        let error = Vfio::open(address, Interface::Auto).err().expect("there is nothing");
        assert_eq!(error.to_string(), "ffff:ff:1f.7: there is no such PCI device");
    }
}
