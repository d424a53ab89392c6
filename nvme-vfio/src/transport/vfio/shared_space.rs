//! Address spaces that several devices of this process share. The kernel gives an IOMMU group to one user as a whole, so
//! that all devices of a group have one address space: the first of them makes it, the last one closes it.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// The address spaces of one kind that are open, by the numbers of their groups.
pub(super) struct SharedSpaces<T: 'static> {
    open: Mutex<BTreeMap<u32, Weak<SharedSpace<T>>>>,
    closed: Condvar,
}

/// One of them.
pub(super) struct SharedSpace<T: 'static> {
    space: ManuallyDrop<T>,
    group: u32,
    spaces: &'static SharedSpaces<T>,
}

impl<T> SharedSpaces<T> {
    pub(super) const fn new() -> Self {
        Self { open: Mutex::new(BTreeMap::new()), closed: Condvar::new() }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u32, Weak<SharedSpace<T>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address space of a group, which is made if there is none, and what `join` gets for one more device in it.
    pub(super) fn join<D, E>(
        &'static self,
        group: u32,
        make: impl FnOnce() -> Result<T, E>,
        join: impl FnOnce(&T) -> Result<D, E>,
    ) -> Result<(Arc<SharedSpace<T>>, D), E> {
        let mut open = self.open();
        while let Some(space) = open.get(&group) {
            // Asked once: between two looks, its last user may have let it go.
            let Some(space) = space.upgrade() else {
                // It is being closed, and still has the group.
                open = self.closed.wait(open).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(open);
            let device = join(&space)?;
            return Ok((space, device));
        }
        let space = make()?;
        let device = join(&space)?;
        let space = Arc::new(SharedSpace { space: ManuallyDrop::new(space), group, spaces: self });
        open.insert(group, Arc::downgrade(&space));
        Ok((space, device))
    }
}

impl<T> Deref for SharedSpace<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.space
    }
}

impl<T> Drop for SharedSpace<T> {
    fn drop(&mut self) {
        let mut open = self.spaces.open();
        // SAFETY: dropped here and nowhere else, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.space) };
        open.remove(&self.group);
        self.spaces.closed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// How many of them there are.
    struct Counted(&'static AtomicU32);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn count(open: &'static AtomicU32) -> impl Fn() -> Result<Counted, ()> {
        move || {
            assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "a group is opened once");
            Ok(Counted(open))
        }
    }

    #[test]
    fn devices_of_a_group_share_a_space_and_the_last_one_closes_it() {
        static SPACES: SharedSpaces<Counted> = SharedSpaces::new();
        static OPEN: AtomicU32 = AtomicU32::new(0);
        let join = || SPACES.join(7, count(&OPEN), |_| Ok(())).unwrap().0;
        let (first, second) = (join(), join());
        assert!(Arc::ptr_eq(&first, &second));
        drop(first);
        assert_eq!(OPEN.load(Ordering::SeqCst), 1);
        drop(second);
        assert_eq!(OPEN.load(Ordering::SeqCst), 0);
        drop(join());
    }

    #[test]
    fn groups_have_spaces_of_their_own() {
        static SPACES: SharedSpaces<u32> = SharedSpaces::new();
        let join = |group| SPACES.join(group, || Ok::<_, ()>(group), |_| Ok(())).unwrap().0;
        let (first, second) = (join(1), join(2));
        assert_eq!((**first, **second), (1, 2));
    }

    #[test]
    fn what_cannot_be_joined_is_not_kept() {
        static SPACES: SharedSpaces<Counted> = SharedSpaces::new();
        static OPEN: AtomicU32 = AtomicU32::new(0);
        assert!(SPACES.join(7, count(&OPEN), |_| Err::<(), ()>(())).is_err());
        assert_eq!(OPEN.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_opens_a_group_that_is_being_closed_waits_for_that() {
        static SPACES: SharedSpaces<Counted> = SharedSpaces::new();
        static OPEN: AtomicU32 = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope
                    .spawn(|| (0..500).for_each(|_| drop(SPACES.join(7, count(&OPEN), |_| Ok(())).unwrap())));
            }
        });
        assert_eq!(OPEN.load(Ordering::SeqCst), 0);
    }
}
