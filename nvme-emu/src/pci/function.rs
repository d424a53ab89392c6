//! The PCI function: one handle, whatever the front door.

use super::config_space::{ConfigSpace, Effects};
use crate::controller::control::Event;
use crate::controller::registers::Effect;
use crate::controller::shared::{Finding, Shared};
use crate::reactor::{self, handle::ReactorHandle};
use crossbeam::channel::SendError;
use nvme_spec::registers::DOORBELL_BASE;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

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
pub struct PciFunction {
    shared: Arc<Shared>,
}

/// Size of BAR0: registers, doorbells, MSI-X table, MSI-X pending bits, a page each.
pub(crate) const BAR0_LEN: u64 = 0x4000;
const DOORBELLS: u64 = DOORBELL_BASE;
pub(crate) const MSIX_TABLE: u64 = 0x2000;
pub(crate) const MSIX_PBA: u64 = 0x3000;

/// The doorbells as memory that a client may map into itself.
pub struct DoorbellPage<'a> {
    /// The memory, as a file laid out as BAR0 is: the doorbells begin at offset `bar_offset` of the file too, since
    /// clients map an area of a region at its own offset.
    pub fd: BorrowedFd<'a>,
    /// Where the doorbells begin in BAR0 (1000h).
    pub bar_offset: u64,
    /// Length in bytes, whole pages.
    pub len: u64,
}

impl PciFunction {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The reactor that runs its front door.
    pub(crate) fn home(&self) -> usize {
        self.shared.home
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.shared.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads configuration space. Bytes past its end read as FFh.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config();
        config.set_interrupt_status(self.shared.pin.is_asserted());
        config.read(offset, data);
    }

    /// Writes configuration space; read-only bits stay. A function-level reset asked for here starts here.
    ///
    /// Bus Master Enable is storage only: whether the guest's memory can be reached is the client's to say, by mapping
    /// and unmapping it.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        let effects = config.write(offset, data);
        self.shared.pin.disabled.store(config.intx_disabled(), Ordering::Release);
        drop(config);
        if effects.contains(Effects::FUNCTION_LEVEL_RESET) {
            self.shared.found(Finding::FunctionReset);
        }
        if effects.contains(Effects::INTX) {
            self.recheck_pin();
        }
    }

    /// Size of BAR0 in bytes; the only BAR (64-bit, memory).
    pub fn bar0_len(&self) -> u64 {
        BAR0_LEN
    }

    /// Reads BAR0. Bytes that belong to no register read as zero.
    pub fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i as u64);
            let dword = self.read_dword(at & !3).to_le_bytes();
            *byte = dword[(at & 3) as usize];
        }
    }

    fn read_dword(&self, at: u64) -> u32 {
        match at {
            0..DOORBELLS => {
                let value = self.shared.registers.read(at, &self.shared.pin);
                self.shared.faults.as_ref().map_or(value, |faults| faults.on_read(at, value))
            }
            MSIX_TABLE..MSIX_PBA => {
                let word = self.shared.msix_table.get(((at - MSIX_TABLE) / 4) as usize);
                word.map_or(0, |word| word.load(Ordering::Relaxed))
            }
            // Doorbells cannot be read, and nothing is ever pending in the table's place.
            _ => 0,
        }
    }

    /// Writes BAR0: registers in 4 or 8 bytes, doorbells in 4, anything else is ignored. Never blocks.
    pub fn write_bar0(&self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        let (dwords, _) = data.as_chunks::<4>();
        for (i, dword) in dwords.iter().enumerate() {
            self.write_dword(offset.saturating_add(i as u64 * 4), u32::from_le_bytes(*dword));
        }
    }

    fn write_dword(&self, at: u64, value: u32) {
        match at {
            DOORBELLS..MSIX_TABLE => {
                self.shared.counters.doorbell_messages.add_shared(1);
                self.shared.ring(((at - DOORBELLS) / 4) as usize, value);
            }
            0..DOORBELLS if self.shared.faults.as_ref().is_some_and(|faults| !faults.on_write(at, value)) => {
            }
            0..DOORBELLS => match self.shared.registers.write(at, value, &self.shared.pin) {
                Effect::Nothing => {}
                Effect::Configured => self.shared.found(Finding::Configured),
                Effect::SubsystemReset => self.shared.found(Finding::SubsystemReset),
                Effect::InterruptMask => self.recheck_pin(),
            },
            MSIX_TABLE..MSIX_PBA => {
                if let Some(word) = self.shared.msix_table.get(((at - MSIX_TABLE) / 4) as usize) {
                    word.store(value, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }

    fn recheck_pin(&self) {
        self.shared.pin.recheck.store(true, Ordering::Release);
        self.shared.reactors.iter().for_each(ReactorHandle::wake);
    }

    /// The doorbells as mappable memory, if the reactors keep looking at them (`--poll always`).
    pub fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        self.shared.mapped_doorbells.then(|| DoorbellPage {
            fd: self.shared.doorbells.fd(),
            bar_offset: DOORBELLS,
            len: reactor::doorbell_page::DoorbellPage::LEN as u64,
        })
    }

    /// How many vectors there are of a kind.
    pub fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        match kind {
            InterruptKind::Intx => 1,
            InterruptKind::Msix => u32::from(self.shared.io_queues) + 1,
        }
    }

    /// Hands over to the control thread what may take time. `answer` is called from there, or at once.
    pub fn call(&self, call: Call, answer: Answer) {
        if let Err(SendError(Event::Call(_, _, answer))) =
            self.shared.control.send(Event::Call(self.shared.index, call, answer))
        {
            // The engine has been shut down.
            answer(Err(libc::ENODEV));
        }
    }
}
