//! The fake controller, driven: what most tests begin with.

use super::Fake;
use nvme_vfio::{Controller, Namespace, Options, QueuePair};

/// A fake controller and its driver, with one queue pair. What it took to get there is no longer among the steps.
pub struct Setup {
    pub fake: Fake,
    pub controller: Controller,
    pub namespace: Namespace,
    pub queue: QueuePair,
}

impl Setup {
    pub fn new(fake: Fake, options: Options) -> Self {
        let controller = Controller::open(fake.boxed(), options).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let queue = controller.queue_pair().unwrap();
        fake.state().steps.clear();
        Self { fake, controller, namespace, queue }
    }
}
