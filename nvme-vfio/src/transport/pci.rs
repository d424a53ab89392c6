//! What a transport has to do in PCI configuration space (PCI Local Bus 3.0, chapter 6).

use std::io;

/// Access to configuration space, in pieces of 1, 2 or 4 bytes.
pub trait ConfigSpace {
    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// The other side cannot be reached, or refused.
    fn read_config(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::read_config`].
    fn write_config(&self, offset: u64, data: &[u8]) -> io::Result<()>;
}

const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: u64 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES_POINTER: u64 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

fn read16(config: &dyn ConfigSpace, offset: u64) -> io::Result<u16> {
    let mut data = [0; 2];
    config.read_config(offset, &mut data)?;
    Ok(u16::from_le_bytes(data))
}

/// Makes the function decode its BARs and do DMA, and keeps it from its interrupt pin.
///
/// # Errors
///
/// Configuration space cannot be reached.
pub fn enable(config: &dyn ConfigSpace) -> io::Result<()> {
    let command = read16(config, COMMAND)? | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
    config.write_config(COMMAND, &command.to_le_bytes())
}

/// Keeps the function from doing DMA.
///
/// # Errors
///
/// Configuration space cannot be reached.
pub fn stop_bus_mastering(config: &dyn ConfigSpace) -> io::Result<()> {
    let command = read16(config, COMMAND)? & !COMMAND_BUS_MASTER;
    config.write_config(COMMAND, &command.to_le_bytes())?;
    // Read back: when this has been answered, the write has got there, and so has what the function wrote before it.
    read16(config, COMMAND).map(drop)
}

/// Enables MSI-X, if the function has it. Where the kernel owns the function it has done that already; an emulated
/// function may look at the bit.
///
/// # Errors
///
/// Configuration space cannot be reached.
pub fn enable_msix(config: &dyn ConfigSpace) -> io::Result<()> {
    change_msix_control(config, |control| (control | MSIX_ENABLE) & !MSIX_FUNCTION_MASK)
}

/// Disables MSI-X, if the function has it and whoever had the function before has left it enabled.
///
/// # Errors
///
/// Configuration space cannot be reached.
pub fn disable_msix(config: &dyn ConfigSpace) -> io::Result<()> {
    change_msix_control(config, |control| control & !MSIX_ENABLE)
}

/// Rewrites the Message Control of the MSI-X capability, if there is one; not if that would not change it.
fn change_msix_control(config: &dyn ConfigSpace, change: impl Fn(u16) -> u16) -> io::Result<()> {
    if read16(config, STATUS)? & STATUS_CAPABILITIES == 0 {
        return Ok(());
    }
    let mut pointer = [0];
    config.read_config(CAPABILITIES_POINTER, &mut pointer)?;
    // There is room for 48 capabilities: a list that is longer goes round.
    for _ in 0..48 {
        let at = u64::from(pointer[0] & !3);
        if at < 0x40 {
            return Ok(());
        }
        let mut id = [0];
        config.read_config(at, &mut id)?;
        if id[0] == CAPABILITY_MSIX {
            let before = read16(config, at + 2)?;
            let control = change(before);
            return if control == before {
                Ok(())
            } else {
                config.write_config(at + 2, &control.to_le_bytes())
            };
        }
        config.read_config(at + 1, &mut pointer)?;
    }
    Ok(())
}
