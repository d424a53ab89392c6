//! An open qcow2 disk: what its queues and the threads beside them share.

use super::chain::{Content, Layer};
use super::epoch::Clock;
use super::fault::Faults;
use super::mailbox::{Answer, Mailbox};
use super::mapping::Table;
use super::metadata::Metadata;
use super::queue::Qcow2Queue;
use super::workers;
use crate::disk::{Disk, DiskInfo, Unmapped};
use crate::file::CacheMode;
use crate::image_file::ImageFile;
use crate::queue::Queue;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk in a qcow2 image.
pub struct Qcow2Disk {
    shared: User,
}

/// What queues and threads share.
pub(super) struct Shared {
    pub info: DiskInfo,
    pub cluster_bits: u32,
    pub cache: CacheMode,
    /// Where each layer has the guest's data.
    pub files: Box<[Arc<dyn ImageFile>]>,
    pub table: Table,
    pub clock: Arc<Clock>,
    /// Metadata has changed that may not be on the medium yet. Set before a mapping that this is about is in the table.
    pub dirty: AtomicBool,
    /// Clusters wait to be given away.
    pub to_give_away: AtomicBool,
    pub faults: Faults,
    /// Errno that writes fail with, 0 as long as they do not.
    failed: AtomicI32,
    metadata: Mutex<Metadata>,
    jobs: Mutex<Jobs>,
    /// How many disks and queues there are on this: whoever has it beside them is a thread at work.
    users: AtomicUsize,
    counters: Counters,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(Arc<Mailbox>, u32)>,
    /// A thread has the disk, or is about to.
    handed_over: bool,
}

#[derive(Default)]
pub(super) struct Counters {
    pub handed_over: AtomicUsize,
    pub allocated: AtomicUsize,
    pub copied: AtomicUsize,
    pub given_away: AtomicUsize,
    pub flushes: AtomicUsize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk's or a queue's hold on what they share. When it goes, no thread is at work for it any more: so whoever drops
/// the last one closes the image with it, and its locks.
pub(super) struct User(Arc<Shared>);

impl User {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.users.fetch_add(1, Ordering::SeqCst);
        Self(shared.clone())
    }
}

impl std::ops::Deref for User {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // At most until a thread has finished what it is at.
        while Arc::strong_count(&self.0) > self.0.users.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Qcow2Disk {
    /// A disk of these layers, with a table of mappings of `table_bytes` at most.
    pub(super) fn new(layers: Vec<Layer>, table_bytes: Option<u64>, discard: bool) -> io::Result<Self> {
        let Some(Layer { content: Content::Qcow2(image), data }) = layers.first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let header = &image.header;
        let file = data.info();
        let cluster_bits = header.cluster_bits;
        let cluster = 1u32 << cluster_bits;
        let clusters = image.whole_size() >> cluster_bits;
        let cache = image.pages.file().cache_mode();
        let read_only = image.pages.file().info().read_only;
        let info = DiskInfo {
            capacity: header.size,
            volatile_cache: cache.volatile_cache(),
            read_only,
            unmapped: if discard && !read_only { Unmapped::Zeroes } else { Unmapped::Ignored },
            discard_granularity: cluster,
            fast_write_zeroes: image.has_zero_clusters() || file.fast_write_zeroes,
            optimal_io: cluster,
            ..file
        };
        let table_bytes = table_bytes.unwrap_or(DEFAULT_TABLE_BYTES);
        let shared = Arc::new(Shared {
            info,
            cluster_bits,
            cache,
            files: layers.iter().map(|layer| layer.data.clone()).collect(),
            table: Table::new(clusters, table_bytes),
            clock: Arc::default(),
            dirty: AtomicBool::new(false),
            to_give_away: AtomicBool::new(false),
            faults: Faults::default(),
            failed: AtomicI32::new(0),
            metadata: Mutex::new(Metadata::new(layers, table_bytes)?),
            jobs: Mutex::default(),
            users: AtomicUsize::new(0),
            counters: Counters::default(),
        });
        Ok(Self { shared: User::new(&shared) })
    }

    /// The same disk with a fault, for tests that have to find it.
    #[cfg(feature = "contract")]
    #[must_use]
    pub fn with_fault(self, fault: super::Fault) -> Self {
        self.shared.faults.set(fault);
        locked(&self.shared.metadata).set_fault(fault);
        self
    }
}

/// The largest table of mappings that a disk gets unasked: as QEMU's `l2-cache-size`.
const DEFAULT_TABLE_BYTES: u64 = 32 << 20;

impl Shared {
    /// Whether writes still may be: not after metadata could not be written.
    #[inline]
    pub fn writable(&self) -> Result<(), i32> {
        match self.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    /// From now on writes fail.
    #[cold]
    pub fn fail(&self, errno: i32, reason: &dyn std::fmt::Display) {
        if self.failed.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let path = self.files[0].path().display();
            tracing::error!(%path, %reason, "writes to the image fail until the disk is reopened");
        }
    }

