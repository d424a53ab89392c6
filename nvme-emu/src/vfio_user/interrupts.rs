//! Interrupts as VFIO names them: an index for each kind, vectors inside it.

use super::device::Device;
use super::message::{IrqInfo, IrqSet, parse};
use super::receive::Descriptors;
use crate::pci::{Call, InterruptKind};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

/// INTx, MSI (which we do not have), MSI-X. The indexes for error and release requests are left out: QEMU takes
/// their absence quietly, and an index without vectors not quite.
pub const INDEXES: u32 = VFIO_PCI_MSIX_IRQ_INDEX + 1;

/// `None`: MSI.
fn kind(index: u32) -> Result<Option<InterruptKind>, Errno> {
    match index {
        VFIO_PCI_INTX_IRQ_INDEX => Ok(Some(InterruptKind::Intx)),
        VFIO_PCI_MSI_IRQ_INDEX => Ok(None),
        VFIO_PCI_MSIX_IRQ_INDEX => Ok(Some(InterruptKind::Msix)),
        _ => Err(Errno::INVAL),
    }
}

/// `VFIO_USER_DEVICE_GET_IRQ_INFO`. Vectors of MSI-X may come and go one by one.
pub fn info(device: &impl Device, payload: &[u8]) -> Result<IrqInfo, Errno> {
    let (asked, _) = parse::<IrqInfo>(payload)?;
    let argsz = size_of::<IrqInfo>() as u32;
    if asked.argsz < argsz {
        return Err(Errno::INVAL);
    }
    let kind = kind(asked.index)?;
    let flags = match kind {
        Some(InterruptKind::Intx) => {
            VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
        }
        Some(InterruptKind::Msix) => VFIO_IRQ_INFO_EVENTFD,
        None => 0,
    };
    let count = kind.map_or(0, |kind| device.interrupt_vectors(kind));
    Ok(IrqInfo { argsz, flags, index: asked.index, count })
}

/// What `VFIO_USER_DEVICE_SET_IRQS` does to each vector that it names.
enum Action {
    Mask,
    Unmask,
    Trigger,
}

/// `VFIO_USER_DEVICE_SET_IRQS`: what to do, one after another.
///
/// Eventfds that the client would like to mask or unmask with are refused (`ENOTSUP`): QEMU under KVM offers one for
/// INTx, and goes on with messages.
pub fn set(device: &impl Device, payload: &[u8], descriptors: Descriptors) -> Result<Vec<Call>, Errno> {
    let (set, data) = parse::<IrqSet>(payload)?;
    if set.flags & !(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK) != 0 {
        return Err(Errno::INVAL);
    }
    let action = match set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
        VFIO_IRQ_SET_ACTION_MASK => Action::Mask,
        VFIO_IRQ_SET_ACTION_UNMASK => Action::Unmask,
        VFIO_IRQ_SET_ACTION_TRIGGER => Action::Trigger,
        _ => return Err(Errno::INVAL),
    };
    let kind = kind(set.index)?;
    let vectors = kind.map_or(0, |kind| device.interrupt_vectors(kind));
    if set.start.checked_add(set.count).is_none_or(|end| end > vectors) {
        return Err(Errno::INVAL);
    }
    let disable = set.count == 0 && set.start == 0;
    let Some(kind) = kind else {
        // MSI: disabling it is all that can be done to it.
        return if disable { Ok(Vec::new()) } else { Err(Errno::INVAL) };
    };
    match set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
        VFIO_IRQ_SET_DATA_NONE if disable && matches!(action, Action::Trigger) => {
            Ok(vec![Call::DisableInterrupts(kind)])
        }
        VFIO_IRQ_SET_DATA_NONE => act(kind, &action, set.start, set.count).map(|call| vec![call]),
        VFIO_IRQ_SET_DATA_BOOL => act_where(kind, &action, &set, data),
        VFIO_IRQ_SET_DATA_EVENTFD if matches!(action, Action::Trigger) => {
            let eventfds = eventfds(set.count, descriptors)?;
            Ok(vec![Call::SetInterrupts { kind, start: set.start, eventfds }])
        }
        VFIO_IRQ_SET_DATA_EVENTFD => Err(Errno::NOTSUP),
        _ => Err(Errno::INVAL),
    }
}

/// An eventfd for each vector, or none for all of them.
fn eventfds(count: u32, descriptors: Descriptors) -> Result<Vec<Option<OwnedFd>>, Errno> {
    if count == 0 {
        return Err(Errno::INVAL);
    }
    match descriptors.fds.len() {
        0 => Ok((0..count).map(|_| None).collect()),
        sent if sent == count as usize => Ok(descriptors.fds.into_iter().map(Some).collect()),
        _ => Err(Errno::INVAL),
    }
}

fn act(kind: InterruptKind, action: &Action, start: u32, count: u32) -> Result<Call, Errno> {
    match (action, kind) {
        _ if count == 0 => Err(Errno::INVAL),
        (Action::Trigger, _) => Ok(Call::TriggerInterrupt { kind, start, count }),
        (Action::Mask, InterruptKind::Intx) => Ok(Call::MaskIntx(true)),
        (Action::Unmask, InterruptKind::Intx) => Ok(Call::MaskIntx(false)),
        // MSI-X masks in its table; GET_IRQ_INFO does not call it maskable.
        (_, InterruptKind::Msix) => Err(Errno::INVAL),
    }
}

/// The action for each run of vectors whose byte is not 0.
fn act_where(kind: InterruptKind, action: &Action, set: &IrqSet, data: &[u8]) -> Result<Vec<Call>, Errno> {
    let chosen = data.get(..set.count as usize).filter(|chosen| !chosen.is_empty()).ok_or(Errno::INVAL)?;
    let mut calls = Vec::new();
    let mut start = set.start;
    for run in chosen.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
        let count = run.len() as u32;
        if run[0] != 0 {
            calls.push(act(kind, action, start, count)?);
        }
        start += count;
    }
    Ok(calls)
}
