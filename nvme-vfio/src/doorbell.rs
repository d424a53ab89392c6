//! Ringing a doorbell: mapped or trapped, with or without a shadow.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::shadow_doorbell::ShadowDoorbell;
use crate::transport::{DOORBELLS_OFFSET, Transport};

/// How one queue's doorbell is written.
pub(crate) struct Doorbell {
    register: Register,
    shadow: Option<ShadowDoorbell>,
    /// Rung whatever EventIdx says.
    always: bool,
}

enum Register {
    /// The register itself, or memory that the controller looks at. Valid as long as the transport.
    Mapped(NonNull<u32>, #[expect(dead_code, reason = "keeps the mapping")] Arc<dyn Transport>),
    /// Its offset in BAR0.
    Trapped(u64, Arc<dyn Transport>),
}

// SAFETY: the register is reached by volatile writes of one word, and a `Doorbell` has one owner.
unsafe impl Send for Doorbell {}

impl Doorbell {
    pub(crate) fn new(
        transport: &Arc<dyn Transport>,
        doorbell: nvme_spec::doorbell::Doorbell,
        dstrd: u8,
        shadow: Option<ShadowDoorbell>,
    ) -> Self {
        let offset = doorbell.offset(dstrd);
        let from_base = offset - DOORBELLS_OFFSET;
        let mapped = transport.doorbells().filter(|memory| from_base + 4 <= memory.len);
        let register = match mapped {
            Some(memory) => {
                // SAFETY: the word at this offset is inside the doorbell memory, which is at least 4 bytes longer.
                let register = unsafe { memory.base.byte_add(from_base as usize) };
                Register::Mapped(register, transport.clone())
            }
            None => Register::Trapped(offset, transport.clone()),
        };
        Self { register, shadow, always: false }
    }

    /// The same, which is rung whatever the controller asked for.
    pub(crate) fn always_rung(self) -> Self {
        Self { always: true, ..self }
    }

    /// Tells the controller that a queue index has gone from `old` to `new`, which make what was written before
    /// into the queue visible to it.
    #[inline]
    pub(crate) fn write(&self, old: u16, new: u16) -> io::Result<()> {
        if let Some(shadow) = &self.shadow
            && !shadow.write(old, new)
            && !self.always
        {
            return Ok(());
        }
        match &self.register {
            Register::Mapped(register, _) => {
                before_doorbell();
                // SAFETY: the pointer was checked to be inside the doorbells when this was made, and the transport,
                // held here, keeps them mapped.
                unsafe { register.write_volatile(u32::from(new).to_le()) };
                Ok(())
            }
            Register::Trapped(offset, transport) => {
                before_doorbell();
                transport.ring(*offset, new.into())
            }
        }
    }
}

/// Orders writes to queue memory before the write to the doorbell, as the controller sees them.
#[inline]
fn before_doorbell() {
    // For a controller on another CPU core. x86 keeps stores in order, also those to a device's registers.
    fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands; a device is outside the inner shareable domain of the fence above.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
}
