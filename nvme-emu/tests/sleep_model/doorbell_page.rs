//! What `src/reactor/doorbell_page.rs` is to a doorbell: words.

use crate::sync::AtomicU32;

/// Memory that can be shared with a client, here with a thread.
#[derive(Debug)]
pub struct DoorbellPage(pub [AtomicU32; 1]);

impl DoorbellPage {
    pub fn word(&self, index: usize) -> Option<&AtomicU32> {
        self.0.get(index)
    }
}
