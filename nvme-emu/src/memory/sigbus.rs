//! SIGBUS: a client that truncates the file behind its memory costs itself its controller, not the process.
//!
//! Each mapping has an entry in a process-wide table. When a touch of guest memory raises SIGBUS, the handler finds
//! the mapping, puts zero pages over it and marks its controller failed; the interrupted copy then goes on as if the
//! guest had written zeroes. A SIGBUS anywhere else takes the way that it took before.

use super::map::MAX_REGIONS;
use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

/// Set when memory of a controller turned out to have nothing behind it.
#[derive(Debug, Default)]
pub struct Fault(AtomicBool);

impl Fault {
    /// Whether memory was found missing since the last [`Fault::clear`].
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets it: all the memory concerned has been unmapped.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Mappings that can be guarded at a time: 32 controllers with as many regions as one may have, or many more with the
/// usual twenty.
const ENTRIES: usize = 32 * MAX_REGIONS;

/// An entry is taken by setting `len` from 0 to `CLAIMED`, and read by the handler only while `len` is a length.
struct Entry {
    base: AtomicUsize,
    len: AtomicUsize,
    fault: AtomicPtr<Fault>,
}

const CLAIMED: usize = usize::MAX;

static TABLE: [Entry; ENTRIES] = [const {
    Entry { base: AtomicUsize::new(0), len: AtomicUsize::new(0), fault: AtomicPtr::new(ptr::null_mut()) }
}; ENTRIES];
/// Entries from here on were never used: where the handler's search ends.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Where the next free entry is likely to be.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Guards an address range for as long as it lives.
#[derive(Debug)]
pub struct Guard {
    index: usize,
    // Keeps the pointer in the table valid.
    _fault: Arc<Fault>,
}

impl Guard {
    /// Guards `len` bytes from `base`.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when more mappings are guarded than the table holds.
    pub fn new(base: usize, len: usize, fault: Arc<Fault>) -> io::Result<Self> {
        install();
        let start = NEXT.load(Ordering::Relaxed);
        for index in (start..ENTRIES).chain(0..start) {
            let entry = &TABLE[index];
            if entry.len.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                entry.base.store(base, Ordering::Relaxed);
                entry.fault.store(Arc::as_ptr(&fault).cast_mut(), Ordering::Relaxed);
                entry.len.store(len, Ordering::Release);
                USED.fetch_max(index + 1, Ordering::Release);
                NEXT.store((index + 1) % ENTRIES, Ordering::Relaxed);
                return Ok(Self { index, _fault: fault });
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.index].len.store(0, Ordering::Release);
    }
}

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only does what is allowed in one (atomics, mmap, sigaction, raise); `action` is
        // fully initialised, and PREVIOUS is written here only, by `sigaction` itself.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, (*PREVIOUS.0.get()).as_mut_ptr());
        }
    });
}

extern "C" fn on_sigbus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    if !replace_with_zeroes(address) {
        // SAFETY: PREVIOUS was filled before this handler could run. Returning then repeats the access under the
        // previous disposition, which for the default one ends the process as it should.
        unsafe { libc::sigaction(libc::SIGBUS, (*PREVIOUS.0.get()).as_ptr(), ptr::null_mut()) };
    }
}

fn replace_with_zeroes(address: usize) -> bool {
    for entry in &TABLE[..USED.load(Ordering::Acquire).min(ENTRIES)] {
        let len = entry.len.load(Ordering::Acquire);
        let base = entry.base.load(Ordering::Relaxed);
        if len == 0 || len == CLAIMED || address.wrapping_sub(base) >= len {
            continue;
        }
        // SAFETY: whoever made the entry mapped exactly this range and removes the entry before unmapping it; the
        // faulting access is in it, so the mapping is alive. Zero pages over all of it keep every pointer into it
        // valid. mmap is a plain system call.
        let mapped = unsafe {
            libc::mmap(
                base as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        let fault = entry.fault.load(Ordering::Relaxed);
        // SAFETY: the guard that made this entry holds an `Arc` of it and removes the entry before letting go.
        unsafe { (*fault).0.store(true, Ordering::Relaxed) };
        return true;
    }
    false
}
