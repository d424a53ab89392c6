//! PCI configuration space: 4096 bytes, most of them read-only.
//!
//! ```text
//! 000h type 0 header    class 01 08 02, BAR0 64-bit memory, interrupt pin A
//! 040h power management D0 and D3hot
//! 050h MSI-X            table and PBA inside BAR0
//! 060h PCI Express      endpoint, function-level reset
//! 100h device serial number (extended capability)
//! ```
//!
//! Each byte has a mask of the bits that software may write; everything else follows from that. What a write
//! means for the controller is said in the [`Effects`] that it returns; nothing happens in here.
//!
//! Sources: PCI Express Base Specification 5.0, chapter 7; NVMe over PCIe Transport Specification 1.0, section 3.8.

use bitflags::bitflags;

/// Size of the configuration space in bytes (PCI Express).
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// Vendor ID, and subsystem vendor ID: "RP". Nobody has registered it, so neither the PCI ID database nor any
/// driver's quirk table knows it, and drivers bind by the class code. QEMU's 1B36:0010 would not do: Linux ignores
/// the namespace identifiers of a controller with that ID.
pub const VENDOR_ID: u16 = 0x5250;

/// Device ID, and subsystem ID: the first device of that vendor.
pub const DEVICE_ID: u16 = 0x0001;

/// Where the capabilities are.
const POWER_MANAGEMENT: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
const SERIAL_NUMBER: usize = 0x100;

/// Registers of the type 0 header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const PMCSR: usize = POWER_MANAGEMENT + 4;
const PMCSR_STATE: u16 = 0b11;
const PMCSR_NO_SOFT_RESET: u16 = 1 << 3;

const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const MSIX_ENABLE: u16 = 1 << 15;

const DEVICE_CONTROL: usize = EXPRESS + 0x08;
const DEVICE_CONTROL_PAYLOAD: u16 = 0b111 << 5;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;
const LINK_CONTROL: usize = EXPRESS + 0x10;
/// Active state power management, read completion boundary, common clock, extended synch.
const LINK_CONTROL_WRITABLE: u16 = 0b1100_1011;

bitflags! {
    /// What a write to configuration space has changed, or asked for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Effects: u8 {
        /// A function-level reset was asked for (Device Control bit 15, which reads back as 0). It is for the
        /// caller to do, [`ConfigSpace::reset`] included.
        const FUNCTION_LEVEL_RESET = 1 << 0;
        /// Memory decoding went on or off: [`ConfigSpace::memory_enabled`].
        const MEMORY = 1 << 1;
        /// Bus mastering went on or off: [`ConfigSpace::bus_master_enabled`].
        const BUS_MASTER = 1 << 2;
        /// INTx was enabled or disabled: [`ConfigSpace::intx_disabled`].
        const INTX = 1 << 3;
        /// MSI-X was enabled, disabled, masked or unmasked as a whole: [`ConfigSpace::msix_enabled`],
        /// [`ConfigSpace::msix_masked`].
        const MSIX = 1 << 4;
        /// The function moved between D0 and D3hot: [`ConfigSpace::powered`].
        const POWER = 1 << 5;
        /// BAR0 moved: [`ConfigSpace::bar0`].
        const BAR0 = 1 << 6;
    }
}

/// What differs from function to function. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Size of BAR0: a power of two from 16 on (at most 2 GiB).
    pub bar0_len: u32,
    /// MSI-X vectors, 1 to 2048.
    pub msix_vectors: u16,
    /// The MSI-X table in BAR0: 16 bytes a vector, at a multiple of 8.
    pub msix_table: u32,
    /// The pending bits in BAR0: a bit a vector, in whole 8 bytes, at a multiple of 8.
    pub msix_pba: u32,
    /// Device serial number: an EUI-64, the same whenever this controller is.
    pub serial: u64,
}

