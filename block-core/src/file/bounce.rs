//! Aligned memory of our own, for what `O_DIRECT` does not take from the caller's.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// An aligned buffer. Each thread that may bounce has one, so the memory that bouncing takes is bounded by the number
/// of threads, and a request larger than the buffer goes through it in several steps.
pub(super) struct BounceBuffer {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    /// Large enough that the copies and not the calls decide what bouncing costs.
    pub const USUAL_LEN: usize = 256 << 10;

    /// A buffer of `len` bytes, aligned to `alignment`, a power of two; `len` is rounded up to it.
    pub fn new(len: usize, alignment: usize) -> Self {
        let len = len.max(1).next_multiple_of(alignment);
        let Ok(layout) = Layout::from_size_align(len, alignment) else {
            // A length or an alignment that no allocator could serve either.
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout }
    }

    /// Its first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length, initialised (zeroed) at birth, and written only through `&mut self` or
        // by calls that its owner makes, which holds no such slice meanwhile.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
