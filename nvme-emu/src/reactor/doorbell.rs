//! Doorbells, three ways, one code path behind them.
//!
//! A doorbell is a 32-bit word that a reactor looks at. Trapped writes and client-mapped doorbells end up in the
//! controller's [`DoorbellPage`]; shadow doorbells (Doorbell Buffer Config) are in the guest's own memory, and come
//! with an EventIdx word through which the controller says when it wants to be rung as well (NVM Express Base
//! Specification 2.0, "Doorbell Buffer Config command" and the annex on updating doorbell properties).

use super::doorbell_page::DoorbellPage;
use crate::sync::{AtomicU32, Ordering};
use std::ptr::NonNull;
use std::sync::Arc;

/// A shadow doorbell and its EventIdx, in guest memory that has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shadow {
    pub(crate) value: NonNull<AtomicU32>,
    pub(crate) event_index: NonNull<AtomicU32>,
}

/// One queue's doorbell, as its reactor sees it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// Where to look: the page's word, or the shadow's.
    value: NonNull<AtomicU32>,
    event_index: Option<NonNull<AtomicU32>>,
    page: Arc<DoorbellPage>,
    index: usize,
}

impl Doorbell {
    /// The doorbell at `index` of the page.
    pub(crate) fn new(page: Arc<DoorbellPage>, index: usize) -> Option<Self> {
        let value = NonNull::from(page.word(index)?);
        Some(Self { page, index, value, event_index: None })
    }

    /// Where it is in the page.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Starts anew at 0, in guest memory too: a queue of this identifier may have been here before.
    pub(crate) fn reset(&self) {
        if let Some(word) = self.page.word(self.index) {
            word.store(0, Ordering::Relaxed);
        }
        if let Some(event_index) = self.event_index {
            // SAFETY: see `use_shadow`.
            unsafe {
                self.value.as_ref().store(0, Ordering::Relaxed);
                event_index.as_ref().store(0, Ordering::Relaxed);
            }
        }
    }

    /// Looks into guest memory from now on, or at the page again.
    ///
    /// # Safety
    ///
    /// The shadow's words are aligned and stay mapped until this is called again or the doorbell is gone.
    pub(crate) unsafe fn use_shadow(&mut self, shadow: Option<Shadow>) {
        match shadow {
            Some(shadow) => {
                self.value = shadow.value;
                self.event_index = Some(shadow.event_index);
            }
            None => {
                if let Some(word) = self.page.word(self.index) {
                    // What was rung last was only rung in memory: what the page has may be from before there were
                    // shadows, and would look like a ring of commands that have long been executed.
                    if self.event_index.is_some() {
                        word.store(self.load(), Ordering::Release);
                    }
                    self.value = NonNull::from(word);
                }
                self.event_index = None;
            }
        }
    }

    /// What was rung last. Acquire: what the guest wrote before it rang is seen.
    #[inline]
    pub(crate) fn load(&self) -> u32 {
        // SAFETY: a word of the page, which `self` holds, or of guest memory, see `use_shadow`.
        unsafe { self.value.as_ref() }.load(Ordering::Acquire)
    }

    /// Whether the guest reads an EventIdx before it rings.
    #[inline]
    pub(crate) fn has_event_index(&self) -> bool {
        self.event_index.is_some()
    }

    /// Puts EventIdx where the guest does not pass by soon, given the value last seen: right behind it. It moves with
    /// every look, and a guest cannot go round the whole queue between two looks that see nothing consumed.
    #[inline]
    pub(crate) fn suppress(&self, seen: u32, size: u32) {
        let behind = if seen == 0 { size - 1 } else { seen - 1 };
        self.set_event_index(behind);
    }

    /// Puts EventIdx where the guest passes by with its next change. The caller fences and looks once more before it
    /// relies on that.
    pub(crate) fn arm(&self, seen: u32) {
        self.set_event_index(seen);
    }

    #[inline]
    fn set_event_index(&self, value: u32) {
        if let Some(event_index) = self.event_index {
            // SAFETY: see `use_shadow`.
            unsafe { event_index.as_ref() }.store(value, Ordering::Relaxed);
        }
    }
}
