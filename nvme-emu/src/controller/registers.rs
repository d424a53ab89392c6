//! Controller properties (NVM Express Base Specification 2.0, 3.1.3): read and written on the spot, from any thread.

use super::interrupts::Pin;
use nvme_spec::registers::{
    self as offset, AdminQueueAttributes, Cap, ControllerConfiguration, ControllerReadyTimeouts,
    ControllerStatus, NSSR_RESET, ShutdownStatus, Version,
};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Entries of the largest queue.
pub(crate) const MAX_QUEUE_ENTRIES: u32 = 4096;
/// CAP.TO, in units of 500 ms: a reset ends when the slowest request of the disk does.
const READY_TIMEOUT: u8 = 60;

/// What has to follow a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// CC was written.
    Configured,
    /// NSSR was written with its signature.
    SubsystemReset,
    /// The pin may have to fire.
    InterruptMask,
}

pub(crate) struct Registers {
    cap: Cap,
    cc: AtomicU32,
    csts: AtomicU32,
    aqa: AtomicU32,
    asq: AtomicU64,
    acq: AtomicU64,
    /// Writes that cleared CC.EN: a reset is not missed even when CC.EN is set again at once.
    disables: AtomicU32,
    /// CSTS.NSSRO.
    subsystem_reset: AtomicBool,
}

impl Registers {
    pub(crate) fn new() -> Self {
        let cap = Cap::new()
            .with_maximum_queue_entries(MAX_QUEUE_ENTRIES)
            .with_cqr(true)
            .with_to(READY_TIMEOUT)
            .with_nssrs(true)
            .with_css(Cap::CSS_NVM | Cap::CSS_IO_COMMAND_SETS)
            .with_mpsmin(0)
            .with_mpsmax(4)
            .with_crwms(true);
        Self {
            cap,
            cc: AtomicU32::new(0),
            csts: AtomicU32::new(0),
            aqa: AtomicU32::new(0),
            asq: AtomicU64::new(0),
            acq: AtomicU64::new(0),
            disables: AtomicU32::new(0),
            subsystem_reset: AtomicBool::new(false),
        }
    }

    pub(crate) fn cap(&self) -> Cap {
        self.cap
    }

    pub(crate) fn cc(&self) -> ControllerConfiguration {
        ControllerConfiguration::from_bits(self.cc.load(Ordering::Acquire))
    }

    pub(crate) fn disables(&self) -> u32 {
        self.disables.load(Ordering::Acquire)
    }

    pub(crate) fn aqa(&self) -> AdminQueueAttributes {
        AdminQueueAttributes::from_bits(self.aqa.load(Ordering::Acquire))
    }

    pub(crate) fn asq(&self) -> u64 {
        self.asq.load(Ordering::Acquire)
    }

    pub(crate) fn acq(&self) -> u64 {
        self.acq.load(Ordering::Acquire)
    }

    pub(crate) fn csts(&self) -> ControllerStatus {
        ControllerStatus::from_bits(self.csts.load(Ordering::Acquire))
            .with_nssro(self.subsystem_reset.load(Ordering::Acquire))
    }

    fn change_csts(&self, change: impl Fn(ControllerStatus) -> ControllerStatus) {
        // The control thread is its only writer.
        let csts = ControllerStatus::from_bits(self.csts.load(Ordering::Relaxed));
        self.csts.store(change(csts).into_bits(), Ordering::Release);
    }

    pub(crate) fn set_ready(&self) {
        self.change_csts(|csts| csts.with_rdy(true));
    }

    /// Controller Fatal Status: only a reset helps.
    pub(crate) fn set_fatal(&self) {
        self.change_csts(|csts| csts.with_cfs(true));
    }

    pub(crate) fn set_shutdown(&self, status: ShutdownStatus) {
        self.change_csts(|csts| csts.with_shst(status));
    }

    pub(crate) fn set_subsystem_reset(&self) {
        self.subsystem_reset.store(true, Ordering::Release);
    }

    /// A controller level reset is through.
    pub(crate) fn reset_status(&self) {
        self.csts.store(0, Ordering::Release);
    }

    /// A function level reset, or one of the subsystem, begins: what a controller reset leaves alone goes too. CSTS
    /// follows when nothing is in flight.
    pub(crate) fn reset_function(&self) {
        self.cc.store(0, Ordering::Release);
        self.disables.fetch_add(1, Ordering::AcqRel);
        self.aqa.store(0, Ordering::Release);
        self.asq.store(0, Ordering::Release);
        self.acq.store(0, Ordering::Release);
        self.subsystem_reset.store(false, Ordering::Release);
    }

