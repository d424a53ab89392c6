//! The PCI function: one handle, whatever the front door.

use std::os::fd::{BorrowedFd, OwnedFd};

/// Interrupts as VFIO indexes them (`VFIO_PCI_INTX_IRQ_INDEX`, `VFIO_PCI_MSIX_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// The pin. One vector.
    Intx,
    /// MSI-X: as many as the table has.
    Msix,
}

/// Memory of the client, to be reached at an I/O virtual address.
#[derive(Debug)]
pub struct DmaMapping {
    /// First I/O virtual address.
    pub iova: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether the controller may read it.
    pub read: bool,
    /// Whether the controller may write it.
    pub write: bool,
    /// The shared memory behind it and the offset of the first byte there. None: the client keeps that memory to
    /// itself (ROMs, memory that was not started as shared), and commands that point into it fail.
    pub backing: Option<(OwnedFd, u64)>,
}

/// What may take time, and is therefore done by the control thread.
#[derive(Debug)]
pub enum Call {
    /// Adds memory. Fails with `EEXIST` where it overlaps other memory, `EINVAL` on arithmetic overflow or a
    /// length of 0, or with what `mmap` said.
    MapDma(DmaMapping),
    /// Takes away all memory mapped inside this range; mappings are never cut in two (`EINVAL`). Answered when
    /// nothing touches that memory any more. `ENOENT` if there is none.
    UnmapDma {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Takes all memory away.
    UnmapAllDma,
    /// Connects vectors to eventfds; `None` disconnects one.
    SetInterrupts {
        /// Which kind.
        kind: InterruptKind,
        /// First vector.
        start: u32,
        /// One for each vector from `start`.
        eventfds: Vec<Option<OwnedFd>>,
    },
    /// Disconnects all vectors of a kind.
    DisableInterrupts(InterruptKind),
    /// INTx: masks (true) or unmasks the pin, as `VFIO_IRQ_SET_ACTION_MASK` and `UNMASK` do. It masks itself each
    /// time that it fires.
    MaskIntx(bool),
    /// Fires a vector, for clients that test their wiring (`VFIO_IRQ_SET_DATA_NONE` with `ACTION_TRIGGER`).
    TriggerInterrupt {
        /// Which kind.
        kind: InterruptKind,
        /// First vector.
        start: u32,
        /// How many.
        count: u32,
    },
    /// Resets the function (function-level reset). Answered when the reset has begun; CSTS.RDY tells when it is
    /// through.
    Reset,
    /// The client has gone: as a reset, then interrupts and memory go too. Answered when nothing touches its
    /// memory any more.
    Disconnect,
}

/// How a [`Call`] is answered: called once, from any thread, with the errno on failure. Must not block.
pub type Answer = Box<dyn FnOnce(Result<(), i32>) + Send>;

/// A handle to one emulated controller. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct PciFunction {}

/// The doorbells as memory that a client may map into itself.
pub struct DoorbellPage<'a> {
    /// The memory, as a file laid out as BAR0 is: the doorbells begin at offset `bar_offset` of the file too, since
    /// clients map an area at its offset in the region. Sealed against shrinking (`F_SEAL_SHRINK`): a client
    /// could cut it short under the reactors otherwise.
    pub fd: BorrowedFd<'a>,
    /// Where the doorbells begin in BAR0 (1000h).
    pub bar_offset: u64,
    /// Length in bytes, whole pages.
    pub len: u64,
}

impl PciFunction {
    /// Reads configuration space. Bytes past its end read as FFh.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
        todo!()
    }

    /// Writes configuration space; read-only bits stay. A function-level reset asked for here starts here.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
        todo!()
    }

    /// Size of BAR0 in bytes; the only BAR (64-bit, memory).
    pub fn bar0_len(&self) -> u64 {
        todo!()
    }

    /// Reads BAR0. Bytes that belong to no register read as zero.
    pub fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
        todo!()
    }

    /// Writes BAR0: registers in 4 or 8 bytes, doorbells in 4. Never blocks.
    pub fn write_bar0(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
        todo!()
    }

    /// The doorbells as mappable memory, if the reactors keep looking at them (`--poll always`).
    pub fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        todo!()
    }

    /// How many vectors there are of a kind.
    pub fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        let _ = kind;
        todo!()
    }

    /// Hands over to the control thread what may take time. `answer` is called from there, or at once.
    pub fn call(&self, call: Call, answer: Answer) {
        let _ = (call, answer);
        todo!()
    }
}