/// A [`Layout`] that no BAR could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a size that a BAR can have.
    #[error("a BAR of {0:#x} bytes: it takes a power of two from 16 bytes to 2 GiB")]
    Bar(u32),
    /// Too many or too few vectors.
    #[error("{0} MSI-X vectors: it takes 1 to 2048")]
    Vectors(u16),
    /// The MSI-X table or its pending bits are misaligned, overlap or lie past the end of BAR0.
    #[error("an MSI-X table or PBA that is misaligned, overlaps the other or does not fit into BAR0")]
    Msix,
}

/// The configuration space of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    initial: Box<[u8; CONFIG_SPACE_SIZE]>,
}

impl ConfigSpace {
    /// The state after power-on.
    pub fn new(layout: &Layout) -> Result<Self, LayoutError> {
        layout.check()?;
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SPACE_SIZE]),
            writable: Box::new([0; CONFIG_SPACE_SIZE]),
            initial: Box::new([0; CONFIG_SPACE_SIZE]),
        };
        space.header(layout);
        space.power_management();
        space.msix(layout);
        space.express();
        space.serial_number(layout.serial);
        space.initial = space.bytes.clone();
        Ok(space)
    }

    fn header(&mut self, layout: &Layout) {
        self.set16(0x00, VENDOR_ID);
        self.set16(0x02, DEVICE_ID);
        self.allow16(
            COMMAND,
            COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE,
        );
        self.set16(STATUS, STATUS_CAPABILITIES);
        self.set8(0x08, 1); // revision
        self.set8(0x09, 0x02); // programming interface: NVM Express I/O controller
        self.set8(0x0a, 0x08); // subclass: non-volatile memory
        self.set8(0x0b, 0x01); // class: mass storage
        self.allow8(0x0c, 0xff); // cache line size: kept, means nothing
        self.set32(BAR0, 0b100); // memory, 64 bits wide, not prefetchable
        self.allow32(BAR0, !(layout.bar0_len - 1) & !0xf);
        self.allow32(BAR0 + 4, !0);
        self.set16(0x2c, VENDOR_ID);
        self.set16(0x2e, DEVICE_ID);
        self.set8(0x34, POWER_MANAGEMENT as u8);
        self.allow8(INTERRUPT_LINE, 0xff);
        self.set8(INTERRUPT_LINE + 1, 1); // pin A
    }

    fn power_management(&mut self) {
        self.capability(POWER_MANAGEMENT, 0x01, MSIX);
        self.set16(POWER_MANAGEMENT + 2, 3); // version 3 (PCI PM 1.2); no D1, D2 or PME
        self.set16(PMCSR, PMCSR_NO_SOFT_RESET);
        self.allow16(PMCSR, PMCSR_STATE);
    }

    fn msix(&mut self, layout: &Layout) {
        self.capability(MSIX, 0x11, EXPRESS);
        self.set16(MSIX_CONTROL, layout.msix_vectors - 1);
        self.allow16(MSIX_CONTROL, MSIX_FUNCTION_MASK | MSIX_ENABLE);
        self.set32(MSIX + 4, layout.msix_table); // the low three bits say BAR0
        self.set32(MSIX + 8, layout.msix_pba);
    }

    /// A link of four lanes at 16 GT/s, so that nobody warns of a slow slot; no ASPM.
    fn express(&mut self) {
        self.capability(EXPRESS, 0x10, 0);
        self.set16(EXPRESS + 0x02, 2); // version 2, endpoint
        self.set32(EXPRESS + 0x04, 1 << 28 | 1 << 15 | 1 << 5); // FLR, role-based errors, extended tags
        self.set16(DEVICE_CONTROL, 0x2810); // 512-byte reads, no snoop, relaxed ordering
        self.allow16(DEVICE_CONTROL, 0x79ff);
        self.set32(EXPRESS + 0x0c, 1 << 22 | 4 << 4 | 4);
        self.allow16(LINK_CONTROL, LINK_CONTROL_WRITABLE);
        self.set16(EXPRESS + 0x12, 1 << 12 | 4 << 4 | 4); // slot clock, x4, 16 GT/s
        self.set32(EXPRESS + 0x24, 1 << 4); // completion time-out can be disabled
        self.allow16(EXPRESS + 0x28, 1 << 4);
        self.set32(EXPRESS + 0x2c, 0b1111 << 1); // 2.5 to 16 GT/s
        self.set16(EXPRESS + 0x30, 4);
        self.allow16(EXPRESS + 0x30, 0xf);
    }

    fn serial_number(&mut self, serial: u64) {
        self.set32(SERIAL_NUMBER, 1 << 16 | 0x0003); // version 1, the last one
        self.set32(SERIAL_NUMBER + 4, serial as u32);
        self.set32(SERIAL_NUMBER + 8, (serial >> 32) as u32);
    }

    /// Reads from `offset` on. Bytes past the end read as FFh.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let tail = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..));
        for (to, from) in data.iter_mut().zip(tail.unwrap_or(&[])) {
            *to = *from;
        }
    }

    /// Writes from `offset` on: writable bits only; bytes past the end go nowhere.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effects {
        let before = self.watched();
        let mut effects = Effects::empty();
        let start = usize::try_from(offset).unwrap_or(CONFIG_SPACE_SIZE);
        for (at, &value) in (start..CONFIG_SPACE_SIZE).zip(data) {
            if at == DEVICE_CONTROL + 1 && value & (DEVICE_CONTROL_FLR >> 8) as u8 != 0 {
                effects |= Effects::FUNCTION_LEVEL_RESET;
            }
            // D1 and D2 do not exist: writing them changes nothing (7.5.2.2).
            if at == PMCSR && matches!(value & PMCSR_STATE as u8, 1 | 2) {
                continue;
            }
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
        effects | before.changes(&self.watched())
    }

    /// Function-level reset: back to the state after power-on, but for what belongs to the link (PCI Express
    /// Base Specification, 6.6.2): Max_Payload_Size and Link Control.
    pub fn reset(&mut self) {
        let payload = self.get16(DEVICE_CONTROL) & DEVICE_CONTROL_PAYLOAD;
        let link = self.get16(LINK_CONTROL);
        self.bytes.copy_from_slice(&*self.initial);
        let control = self.get16(DEVICE_CONTROL) & !DEVICE_CONTROL_PAYLOAD | payload;
        self.set16(DEVICE_CONTROL, control);
        self.set16(LINK_CONTROL, link);
    }

    /// Whether BAR0 answers (Command bit 1).
    pub fn memory_enabled(&self) -> bool {
        self.get16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// Whether the function may reach memory and send MSI-X messages (Command bit 2).
    pub fn bus_master_enabled(&self) -> bool {
        self.get16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether the pin must stay silent (Command bit 10).
    pub fn intx_disabled(&self) -> bool {
        self.get16(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// Whether interrupts are MSI-X messages and not the pin.
    pub fn msix_enabled(&self) -> bool {
        self.get16(MSIX_CONTROL) & MSIX_ENABLE != 0
    }

    /// Whether all MSI-X vectors are masked, whatever each one's own mask bit says.
    pub fn msix_masked(&self) -> bool {
        self.get16(MSIX_CONTROL) & MSIX_FUNCTION_MASK != 0
    }

    /// Whether the function is in D0. In D3hot only configuration space answers.
    pub fn powered(&self) -> bool {
        self.get16(PMCSR) & PMCSR_STATE == 0
    }

    /// Where software has put BAR0.
    pub fn bar0(&self) -> u64 {
        u64::from(self.get32(BAR0) & !0xf) | u64::from(self.get32(BAR0 + 4)) << 32
    }

    /// Says whether the pin is asserted, or would be if it were not disabled (Status bit 3).
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = self.get16(STATUS) & !STATUS_INTERRUPT;
        self.set16(STATUS, status | if pending { STATUS_INTERRUPT } else { 0 });
    }

    fn watched(&self) -> Watched {
        Watched {
            command: self.get16(COMMAND),
            msix: self.get16(MSIX_CONTROL),
            powered: self.powered(),
            bar0: self.bar0(),
        }
    }

    fn capability(&mut self, at: usize, id: u8, next: usize) {
        self.set8(at, id);
        self.set8(at + 1, next as u8);
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }

    fn set8(&mut self, at: usize, value: u8) {
        self.bytes[at] = value;
    }

    fn set16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn allow8(&mut self, at: usize, mask: u8) {
        self.writable[at] = mask;
    }

    fn allow16(&mut self, at: usize, mask: u16) {
        self.writable[at..at + 2].copy_from_slice(&mask.to_le_bytes());
    }

    fn allow32(&mut self, at: usize, mask: u32) {
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }
}

impl Layout {
    fn check(&self) -> Result<(), LayoutError> {
        if !self.bar0_len.is_power_of_two() || self.bar0_len < 16 {
            return Err(LayoutError::Bar(self.bar0_len));
        }
        if !(1..=2048).contains(&self.msix_vectors) {
            return Err(LayoutError::Vectors(self.msix_vectors));
        }
        let vectors = u64::from(self.msix_vectors);
        let (table, pba) = (u64::from(self.msix_table), u64::from(self.msix_pba));
        let (table_end, pba_end) = (table + vectors * 16, pba + vectors.div_ceil(64) * 8);
        let aligned = table % 8 == 0 && pba % 8 == 0;
        let apart = table_end <= pba || pba_end <= table;
        if aligned && apart && table_end.max(pba_end) <= u64::from(self.bar0_len) {
            Ok(())
        } else {
            Err(LayoutError::Msix)
        }
    }
}

/// What a write may change that somebody else must hear of.
struct Watched {
    command: u16,
    msix: u16,
    powered: bool,
    bar0: u64,
}

impl Watched {
    fn changes(&self, now: &Self) -> Effects {
        let command = self.command ^ now.command;
        let mut effects = Effects::empty();
        effects.set(Effects::MEMORY, command & COMMAND_MEMORY != 0);
        effects.set(Effects::BUS_MASTER, command & COMMAND_BUS_MASTER != 0);
        effects.set(Effects::INTX, command & COMMAND_INTX_DISABLE != 0);
        effects.set(Effects::MSIX, self.msix != now.msix);
        effects.set(Effects::POWER, self.powered != now.powered);
        effects.set(Effects::BAR0, self.bar0 != now.bar0);
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Layout {
            bar0_len: 0x4000,
            msix_vectors: 9,
            msix_table: 0x2000,
            msix_pba: 0x3000,
            serial: 0x0011_2233_4455_6677,
        })
        .unwrap()
    }

    fn read<const N: usize>(space: &ConfigSpace, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        space.read(offset as u64, &mut data);
        data
    }

    fn read32(space: &ConfigSpace, offset: usize) -> u32 {
        u32::from_le_bytes(read(space, offset))
    }

    #[test]
    fn the_header_names_an_nvm_express_controller() {
        let space = space();
        assert_eq!(read::<4>(&space, 0), [0x50, 0x52, 0x01, 0x00]);
        assert_eq!(read::<3>(&space, 9), [0x02, 0x08, 0x01]);
        assert_eq!(read::<1>(&space, 0x0e), [0], "type 0, one function");
        assert_eq!(read::<4>(&space, 0x2c), [0x50, 0x52, 0x01, 0x00]);
        assert_eq!(read::<1>(&space, 0x3d), [1], "pin A");
    }

    #[test]
    fn the_capability_list_ends_and_names_each_capability_once() {
        let space = space();
        assert_ne!(read32(&space, COMMAND) >> 16 & u32::from(STATUS_CAPABILITIES), 0);
        let mut found = Vec::new();
        let mut at = usize::from(read::<1>(&space, 0x34)[0]);
        while at != 0 {
            assert!(at >= 0x40 && at % 4 == 0, "capability at {at:#x}");
            let [id, next] = read::<2>(&space, at);
            assert!(found.len() < 10, "the list runs in a circle");
            found.push(id);
            at = usize::from(next);
        }
        assert_eq!(found, [0x01, 0x11, 0x10]);
        assert_eq!(read32(&space, 0x100), 0x0001_0003, "device serial number, the last");
        assert_eq!(read32(&space, 0x104), 0x4455_6677);
        assert_eq!(read32(&space, 0x108), 0x0011_2233);
    }

    #[test]
    fn writing_ones_to_bar0_tells_its_size() {
        let mut space = space();
        assert_eq!(space.write(BAR0 as u64, &[0xff; 8]), Effects::BAR0);
        assert_eq!(read32(&space, BAR0), 0xffff_c004);
        assert_eq!(read32(&space, BAR0 + 4), 0xffff_ffff);
        for bar in 2..6 {
            space.write((BAR0 + 4 * bar) as u64, &[0xff; 4]);
            assert_eq!(read32(&space, BAR0 + 4 * bar), 0, "no BAR{bar}");
        }
        space.write(BAR0 as u64, &0x0000_0008_feb0_0000_u64.to_le_bytes());
        assert_eq!(space.bar0(), 0x8_feb0_0000);
    }

    #[test]
    fn command_bits_say_what_they_change() {
        let mut space = space();
        assert_eq!(
            space.write(COMMAND as u64, &[0x06, 0x04]),
            Effects::MEMORY | Effects::BUS_MASTER | Effects::INTX
        );
        assert!(space.memory_enabled() && space.bus_master_enabled() && space.intx_disabled());
        assert_eq!(space.write(COMMAND as u64, &[0x06, 0x04]), Effects::empty(), "nothing new");
        assert_eq!(space.write(COMMAND as u64 + 1, &[0x00]), Effects::INTX);
        assert!(!space.intx_disabled());
    }

    #[test]
    fn msix_control_reports_enable_and_mask_and_keeps_the_table_size() {
        let mut space = space();
        assert_eq!(space.write(MSIX_CONTROL as u64, &0xffff_u16.to_le_bytes()), Effects::MSIX);
        assert!(space.msix_enabled() && space.msix_masked());
        assert_eq!(space.get16(MSIX_CONTROL), 0xc008);
        assert_eq!(space.write(MSIX_CONTROL as u64 + 1, &[0x80]), Effects::MSIX);
        assert!(space.msix_enabled() && !space.msix_masked());
        assert_eq!((read32(&space, MSIX + 4), read32(&space, MSIX + 8)), (0x2000, 0x3000));
    }

    #[test]
    fn function_level_reset_is_asked_for_once_and_reads_back_as_zero() {
        let mut space = space();
        assert_ne!(read32(&space, EXPRESS + 4) & 1 << 28, 0, "FLR capable");
        space.write(DEVICE_CONTROL as u64, &0x283f_u16.to_le_bytes());
        space.write(COMMAND as u64, &[0x06]);
        let before = space.get16(DEVICE_CONTROL);
        let effects = space.write(DEVICE_CONTROL as u64, &(before | DEVICE_CONTROL_FLR).to_le_bytes());
        assert_eq!(effects, Effects::FUNCTION_LEVEL_RESET);
        assert_eq!(space.get16(DEVICE_CONTROL), before);
        space.reset();
        assert!(!space.memory_enabled() && !space.bus_master_enabled());
        assert_eq!(space.get16(DEVICE_CONTROL), 0x2830, "Max_Payload_Size belongs to the link");
    }

    #[test]
    fn power_moves_between_d0_and_d3hot_only() {
        let mut space = space();
        assert_eq!(space.write(PMCSR as u64, &[3]), Effects::POWER);
        assert!(!space.powered());
        for missing in [1, 2] {
            assert_eq!(space.write(PMCSR as u64, &[missing]), Effects::empty());
            assert!(!space.powered());
        }
        assert_eq!(space.write(PMCSR as u64, &[0]), Effects::POWER);
        assert_eq!(read::<2>(&space, PMCSR), [PMCSR_NO_SOFT_RESET as u8, 0]);
    }

    #[test]
    fn interrupt_status_is_the_functions_to_set_and_not_softwares() {
        let mut space = space();
        space.write(STATUS as u64, &[0xff, 0xff]);
        assert_eq!(space.get16(STATUS), STATUS_CAPABILITIES);
        space.set_interrupt_status(true);
        assert_eq!(space.get16(STATUS), STATUS_CAPABILITIES | STATUS_INTERRUPT);
        space.write(STATUS as u64, &[0xff, 0xff]);
        assert_eq!(space.get16(STATUS), STATUS_CAPABILITIES | STATUS_INTERRUPT);
        space.set_interrupt_status(false);
        assert_eq!(space.get16(STATUS), STATUS_CAPABILITIES);
    }

    #[test]
    fn bytes_past_the_end_read_as_ones() {
        let space = space();
        assert_eq!(read::<8>(&space, CONFIG_SPACE_SIZE - 4), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let mut data = [0; 4];
        space.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn layouts_that_no_bar_could_have_are_refused() {
        let good =
            Layout { bar0_len: 0x4000, msix_vectors: 256, msix_table: 0x2000, msix_pba: 0x3000, serial: 0 };
        let refused = |layout: Layout| ConfigSpace::new(&layout).err();
        assert_eq!(refused(good), None);
        assert_eq!(refused(Layout { bar0_len: 0x3000, ..good }), Some(LayoutError::Bar(0x3000)));
        assert_eq!(refused(Layout { msix_vectors: 0, ..good }), Some(LayoutError::Vectors(0)));
        assert_eq!(
            refused(Layout { msix_vectors: 257, ..good }),
            Some(LayoutError::Msix),
            "runs into the PBA"
        );
        assert_eq!(refused(Layout { msix_pba: 0x3ff0, ..good }), Some(LayoutError::Msix), "past the end");
        assert_eq!(refused(Layout { msix_table: 0x2004, ..good }), Some(LayoutError::Msix), "misaligned");
    }

    proptest! {
        #[test]
        fn no_write_changes_a_read_only_bit(
            writes in proptest::collection::vec((0_u64..4200, proptest::collection::vec(any::<u8>(), 0..16)), 1..64),
            far in any::<u64>(),
        ) {
            let mut space = space();
            let fresh = space.clone();
            for (offset, data) in &writes {
                space.write(*offset, data);
                space.write(far | 1 << 12, data);
            }
            for at in 0..CONFIG_SPACE_SIZE {
                prop_assert_eq!((space.bytes[at] ^ fresh.bytes[at]) & !space.writable[at], 0, "byte {:#x}", at);
            }
            prop_assert_eq!(space.get16(DEVICE_CONTROL) & DEVICE_CONTROL_FLR, 0);
            prop_assert!(matches!(space.get16(PMCSR) & PMCSR_STATE, 0 | 3));
        }

        #[test]
        fn pieces_of_any_size_read_what_the_whole_reads(
            writes in proptest::collection::vec((0_u64..4096, any::<u64>()), 0..16),
            offset in 0_usize..4096,
            len in 1_usize..9,
        ) {
            let mut space = space();
            for (offset, data) in &writes {
                space.write(*offset, &data.to_le_bytes());
            }
            let whole = read::<CONFIG_SPACE_SIZE>(&space, 0);
            let mut piece = vec![0; len];
            space.read(offset as u64, &mut piece);
            for (i, byte) in piece.iter().enumerate() {
                prop_assert_eq!(*byte, whole.get(offset + i).copied().unwrap_or(0xff));
            }
        }
    }
}
