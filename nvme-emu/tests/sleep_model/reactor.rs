//! A reactor with one submission queue and as little patience as there can be: whenever a round finds nothing, it
//! sleeps.

use crate::alarm::Alarm;
use crate::doorbell::{Doorbell, Shadow};
use crate::doorbell_page::DoorbellPage;
use crate::handle::{ReactorHandle, Sleeper};
use crate::sync::AtomicU32;
use std::ptr::NonNull;
use std::sync::Arc;

/// Entries of the queue.
const SIZE: u32 = 8;

/// What the threads of a model share.
pub struct Model {
    pub handle: ReactorHandle,
    pub shadow: AtomicU32,
    pub event_index: AtomicU32,
    page: Arc<DoorbellPage>,
    /// Whether the guest uses shadow doorbells.
    shadowed: bool,
}

impl Model {
    pub fn new(shadowed: bool) -> Self {
        Self {
            handle: ReactorHandle::new(Alarm::new()),
            shadow: AtomicU32::new(0),
            event_index: AtomicU32::new(0),
            page: Arc::new(DoorbellPage([AtomicU32::new(0)])),
            shadowed,
        }
    }

    /// The word that trapped and mapped doorbells end up in.
    pub fn page(&self) -> &AtomicU32 {
        &self.page.0[0]
    }

    fn doorbell(&self) -> Doorbell {
        let mut doorbell = Doorbell::new(self.page.clone(), 0).unwrap();
        let shadow =
            Shadow { value: NonNull::from(&self.shadow), event_index: NonNull::from(&self.event_index) };
        // SAFETY: the model outlives its reactor's run, where the doorbell is.
        unsafe { doorbell.use_shadow(self.shadowed.then_some(shadow)) };
        doorbell
    }
}

/// Which of its duties a reactor does.
#[derive(Clone, Copy)]
pub struct Reactor {
    pub arms: bool,
    pub last_look: bool,
}

impl Reactor {
    pub const WHOLE: Self = Self { arms: true, last_look: true };

    /// Runs until the doorbell is at `tail` and so many messages have come.
    pub fn run(self, model: &Model, tail: u32, messages: usize) {
        let mut queue = Queue { duties: self, model, doorbell: model.doorbell(), seen: 0 };
        let mut received = 0;
        loop {
            while model.handle.receive().is_some() {
                received += 1;
            }
            let found = queue.look();
            model.handle.alarm().glance();
            if queue.seen == tail && received == messages {
                return;
            }
            if !found {
                model.handle.sleep(&mut queue);
            }
        }
    }
}

struct Queue<'a> {
    duties: Reactor,
    model: &'a Model,
    doorbell: Doorbell,
    seen: u32,
}

impl Queue<'_> {
    /// As `SubmissionQueue::look`.
    fn look(&mut self) -> bool {
        let tail = self.doorbell.load();
        let found = tail != self.seen;
        if found {
            self.seen = tail;
            self.doorbell.suppress(tail, SIZE);
        }
        found
    }
}

impl Sleeper for Queue<'_> {
    fn arm(&mut self) {
        if self.duties.arms {
            self.doorbell.arm(self.seen);
        }
    }

    fn has_work(&mut self) -> bool {
        self.duties.last_look && self.doorbell.load() != self.seen
    }

    fn wait(&mut self) {
        self.model.handle.alarm().wait();
    }

    fn disarm(&mut self) {
        self.doorbell.suppress(self.seen, SIZE);
    }
}
