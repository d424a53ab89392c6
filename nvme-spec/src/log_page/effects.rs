//! What a controller supports and what using it changes: log pages 00h, 05h and 12h (Base 2.0, 5.16.1).

use crate::{AdminOpcode, NvmOpcode};
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Scope of a command (CSP) or a feature (FSP), as bits; none set means not reported (5.16.1.6, 5.16.1.18).
pub mod scope {
    /// Namespace.
    pub const NAMESPACE: u16 = 1 << 0;
    /// Controller.
    pub const CONTROLLER: u16 = 1 << 1;
    /// NVM Set.
    pub const NVM_SET: u16 = 1 << 2;
    /// Endurance Group.
    pub const ENDURANCE_GROUP: u16 = 1 << 3;
    /// Domain.
    pub const DOMAIN: u16 = 1 << 4;
    /// NVM subsystem.
    pub const NVM_SUBSYSTEM: u16 = 1 << 5;
}

/// Supported Log Pages (LID 00h), 1024 bytes (5.16.1.1).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SupportedLogPages(pub [LidSupported; 256]);

layout!(SupportedLogPages, 1024);

impl FromIterator<u8> for SupportedLogPages {
    /// The page that says that those log page identifiers are supported, and no other.
    fn from_iter<I: IntoIterator<Item = u8>>(lids: I) -> Self {
        let mut page = Self::new_zeroed();
        for lid in lids {
            page.0[usize::from(lid)].set_lsupp(true);
        }
        page
    }
}

impl SupportedLogPages {
    /// The log page identifiers that are supported.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|&lid| self.0[usize::from(lid)].lsupp())
    }
}

/// LID Supported and Effects, 4 bytes (5.16.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LidSupported {
    /// LSUPP, LID Supported.
    pub lsupp: bool,
    /// IOS, Index Offset Supported.
    pub ios: bool,
    #[bits(14)]
    __: u16,
    /// LID Specific Parameter.
    pub lid_specific: u16,
}

/// Commands Supported and Effects (LID 05h), 4096 bytes (5.16.1.6).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandsSupportedAndEffects {
    /// ACS0 to ACS255: Admin commands, by opcode.
    pub acs: [CommandEffects; 256],
    /// IOCS0 to IOCS255: I/O commands, by opcode.
    pub iocs: [CommandEffects; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

layout!(CommandsSupportedAndEffects, 4096, acs @ 0, iocs @ 1024, reserved2048 @ 2048);

impl Default for CommandsSupportedAndEffects {
    /// Nothing is supported.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl CommandsSupportedAndEffects {
    /// The effects of an Admin command.
    pub fn admin(&mut self, opcode: AdminOpcode) -> &mut CommandEffects {
        &mut self.acs[usize::from(opcode.0)]
    }

    /// The effects of an I/O command of the NVM command set.
    pub fn nvm(&mut self, opcode: NvmOpcode) -> &mut CommandEffects {
        &mut self.iocs[usize::from(opcode.0)]
    }
}

/// Commands Supported and Effects data structure, 4 bytes (5.16.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffects {
    /// CSUPP, Command Supported.
    pub csupp: bool,
    /// LBCC, Logical Block Content Change.
    pub lbcc: bool,
    /// NCC, Namespace Capability Change.
    pub ncc: bool,
    /// NIC, Namespace Inventory Change.
    pub nic: bool,
    /// CCC, Controller Capability Change.
    pub ccc: bool,
    #[bits(11)]
    __: u16,
    /// CSE, Command Submission and Execution: 0 no restriction, 1 no other command to the namespace, 2 to any.
    #[bits(3)]
    pub cse: u8,
    /// UUID Selection Supported.
    pub uuid_selection: bool,
    /// CSP, Command Scope: bits of [`scope`].
    #[bits(12)]
    pub csp: u16,
}

/// Feature Identifiers Supported and Effects (LID 12h), 1024 bytes (5.16.1.18).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FeatureIdentifiersSupportedAndEffects(pub [FeatureEffects; 256]);

layout!(FeatureIdentifiersSupportedAndEffects, 1024);

impl Default for FeatureIdentifiersSupportedAndEffects {
    /// Nothing is supported.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// FID Supported and Effects data structure, 4 bytes (5.16.1.18).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureEffects {
    /// FSUPP, FID Supported.
    pub fsupp: bool,
    /// UDCC, User Data Content Change.
    pub udcc: bool,
    /// NCC, Namespace Capability Change.
    pub ncc: bool,
    /// NIC, Namespace Inventory Change.
    pub nic: bool,
    /// CCC, Controller Capability Change.
    pub ccc: bool,
    #[bits(14)]
    __: u16,
    /// UUID Selection Supported.
    pub uuid_selection: bool,
    /// FSP, FID Scope: bits of [`scope`].
    #[bits(12)]
    pub fsp: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_log_pages_golden_bytes() {
        let page = SupportedLogPages::from_iter([0x00, 0x02]);
        assert_eq!(page.as_bytes()[..12], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert!(page.iter().eq([0x00, 0x02]));
        assert_eq!(LidSupported::new().with_ios(true).with_lid_specific(1).into_bits(), 0x0001_0002);
    }

    #[test]
    fn command_effects_golden_bytes() {
        let mut page = CommandsSupportedAndEffects::default();
        *page.admin(AdminOpcode::FORMAT_NVM) =
            CommandEffects::new().with_csupp(true).with_lbcc(true).with_ncc(true).with_cse(1);
        *page.nvm(NvmOpcode::WRITE) =
            CommandEffects::new().with_csupp(true).with_lbcc(true).with_csp(scope::NAMESPACE);
        let mut expected = [0_u8; 4096];
        expected[0x80 * 4..0x81 * 4].copy_from_slice(&[0x07, 0, 0x01, 0]);
        expected[1024 + 4..1024 + 8].copy_from_slice(&[0x03, 0, 0x10, 0]);
        assert_eq!(page.as_bytes(), expected);
        assert_eq!(CommandEffects::new().with_ccc(true).with_uuid_selection(true).into_bits(), 0x0008_0010);
    }

    #[test]
    fn feature_effects_golden_bytes() {
        let mut page = FeatureIdentifiersSupportedAndEffects::default();
        page.0[7] = FeatureEffects::new().with_fsupp(true).with_ccc(true).with_fsp(scope::CONTROLLER);
        assert_eq!(page.as_bytes()[28..32], [0x11, 0, 0x20, 0]);
    }
}
