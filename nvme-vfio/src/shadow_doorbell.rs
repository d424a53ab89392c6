//! Shadow doorbells (Base Specification, Doorbell Buffer Config command and annex "Updating Controller Doorbell
//! Properties using a Shadow Doorbell Buffer").
//!
//! Where a doorbell write is trapped it costs a message or an exit. With shadow doorbells the host writes queue
//! indexes into memory, and rings only if the controller, through EventIdx, has asked for it.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nvme_spec::doorbell::Doorbell;

use crate::dma::{DmaBuffer, DmaSpace};
use crate::error::Error;

/// The two buffers, laid out like the doorbell registers.
pub(crate) struct ShadowDoorbells {
    /// The shadow doorbells in its first half, the EventIdx values in its second.
    memory: DmaBuffer,
    half: usize,
    dstrd: u8,
}

// SAFETY: after `new`, the memory is accessed as atomics only.
unsafe impl Sync for ShadowDoorbells {}

impl ShadowDoorbells {
    /// Buffers of a memory page each, as the command has them.
    pub(crate) fn new(space: &Arc<DmaSpace>, memory_page_size: u64, dstrd: u8) -> Result<Arc<Self>, Error> {
        let half = memory_page_size as usize;
        Ok(Arc::new(Self { memory: space.allocate(2 * half)?, half, dstrd }))
    }

    /// I/O virtual addresses of the shadow doorbells and of the EventIdx values.
    pub(crate) fn iovas(&self) -> (u64, u64) {
        (self.memory.iova(), self.memory.iova() + self.half as u64)
    }

    /// Zeroes what I/O queues have left there: to be done before the controller is told of the buffers. From then on
    /// EventIdx is the controller's. The admin queue's words stay, since it is in use already.
    pub(crate) fn clear(&self) {
        let first = Doorbell::SubmissionQueueTail(1).offset_in_buffer(self.dstrd) as usize;
        for offset in (first..self.half).step_by(size_of::<u32>()) {
            let (index, event_idx) = self.words(offset);
            // SAFETY: aligned words of the buffers, which are accessed as atomics only.
            unsafe {
                index.as_ref().store(0, Ordering::Relaxed);
                event_idx.as_ref().store(0, Ordering::Relaxed);
            }
        }
    }

    /// The shadow of a doorbell of a queue that is about to be created: 0, as the queue's index will be. A controller
    /// that polls looks at it as soon as it has the queue, and must not find there how far another one had come. `None`
    /// if it has no room in the buffer.
    pub(crate) fn shadow(self: &Arc<Self>, doorbell: Doorbell) -> Option<ShadowDoorbell> {
        let offset = usize::try_from(doorbell.offset_in_buffer(self.dstrd)).ok()?;
        if offset + size_of::<u32>() > self.half {
            return None;
        }
        let (index, event_idx) = self.words(offset);
        let shadow = ShadowDoorbell { index, event_idx, _buffers: self.clone() };
        shadow.index().store(0, Ordering::Relaxed);
        if let Doorbell::SubmissionQueueTail(_) = doorbell {
            // Of another queue. A controller that sleeps on this one without having said where must be rung.
            shadow.event_idx().store(0, Ordering::Relaxed);
        }
        Some(shadow)
    }

    /// The shadow and the EventIdx at an offset, which is inside the buffers' halves.
    fn words(&self, offset: usize) -> (NonNull<AtomicU32>, NonNull<AtomicU32>) {
        debug_assert!(offset + size_of::<u32>() <= self.half);
        let base = self.memory.base();
        // SAFETY: both words are inside the buffers, as `offset` is inside a half.
        unsafe { (base.add(offset).cast(), base.add(self.half + offset).cast()) }
    }
}

/// The shadow of one doorbell.
pub(crate) struct ShadowDoorbell {
    index: NonNull<AtomicU32>,
    event_idx: NonNull<AtomicU32>,
    _buffers: Arc<ShadowDoorbells>,
}

impl ShadowDoorbell {
    fn index(&self) -> &AtomicU32 {
        // SAFETY: points into the buffer held here, to an aligned word that everybody accesses atomically.
        unsafe { self.index.as_ref() }
    }

    fn event_idx(&self) -> &AtomicU32 {
        // SAFETY: as in `index`.
        unsafe { self.event_idx.as_ref() }
    }

    /// Writes the shadow and says whether the doorbell has to be rung as well.
    #[inline]
    pub(crate) fn write(&self, old: u16, new: u16) -> bool {
        // Release: whoever sees the index sees the entries before it.
        self.index().store(new.into(), Ordering::Release);
        // The controller, before it sleeps, writes EventIdx, fences, and reads the index once more; with the fence
        // between our write and our read, at least one side sees what the other has written.
        fence(Ordering::SeqCst);
        must_ring(self.event_idx().load(Ordering::Relaxed), old, new)
    }
}

/// An EventIdx that is no index, and is never passed: SPDK's target, which reads one message in a millisecond, says so
/// that it polls and is not to be rung. Taken for an index it would be passed with every lap. Other values that the
/// queue does not have are (as by Linux, `nvme_dbbuf_need_event`): their controllers may have counted past its end.
const NEVER: u32 = u32::MAX;

/// Whether an index that goes from `old` to `new` passes `event_idx`: becomes greater than it, having been not
/// greater. All in a circle, whose gap (indexes are less than the queue's size) changes nothing.
#[inline]
fn must_ring(event_idx: u32, old: u16, new: u16) -> bool {
    event_idx != NEVER && new.wrapping_sub(event_idx as u16).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_idle_controller_that_waits_for_the_next_entry_is_rung() {
        assert!(must_ring(5, 5, 6));
        assert!(must_ring(5, 5, 9));
    }

    #[test]
    fn a_busy_controller_that_waits_for_a_later_entry_is_not() {
        assert!(!must_ring(20, 5, 6));
        assert!(must_ring(20, 19, 21));
        assert!(!must_ring(4, 5, 6));
    }

    #[test]
    fn a_controller_that_is_never_to_be_rung_is_not_at_the_end_of_the_queue_either() {
        assert!(!must_ring(u32::MAX, 255, 0));
        assert!(!must_ring(u32::MAX, 0, 1));
        assert!(must_ring(257, 255, 3), "counted past the end of a queue of 256");
    }

    proptest! {
        #[test]
        fn it_rings_exactly_when_one_of_the_steps_leaves_the_event_index(
            size in 2..=65536u32, old: u16, steps in 1..65535u32, event_idx: u16
        ) {
            let old = u32::from(old) % size;
            let steps = 1 + steps % (size - 1);
            let event_idx = u32::from(event_idx) % size;
            let new = (old + steps) % size;
            let passes = (0..steps).any(|step| (old + step) % size == event_idx);
            prop_assert_eq!(must_ring(event_idx, old as u16, new as u16), passes);
        }
    }
}