    /// Reads the dword at this offset.
    pub(crate) fn read(&self, at: u64, pin: &Pin) -> u32 {
        let low = |value: u64| value as u32;
        let high = |value: u64| (value >> 32) as u32;
        const CAP_HIGH: u64 = offset::CAP + 4;
        const ASQ_HIGH: u64 = offset::ASQ + 4;
        const ACQ_HIGH: u64 = offset::ACQ + 4;
        match at {
            offset::CAP => low(self.cap.into_bits()),
            CAP_HIGH => high(self.cap.into_bits()),
            offset::VS => Version::V2_0.into_bits(),
            offset::INTMS | offset::INTMC => pin.interrupt_mask.load(Ordering::Acquire),
            offset::CC => self.cc.load(Ordering::Acquire),
            offset::CSTS => self.csts().into_bits(),
            offset::AQA => self.aqa.load(Ordering::Acquire),
            offset::ASQ => low(self.asq()),
            ASQ_HIGH => high(self.asq()),
            offset::ACQ => low(self.acq()),
            ACQ_HIGH => high(self.acq()),
            offset::CRTO => ControllerReadyTimeouts::new().with_crwmt(u16::from(READY_TIMEOUT)).into_bits(),
            _ => 0,
        }
    }

    /// Writes the dword at this offset; reserved and read-only ones are left alone.
    pub(crate) fn write(&self, at: u64, value: u32, pin: &Pin) -> Effect {
        const ASQ_HIGH: u64 = offset::ASQ + 4;
        const ACQ_HIGH: u64 = offset::ACQ + 4;
        match at {
            offset::INTMS => {
                pin.interrupt_mask.fetch_or(value, Ordering::AcqRel);
                return Effect::InterruptMask;
            }
            offset::INTMC => {
                pin.interrupt_mask.fetch_and(!value, Ordering::AcqRel);
                return Effect::InterruptMask;
            }
            offset::CC => {
                let old = ControllerConfiguration::from_bits(self.cc.swap(value, Ordering::AcqRel));
                if old.en() && !ControllerConfiguration::from_bits(value).en() {
                    self.disables.fetch_add(1, Ordering::AcqRel);
                }
                return Effect::Configured;
            }
            offset::CSTS if ControllerStatus::from_bits(value).nssro() => {
                self.subsystem_reset.store(false, Ordering::Release);
            }
            offset::NSSR if value == NSSR_RESET => return Effect::SubsystemReset,
            offset::AQA => self.aqa.store(value & 0x0fff_0fff, Ordering::Release),
            offset::ASQ => set_low(&self.asq, value & !0xfff),
            ASQ_HIGH => set_high(&self.asq, value),
            offset::ACQ => set_low(&self.acq, value & !0xfff),
            ACQ_HIGH => set_high(&self.acq, value),
            _ => {}
        }
        Effect::Nothing
    }
}

fn set_low(register: &AtomicU64, value: u32) {
    let old = register.load(Ordering::Relaxed);
    register.store(old & !0xffff_ffff | u64::from(value), Ordering::Release);
}

fn set_high(register: &AtomicU64, value: u32) {
    let old = register.load(Ordering::Relaxed);
    register.store(old & 0xffff_ffff | u64::from(value) << 32, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_and_reserved_registers_do_not_change() {
        let (registers, pin) = (Registers::new(), Pin::default());
        let before: Vec<_> = (0..0x1000).step_by(4).map(|at| registers.read(at, &pin)).collect();
        for at in [offset::CAP, offset::CAP + 4, offset::VS, offset::CMBLOC, offset::CRTO, 0x800] {
            assert_eq!(registers.write(at, u32::MAX, &pin), Effect::Nothing);
        }
        let after: Vec<_> = (0..0x1000).step_by(4).map(|at| registers.read(at, &pin)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn queue_addresses_are_written_in_halves_and_page_aligned() {
        let (registers, pin) = (Registers::new(), Pin::default());
        registers.write(offset::ASQ, 0x1234_5fff, &pin);
        registers.write(offset::ASQ + 4, 0x9, &pin);
        assert_eq!(registers.asq(), 0x9_1234_5000);
    }

    #[test]
    fn a_reset_is_seen_even_if_enable_follows_at_once() {
        let (registers, pin) = (Registers::new(), Pin::default());
        registers.write(offset::CC, 1, &pin);
        let before = registers.disables();
        registers.write(offset::CC, 0, &pin);
        registers.write(offset::CC, 1, &pin);
        assert_eq!((registers.disables(), registers.cc().en()), (before + 1, true));
    }

    #[test]
    fn nssro_is_cleared_by_writing_one() {
        let (registers, pin) = (Registers::new(), Pin::default());
        registers.set_subsystem_reset();
        registers.write(offset::CSTS, 0, &pin);
        assert!(registers.csts().nssro());
        registers.write(offset::CSTS, registers.csts().into_bits(), &pin);
        assert!(!registers.csts().nssro());
    }

    #[test]
    fn interrupt_masks_are_set_and_cleared_bit_by_bit() {
        let (registers, pin) = (Registers::new(), Pin::default());
        registers.write(offset::INTMS, 0b101, &pin);
        registers.write(offset::INTMC, 0b100, &pin);
        assert_eq!(registers.read(offset::INTMS, &pin), 1);
    }
}
