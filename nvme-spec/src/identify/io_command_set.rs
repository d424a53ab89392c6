//! Data structures that belong to an I/O command set, or to none: CNS 05h, 06h and 08h (NVM Command Set 1.0, 4.1.5;
//! Base 2.0, 5.17.2.8).

use super::namespace::{Fpi, Nmic, NsAttr, Nsfeat, Rescap};
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// I/O Command Set specific Identify Namespace of the NVM command set (CNS 05h, 1Bh, CSI 00h), 4096 bytes
/// (NVM Command Set 1.0, 4.1.5.3).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespaceNvm {
    /// Logical Block Storage Tag Mask.
    pub lbstm: u64,
    /// Protection Information Capabilities.
    pub pic: u8,
    /// Reserved.
    pub reserved9: [u8; 3],
    /// Extended LBA Formats, parallel to [`IdentifyNamespace::lbaf`](super::IdentifyNamespace::lbaf).
    pub elbaf: [ExtendedLbaFormat; 64],
    /// Reserved.
    pub reserved268: [u8; 3828],
}

layout!(IdentifyNamespaceNvm, 4096, lbstm @ 0, pic @ 8, elbaf @ 12, reserved268 @ 268);

impl Default for IdentifyNamespaceNvm {
    /// All bytes 0: 16-bit guards, no storage tags.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// Extended LBA Format, 4 bytes (NVM Command Set 1.0, 4.1.5.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExtendedLbaFormat {
    /// STS, Storage Tag Size, in bits.
    #[bits(7)]
    pub sts: u8,
    /// PIF, Protection Information Format: 0 16-bit guard, 1 32-bit guard, 2 64-bit guard.
    #[bits(2)]
    pub pif: u8,
    #[bits(23)]
    __: u32,
}

/// I/O Command Set specific Identify Controller of the NVM command set (CNS 06h, CSI 00h), 4096 bytes
/// (NVM Command Set 1.0, 4.1.5.4).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify Size Limit: 2^VSL minimum memory pages, 0 for no limit.
    pub vsl: u8,
    /// Write Zeroes Size Limit: 2^WZSL minimum memory pages, 0 for no limit.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit: 2^WUSL minimum memory pages, 0 for no limit.
    pub wusl: u8,
    /// Dataset Management Ranges Limit: the most ranges in a command, 0 for no limit.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit: the most logical blocks in a range, 0 for no limit.
    pub dmrsl: u32,
    /// Dataset Management Size Limit: the most logical blocks in a command, 0 for no limit.
    pub dmsl: u64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

layout!(IdentifyControllerNvm, 4096, vsl @ 0, wzsl @ 1, wusl @ 2, dmrl @ 3, dmrsl @ 4, dmsl @ 8);

impl Default for IdentifyControllerNvm {
    /// All bytes 0: no limits.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// I/O Command Set Independent Identify Namespace (CNS 08h), 4096 bytes (Base 2.0, 5.17.2.8).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Common Namespace Features: of [`Nsfeat`], only UIDREUSE is defined here.
    pub nsfeat: Nsfeat,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: Nmic,
    /// Reservation Capabilities.
    pub rescap: Rescap,
    /// Format Progress Indicator.
    pub fpi: Fpi,
    /// ANA Group Identifier.
    pub anagrpid: u32,
    /// Namespace Attributes.
    pub nsattr: NsAttr,
    /// Reserved.
    pub reserved9: u8,
    /// NVM Set Identifier.
    pub nvmsetid: u16,
    /// Endurance Group Identifier.
    pub endgid: u16,
    /// Namespace Status.
    pub nstat: Nstat,
    /// Reserved.
    pub reserved15: [u8; 4081],
}

layout!(IdentifyNamespaceIndependent, 4096, nsfeat @ 0, nmic @ 1, rescap @ 2, fpi @ 3, anagrpid @ 4, nsattr @ 8,
    nvmsetid @ 10, endgid @ 12, nstat @ 14);

impl Default for IdentifyNamespaceIndependent {
    /// All bytes 0.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// NSTAT, Namespace Status.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nstat {
    /// NRDY, Namespace Ready.
    pub nrdy: bool,
    #[bits(7)]
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let limits =
            IdentifyControllerNvm { wzsl: 5, dmrl: 255, dmrsl: 0x0102, dmsl: 3, ..Default::default() };
        assert_eq!(limits.as_bytes()[..16], [0, 5, 0, 255, 2, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let mut formats = IdentifyNamespaceNvm::default();
        formats.elbaf[1] = ExtendedLbaFormat::new().with_sts(16).with_pif(2);
        assert_eq!(formats.as_bytes()[16..20], [0x10, 0x01, 0, 0]);
        let ready = IdentifyNamespaceIndependent {
            nmic: Nmic::new().with_shared(true),
            nstat: Nstat::new().with_nrdy(true),
            ..Default::default()
        };
        assert_eq!(ready.as_bytes()[..16], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}
