//! Guest memory coming and going.

use super::control::Control;
use crate::memory::Mapping;
use crate::memory::{Region, RegionMask};
use crate::pci::function::{Answer, DmaMapping};
use crate::reactor::message::{ControllerIndex, ShardRequest};
use block_core::{Disk, MemoryRegion};
use std::sync::Arc;

/// Private memory from here on is likely to be the guest's RAM, and not some ROM.
const LIKELY_RAM: u64 = 16 << 20;

impl Control {
    pub(super) fn map_dma(&mut self, index: ControllerIndex, request: DmaMapping, answer: Answer) {
        match self.map(index, request) {
            Ok(()) => self.publish(index, RegionMask::NONE, answer),
            Err(errno) => answer(Err(errno)),
        }
    }

    fn map(&mut self, index: ControllerIndex, request: DmaMapping) -> Result<(), i32> {
        let controller = &mut self.controllers[index];
        let DmaMapping { iova, len, read, write, backing } = request;
        controller.map.check_free(iova, len)?;
        let mapping = match backing {
            Some((fd, offset)) => {
                let fault = controller.shared.fault.clone();
                let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
                let mapping = Mapping::new(fd, offset, len, read, write, fault);
                Some(Arc::new(mapping.map_err(|error| {
                    tracing::warn!("the client's memory at {iova:#x}+{len:#x} cannot be mapped: {error}");
                    error.raw_os_error().unwrap_or(libc::EINVAL)
                })?))
            }
            None => {
                if len >= LIKELY_RAM && !std::mem::replace(&mut controller.warned_of_private_memory, true) {
                    tracing::warn!(
                        "the client does not share its memory at {iova:#x}+{len:#x}: start the guest with shared \
                         memory (QEMU: -object memory-backend-memfd,share=on,…)"
                    );
                }
                None
            }
        };
        if let Some(mapping) = &mapping {
            for disk in disks(controller.admin.subsystem().namespaces()) {
                let backing = Some(mapping.backing());
                let region = MemoryRegion { base: mapping.base(), len: mapping.len(), backing };
                // SAFETY: the mapping is unmapped when its last `Arc` goes; `unmap_dma` unregisters before it lets go.
                if let Err(error) = unsafe { disk.register_memory(region) } {
                    tracing::debug!("memory at {iova:#x} stays unregistered: {error}");
                }
            }
        }
        controller.map = Arc::new(controller.map.with_region(iova, len, read, write, mapping)?);
        Ok(())
    }

    /// Takes a range away, or everything.
    pub(super) fn unmap_dma(&mut self, index: ControllerIndex, range: Option<(u64, u64)>, answer: Answer) {
        let controller = &mut self.controllers[index];
        let without = match range {
            Some((iova, len)) => controller.map.without_range(iova, len),
            None => Ok(controller.map.without_all()),
        };
        let (map, removed, mask) = match without {
            Ok(without) => without,
            Err(errno) => return answer(Err(errno)),
        };
        controller.map = Arc::new(map);
        let subsystem = controller.subsystem();
        let fault = range.is_none().then(|| controller.shared.fault.clone());
        let released: Answer = Box::new(move |result| {
            for mapping in removed.iter().filter_map(|region: &Region| region.mapping.as_ref()) {
                for disk in disks(subsystem.namespaces()) {
                    disk.unregister_memory(mapping.base(), mapping.len());
                }
            }
            drop(removed);
            // With the last memory goes whatever was wrong with it.
            fault.iter().for_each(|fault| fault.clear());
            answer(result);
        });
        self.publish(index, mask, released);
    }

    /// Makes all reactors use the controller's map; answers when nothing touches `removed` any more.
    fn publish(&mut self, index: ControllerIndex, removed: RegionMask, answer: Answer) {
        let map = self.controllers[index].map.clone();
        self.ask_all(
            index,
            || ShardRequest::Map { map: map.clone(), removed },
            Box::new(|_, result| answer(result)),
        );
    }
}

/// The disks of some namespaces, each once.
fn disks(namespaces: &[crate::namespace::Namespace]) -> impl Iterator<Item = &Arc<dyn Disk>> {
    namespaces.iter().enumerate().filter_map(|(i, namespace)| {
        let earlier = namespaces[..i].iter().any(|other| Arc::ptr_eq(other.disk(), namespace.disk()));
        (!earlier).then_some(namespace.disk())
    })
}
