//! What a queue asks of an io_uring ring, and the kernel's.
//!
//! Each ring is set up for one thread (`SINGLE_ISSUER`) whose completions are worked off only when that thread is in the
//! kernel anyway (`COOP_TASKRUN`), where the kernel has that.
//!
//! Fixed buffers (`READ_FIXED`) are not used: they pin guest memory, and go on naming the old pages after a guest's
//! balloon has given those back and got others, so that data would end up where nobody looks.

use super::medium::Medium;
use super::open_file::OpenFile;
use super::transfer::MAX_BYTES;
use crate::request::Segment;
use io_uring::{EnterFlags, IoUring, Probe, opcode, types};
use rustix::fd::{AsRawFd, BorrowedFd};
use std::io;
use std::mem::MaybeUninit;

/// Completions taken off a ring at a time.
pub(super) const REAP: usize = 64;

/// The file, as registered with each ring.
const FILE: types::Fixed = types::Fixed(0);

/// What a ring is asked to do.
#[derive(Clone, Copy)]
pub(super) enum Entry<'a> {
    /// Fills the segments from the file.
    Read { segments: &'a [Segment], offset: u64 },
    /// Writes the segments to the file, with `RWF_DSYNC` if so asked.
    Write { segments: &'a [Segment], offset: u64, dsync: bool },
    /// `fdatasync`.
    Sync,
    /// Reads the count of an eventfd.
    Event { event: BorrowedFd<'a>, count: *mut u64 },
}

/// What has become of an entry: its user data, and bytes moved or a negative errno.
#[derive(Clone, Copy)]
pub(super) struct Completed {
    pub user_data: u64,
    pub result: i32,
}

/// A ring of entries on one file.
pub(super) trait Ring: Sized {
    /// A ring with room for `entries` on a file.
    fn open(file: &OpenFile, entries: u32) -> io::Result<Self>;

    /// Puts an entry into the ring; `false` if that is full.
    ///
    /// # Safety
    ///
    /// What the entry points to, the list of segments included, stays valid until it has completed.
    unsafe fn push(&mut self, entry: Entry<'_>, user_data: u64) -> bool;

    /// Hands `submit` entries over, waits for `wait` completions and works off those that the kernel has deferred. How
    /// many entries were taken.
    fn enter(&mut self, submit: u32, wait: u32) -> io::Result<u32>;

    /// Takes completions, and says how many.
    fn reap(&mut self, into: &mut [MaybeUninit<Completed>; REAP]) -> usize;

    /// Whether there are completions that only [`Ring::enter`] brings into the ring.
    fn has_deferred(&mut self) -> bool;

    /// Readable while there may be completions.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Lets go of the file, which is to be closed when its disk is.
    fn release_file(&mut self);
}

/// The kernel's.
pub(super) struct KernelRing(IoUring);

impl Ring for KernelRing {
    fn open(file: &OpenFile, entries: u32) -> io::Result<Self> {
        let ring = build(entries)?;
        match &file.medium {
            Medium::Host(fd) => ring.submitter().register_files(&[fd.as_raw_fd()])?,
            #[cfg(feature = "contract")]
            Medium::Simulated(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(Self(ring))
    }

    #[inline]
    unsafe fn push(&mut self, entry: Entry<'_>, user_data: u64) -> bool {
        let entry = match entry {
            Entry::Read { segments: [one], offset } => {
                opcode::Read::new(FILE, one.base, one.len.min(MAX_BYTES) as u32).offset(offset).build()
            }
            Entry::Read { segments, offset } => {
                opcode::Readv::new(FILE, segments.as_ptr().cast(), segments.len() as u32)
                    .offset(offset)
                    .build()
            }
            Entry::Write { segments, offset, dsync } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                match segments {
                    [one] => opcode::Write::new(FILE, one.base, one.len.min(MAX_BYTES) as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    many => opcode::Writev::new(FILE, many.as_ptr().cast(), many.len() as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Entry::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Entry::Event { event, count } => {
                opcode::Read::new(types::Fd(event.as_raw_fd()), count.cast(), 8).build()
            }
        };
        // SAFETY: the caller keeps what it points to.
        unsafe { self.0.submission().push(&entry.user_data(user_data)) }.is_ok()
    }

    #[inline]
    fn enter(&mut self, submit: u32, wait: u32) -> io::Result<u32> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no signal mask is passed, and the entries are valid: see `push`.
        unsafe { self.0.submitter().enter::<libc::sigset_t>(submit, wait, flags, None) }.map(|n| n as u32)
    }

    #[inline]
    fn reap(&mut self, into: &mut [MaybeUninit<Completed>; REAP]) -> usize {
        let mut n = 0;
        // In this order: an entry is only taken when there is a place for it.
        for (place, entry) in into.iter_mut().zip(self.0.completion()) {
            place.write(Completed { user_data: entry.user_data(), result: entry.result() });
            n += 1;
        }
        n
    }

    #[inline]
    fn has_deferred(&mut self) -> bool {
        self.0.submission().taskrun()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring, and so as `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    fn release_file(&mut self) {
        // The kernel takes a ring apart some time after it was closed.
        let _ = self.0.submitter().unregister_files();
    }
}

/// Whether this process may use io_uring, and for all that is needed of it.
///
/// # Errors
///
/// What the kernel says: `ENOSYS`, `EPERM` (a sandbox, `kernel.io_uring_disabled`), `ENOMEM` (locked memory).
pub(super) fn probe() -> io::Result<()> {
    let ring = build(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A ring with the best set-up that the kernel has.
///
/// Not `DEFER_TASKRUN`: on such a ring nobody who sleeps in `poll` or `epoll` on its
/// descriptor is woken when a completion comes in as deferred work (seen on Linux 6.18: only the posting of an entry
/// wakes, and that is what is deferred). Cooperative task work interrupts the sleep instead.
fn build(entries: u32) -> io::Result<IoUring> {
    // Linux 6.0; SINGLE_ISSUER is what that adds to 5.19.
    let newest = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(entries);
    match newest {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        other => return other,
    }
    let newer =
        IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all().build(entries);
    match newer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}
