//! The device as VFIO gives it: a descriptor whose regions and interrupts are asked for by number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    vfio_device_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

use super::super::capability::{self, SparseArea};
use super::super::pci::ConfigSpace;
use super::ioctl::{
    self, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_RESET,
    VFIO_DEVICE_SET_IRQS,
};

/// An open device.
pub(super) struct Device {
    fd: OwnedFd,
    can_reset: bool,
    config_offset: u64,
    interrupts: Option<Interrupts>,
    /// Where the kernel says that it wants the device back.
    request: Option<OwnedFd>,
}

/// The kind of interrupts that the device has, and how they are switched on.
struct Interrupts {
    /// MSI-X or MSI.
    index: u32,
    count: u32,
    /// The kernel has to be told of all vectors at once (for MSI always, for MSI-X before 6.5): whether it has been.
    all_at_once: Option<Mutex<bool>>,
}

/// A region of the device.
pub(super) struct Region {
    pub(super) size: u64,
    /// Where it begins in the device's file.
    pub(super) offset: u64,
    /// What of it can be mapped.
    pub(super) areas: Vec<SparseArea>,
}

impl Device {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let ask = vfio_device_info { argsz: 0, flags: 0, num_regions: 0, num_irqs: 0, cap_offset: 0, pad: 0 };
        // SAFETY: the structure is this request's.
        let (info, _) = unsafe { ioctl::query(&fd, VFIO_DEVICE_GET_INFO, ask)? };
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "VFIO does not show it as a PCI device"));
        }
        let interrupts = interrupts(&fd, info.num_irqs)?;
        let can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let mut device = Self { fd, can_reset, config_offset: 0, interrupts, request: None };
        device.config_offset = device.region(VFIO_PCI_CONFIG_REGION_INDEX)?.offset;
        match device.listen_to_requests(info.num_irqs) {
            Ok(request) => device.request = request,
            Err(errno) => tracing::debug!("the kernel does not say when it wants the device back: {errno}"),
        }
        Ok(device)
    }

    /// Has the kernel say when it wants the device back, which it then waits for: when its driver is unbound from it, or it is
    /// to be unplugged. `None`: this kernel does not say so.
    fn listen_to_requests(&self, num_irqs: u32) -> rustix::io::Result<Option<OwnedFd>> {
        if irq_info(&self.fd, VFIO_PCI_REQ_IRQ_INDEX, num_irqs)?.is_none() {
            return Ok(None);
        }
        let request = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.set_irqs(VFIO_PCI_REQ_IRQ_INDEX, 0, &[request.as_raw_fd()])?;
        Ok(Some(request))
    }

    /// Whether the kernel wants the device back.
    pub(super) fn is_wanted_back(&self) -> bool {
        let Some(request) = &self.request else { return false };
        let mut fds = [PollFd::new(request, PollFlags::IN)];
        // Not read: it stays said.
        rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn region(&self, index: u32) -> io::Result<Region> {
        let ask = vfio_region_info { argsz: 0, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        // SAFETY: the structure is this request's.
        let (info, answer) = unsafe { ioctl::query(&self.fd, VFIO_DEVICE_GET_REGION_INFO, ask)? };
        let areas = if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            Vec::new()
        } else {
            let first = if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 { info.cap_offset } else { 0 };
            capability::sparse_areas(&answer, first)?
                .unwrap_or_else(|| vec![SparseArea { offset: 0, size: info.size }])
        };
        Ok(Region { size: info.size, offset: info.offset, areas })
    }

    /// Reads at a place of the device's file.
    pub(super) fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        match rustix::io::pread(&self.fd, &mut *data, offset)? {
            read if read == data.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes at a place of the device's file.
    pub(super) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match rustix::io::pwrite(&self.fd, data, offset)? {
            written if written == data.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    pub(super) fn interrupt_vectors(&self) -> u32 {
        self.interrupts.as_ref().map_or(0, |interrupts| interrupts.count)
    }

    pub(super) fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let Some(interrupts) = &self.interrupts else { return Err(io::ErrorKind::Unsupported.into()) };
        let end = u32::try_from(eventfds.len()).ok().and_then(|count| start.checked_add(count));
        if end.is_none_or(|end| end > interrupts.count) {
            let what = format!("the device has {} interrupt vectors", interrupts.count);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if let Some(done) = &interrupts.all_at_once {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            if !*done {
                self.enable_all(interrupts)?;
                *done = true;
            }
        }
        let fds: Vec<i32> = eventfds.iter().map(|fd| fd.map_or(NO_EVENTFD, |fd| fd.as_raw_fd())).collect();
        match self.set_irqs(interrupts.index, start, &fds)? {
            0 => Ok(()),
            _ => Err(Errno::NOSPC.into()),
        }
    }

    /// Has the kernel set up all vectors, or as many as this machine has room for, connected to nothing yet.
    fn enable_all(&self, interrupts: &Interrupts) -> io::Result<()> {
        let mut count = interrupts.count as usize;
        loop {
            match self.set_irqs(interrupts.index, 0, &vec![NO_EVENTFD; count])? {
                0 => return Ok(()),
                // So many would do.
                room if (room as usize) < count => count = room as usize,
                _ => return Err(Errno::NOSPC.into()),
            }
        }
    }

    /// Connects vectors to eventfds. The kernel answers 0, or how many vectors there could be at most.
    fn set_irqs(&self, index: u32, start: u32, fds: &[i32]) -> rustix::io::Result<u32> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.irq_request(flags, index, start, fds.len() as u32, fds)
    }

    fn irq_request(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        fds: &[i32],
    ) -> rustix::io::Result<u32> {
        let argsz = (size_of::<vfio_irq_set>() + size_of_val(fds)) as u32;
        let bytes: Vec<u8> = [argsz, flags, index, start, count]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .chain(fds.iter().flat_map(|fd| fd.to_ne_bytes()))
            .chain([0; 7])
            .collect();
        let mut words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
            .collect();
        // SAFETY: this is a `struct vfio_irq_set` with its descriptors behind it, `argsz` bytes and a little more.
        let answer = unsafe { ioctl::with_words(&self.fd, VFIO_DEVICE_SET_IRQS, &mut words)? };
        Ok(answer.unsigned_abs())
    }

    /// Disconnects all interrupts and switches them off in the device.
    fn disable_interrupts(&self) {
        if let Some(interrupts) = &self.interrupts {
            let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
            // Fails if they were never switched on.
            let _ = self.irq_request(flags, interrupts.index, 0, 0, &[]);
        }
    }

    pub(super) fn reset(&self) -> io::Result<()> {
        if !self.can_reset {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: the request has no argument.
        unsafe { ioctl::with_value(&self.fd, VFIO_DEVICE_RESET, 0)? };
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.disable_interrupts();
    }
}

/// In place of an eventfd: disconnect the vector.
const NO_EVENTFD: i32 = -1;

/// The best kind of interrupts that the device has: MSI-X, else MSI.
fn interrupts(fd: &OwnedFd, num_irqs: u32) -> io::Result<Option<Interrupts>> {
    for index in [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX] {
        if let Some(info) = irq_info(fd, index, num_irqs)? {
            let all_at_once = info.flags & VFIO_IRQ_INFO_NORESIZE != 0;
            let all_at_once = all_at_once.then(|| Mutex::new(false));
            return Ok(Some(Interrupts { index, count: info.count, all_at_once }));
        }
    }
    Ok(None)
}

/// What the kernel says of a kind of interrupts, of which there are some.
fn irq_info(fd: &OwnedFd, index: u32, num_irqs: u32) -> rustix::io::Result<Option<vfio_irq_info>> {
    if index >= num_irqs {
        return Ok(None);
    }
    let argsz = size_of::<vfio_irq_info>() as u32;
    let mut info = vfio_irq_info { argsz, flags: 0, index, count: 0 };
    // SAFETY: the structure is this request's, and has its size in it.
    match unsafe { ioctl::with_struct(fd, VFIO_DEVICE_GET_IRQ_INFO, &mut info) } {
        Ok(_) => Ok(Some(info).filter(|info| info.count > 0)),
        // Those beyond the first three are asked for by number, and refused where a kernel or device has them not.
        Err(Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl ConfigSpace for Device {
    fn read_config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read_at(data, self.config_offset + offset)
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(data, self.config_offset + offset)
    }
}
