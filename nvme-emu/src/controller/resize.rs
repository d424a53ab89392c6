//! Disks that become another size while they are namespaces.

use super::control::Control;
use crate::namespace::Namespace;
use crate::reactor::message::{ControllerIndex, ShardRequest};
use crate::subsystem::Subsystem;

/// The capacities of a subsystem's namespaces that a controller's host has been told, in their order.
pub(super) struct KnownCapacities(Vec<u64>);

impl KnownCapacities {
    pub(super) fn of(subsystem: &Subsystem) -> Self {
        Self(subsystem.namespaces().iter().map(Namespace::capacity).collect())
    }

    /// The NSIDs of those that are others now, which are known from here on.
    fn take_changes(&mut self, subsystem: &Subsystem) -> Vec<u32> {
        let pairs = subsystem.namespaces().iter().zip(&mut self.0);
        let news = pairs.filter_map(|(namespace, known)| {
            let now = namespace.capacity();
            (std::mem::replace(known, now) != now).then(|| namespace.nsid())
        });
        news.collect()
    }
}

impl Control {
    /// A disk of a controller's may have become another size. The host is told when all reactors know of it: it may use
    /// what is new at once.
    pub(super) fn resized(&mut self, index: ControllerIndex) {
        let controller = &mut self.controllers[index];
        let subsystem = controller.subsystem();
        subsystem.namespaces().iter().for_each(Namespace::refresh);
        let changed = controller.capacities.take_changes(&subsystem);
        if changed.is_empty() {
            return;
        }
        for namespace in subsystem.namespaces().iter().filter(|it| changed.contains(&it.nsid())) {
            tracing::info!(
                controller = index,
                "namespace {} has {} bytes now",
                namespace.nsid(),
                namespace.capacity()
            );
        }
        let tell = move |control: &mut Self, _| {
            let controller = &mut control.controllers[index];
            changed.iter().for_each(|&nsid| controller.admin.namespace_changed(nsid));
            controller.post_events();
        };
        self.ask_all(index, || ShardRequest::Resized(subsystem.clone()), Box::new(tell));
    }
}