    /// After an error of the data file: where its writes have ended, so have those that are a matter of metadata alone.
    #[cold]
    pub fn look_at_failed_file(&self) {
        if let Some(errno) = self.files[0].failed() {
            self.fail(errno, &"its data could not be made durable");
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Hands over the jobs in these slots of a queue.
    pub fn hand_over(self: &Arc<Self>, mailbox: &Arc<Mailbox>, slots: &[u32]) {
        let mut jobs = locked(&self.jobs);
        jobs.waiting.extend(slots.iter().map(|&slot| (mailbox.clone(), slot)));
        self.start(jobs);
    }

    /// Has a thread look whether clusters can be given away.
    pub fn look_after(self: &Arc<Self>) {
        self.start(locked(&self.jobs));
    }

    fn start(self: &Arc<Self>, mut jobs: MutexGuard<'_, Jobs>) {
        if !std::mem::replace(&mut jobs.handed_over, true) {
            drop(jobs);
            if let Err(error) = workers::hand_over(self.clone()) {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                let mut jobs = locked(&self.jobs);
                jobs.handed_over = false;
                for (mailbox, slot) in jobs.waiting.drain(..) {
                    mailbox.answer(slot, Answer::Failed(errno));
                }
            }
        }
    }

    /// Does what there is to do, on a thread that may block.
    pub fn work(self: &Arc<Self>) {
        let mut batch = VecDeque::new();
        loop {
            let mut metadata = locked(&self.metadata);
            let mut jobs = locked(&self.jobs);
            std::mem::swap(&mut batch, &mut jobs.waiting);
            if batch.is_empty() {
                drop(jobs);
                // Nobody has asked for it; what does not work now is tried again by a flush.
                let _ = self.contained(|| metadata.give_away(self));
                drop(metadata);
                let mut jobs = locked(&self.jobs);
                if jobs.waiting.is_empty() {
                    jobs.handed_over = false;
                    return;
                }
                continue;
            }
            drop(jobs);
            self.counters.handed_over.fetch_add(batch.len(), Ordering::Relaxed);
            // What a flush covers has completed; what comes with it may go first and be covered too.
            let mut flushes = Vec::new();
            for (mailbox, slot) in batch.drain(..) {
                if mailbox.job(slot).operation == crate::Operation::Flush {
                    flushes.push((mailbox, slot));
                    continue;
                }
                let answer = self.contained(|| {
                    // SAFETY: the request is pending until this is answered, and its submitter keeps the segments.
                    unsafe { metadata.carry_out(self, &mut mailbox.job(slot)) }
                });
                mailbox.answer(slot, answer.unwrap_or_else(Answer::Failed));
            }
            if !flushes.is_empty() {
                let result = self.contained(|| metadata.flush(self));
                for (mailbox, slot) in flushes {
                    mailbox.answer(
                        slot,
                        match result {
                            Ok(()) => Answer::GoOn(super::mapping::Mapping::UNKNOWN),
                            Err(errno) => Answer::Failed(errno),
                        },
                    );
                }
            }
        }
    }

    /// Runs something that handles an image's metadata. A panic in there is a bug, and ends the writing: nobody knows how
    /// far it got.
    fn contained<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Result<T, i32> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.look_at_failed_file();
                Err(self.errno_of(&error))
            }
            Err(_) => {
                self.fail(libc::EIO, &"a panic, which is a bug");
                Err(libc::EIO)
            }
        }
    }

    fn errno_of(&self, error: &io::Error) -> i32 {
        error.raw_os_error().unwrap_or_else(|| {
            let path = self.files[0].path().display();
            tracing::error!(%path, %error, "a request failed");
            libc::EIO
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.info.read_only || self.writable().is_err() {
            return;
        }
        let mut metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = catch_unwind(AssertUnwindSafe(|| metadata.close(self)));
        if let Ok(Err(error)) = closed {
            tracing::error!(path = %self.files[0].path().display(), %error, "closing the image failed");
        }
    }
}

impl Disk for Qcow2Disk {
    fn info(&self) -> DiskInfo {
        self.shared.info.clone()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(Qcow2Queue::open(User::new(&self.shared), depth)?))
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.shared.counters();
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let metadata = locked(&self.shared.metadata);
        vec![
            ("requests beside the queues", count(&counters.handed_over)),
            ("clusters allocated", count(&counters.allocated)),
            ("clusters copied", count(&counters.copied)),
            ("clusters given away", count(&counters.given_away)),
            ("metadata flushes", count(&counters.flushes)),
            ("metadata pages written", metadata.pages_written()),
            ("mapping table bytes", self.shared.table.bytes()),
            ("mapping pages replaced", self.shared.table.replaced()),
            ("metadata bytes in memory", metadata.bytes_in_memory()),
        ]
    }

    fn flush(&self) -> io::Result<()> {
        let shared = &self.shared;
        let mut metadata = locked(&shared.metadata);
        shared.contained(|| metadata.flush(shared)).map_err(io::Error::from_raw_os_error)
    }
}
