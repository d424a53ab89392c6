//! The volatile write cache as its host switches it (Set Features 06h; NVMe Base 2.0c, 5.27.1.4).
//!
//! Switching it off takes until everything in it is durable; from then on a write completes when it is. A Controller
//! Level Reset switches the feature on again, for it is not saved. A host that takes it for off all the same must not
//! lose anything by that, and there is one: Linux (6.12, 7.x) goes on sending neither flush nor FUA to a disk whose
//! `queue/write_cache` was set to "write through", over resets of its own. A cache that is on need not be used: so
//! after a reset it stays unused until the host switches it on, or a device reset by the VMM or another client says
//! that there is another host.

/// What is done with the cache, whatever the feature's value.
#[derive(Debug, Default)]
pub(crate) struct WriteCache {
    /// Whether the host has switched it off, and it has been emptied: until somebody says otherwise, nothing is in it.
    unused: bool,
    /// How often somebody has said otherwise.
    uses: u32,
}

/// The cache is being emptied: for [`WriteCache::emptied`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emptying {
    uses: u32,
}

impl WriteCache {
    /// The host has switched it off. Returns whether it has to be emptied.
    pub(crate) fn switched_off(&self) -> Option<Emptying> {
        (!self.unused).then_some(Emptying { uses: self.uses })
    }

    /// Everything that was in it is durable, and what came later does not use it, unless somebody has allowed that.
    pub(crate) fn emptied(&mut self, emptying: Emptying) {
        self.unused = self.uses == emptying.uses;
    }

    /// It may be used: the host has switched it on, or is another one.
    pub(crate) fn allow(&mut self) {
        self.unused = false;
        self.uses = self.uses.wrapping_add(1);
    }

    /// Whether it is not used even where the feature is on.
    pub(crate) fn is_unused(&self) -> bool {
        self.unused
    }
}
