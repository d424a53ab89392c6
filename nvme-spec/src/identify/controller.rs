//! Identify Controller data structure, CNS 01h (Base 2.0, 5.17.2.1; NVM Command Set 1.0, 4.1.5.2).

use super::capabilities::{Cmic, Ctratt, EntrySizes, Fna, Frmw, Fuses, Lpa, Oacs, Oaes, Oncs, Sgls, Vwc};
use super::{AsciiField, NvmeQualifiedName, PowerStateDescriptor};
use crate::registers::Version;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Identify Controller (CNS 01h), 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID.
    pub vid: u16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: u16,
    /// Serial Number.
    pub sn: AsciiField<20>,
    /// Model Number.
    pub mn: AsciiField<40>,
    /// Firmware Revision.
    pub fr: AsciiField<8>,
    /// Recommended Arbitration Burst, as a power of two.
    pub rab: u8,
    /// IEEE OUI Identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: Cmic,
    /// Maximum Data Transfer Size: 2^MDTS minimum memory pages, 0 for no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: u16,
    /// Version.
    pub ver: Version,
    /// RTD3 Resume Latency, in µs.
    pub rtd3r: u32,
    /// RTD3 Entry Latency, in µs.
    pub rtd3e: u32,
    /// Optional Asynchronous Events Supported.
    pub oaes: Oaes,
    /// Controller Attributes.
    pub ctratt: Ctratt,
    /// Read Recovery Levels Supported.
    pub rrls: u16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller Type: [`Self::CNTRLTYPE_IO`] and the others.
    pub cntrltype: u8,
    /// FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Command Retry Delay Time 1, in 100 ms.
    pub crdt1: u16,
    /// Command Retry Delay Time 2, in 100 ms.
    pub crdt2: u16,
    /// Command Retry Delay Time 3, in 100 ms.
    pub crdt3: u16,
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM Subsystem Report (NVMe-MI).
    pub nvmsr: u8,
    /// VPD Write Cycle Information (NVMe-MI).
    pub vwci: u8,
    /// Management Endpoint Capabilities (NVMe-MI).
    pub mec: u8,
    /// Optional Admin Command Support.
    pub oacs: Oacs,
    /// Abort Command Limit, 0's based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl: u8,
    /// Firmware Updates.
    pub frmw: Frmw,
    /// Log Page Attributes.
    pub lpa: Lpa,
    /// Error Log Page Entries, 0's based.
    pub elpe: u8,
    /// Number of Power States Support, 0's based.
    pub npss: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, in kelvins.
    pub wctemp: u16,
    /// Critical Composite Temperature Threshold, in kelvins.
    pub cctemp: u16,
    /// Maximum Time for Firmware Activation, in 100 ms.
    pub mtfa: u16,
    /// Host Memory Buffer Preferred Size, in 4 KiB.
    pub hmpre: u32,
    /// Host Memory Buffer Minimum Size, in 4 KiB.
    pub hmmin: u32,
    /// Total NVM Capacity, in bytes (128-bit).
    pub tnvmcap: [u8; 16],
    /// Unallocated NVM Capacity, in bytes (128-bit).
    pub unvmcap: [u8; 16],
    /// Replay Protected Memory Block Support.
    pub rpmbs: u32,
    /// Extended Device Self-test Time, in minutes.
    pub edstt: u16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, in 4 KiB; 0 not reported, FFh no restriction.
    pub fwug: u8,
    /// Keep Alive Support: granularity of the timer in 100 ms, 0 if Keep Alive is not supported.
    pub kas: u16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: u16,
    /// Minimum Thermal Management Temperature, in kelvins.
    pub mntmt: u16,
    /// Maximum Thermal Management Temperature, in kelvins.
    pub mxtmt: u16,
    /// Sanitize Capabilities.
    pub sanicap: u32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, in 4 KiB.
    pub hmminds: u32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: u16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: u16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: u16,
    /// ANA Transition Time, in seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: u32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: u32,
    /// Persistent Event Log Size, in 64 KiB.
    pub pels: u32,
    /// Domain Identifier.
    pub domain_identifier: u16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Max Endurance Group Capacity, in bytes (128-bit).
    pub megcap: [u8; 16],
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission Queue Entry Size.
    pub sqes: EntrySizes,
    /// Completion Queue Entry Size.
    pub cqes: EntrySizes,
    /// Maximum Outstanding Commands.
    pub maxcmd: u16,
    /// Number of Namespaces: the largest valid NSID.
    pub nn: u32,
    /// Optional NVM Command Support.
    pub oncs: Oncs,
    /// Fused Operation Support.
    pub fuses: Fuses,
    /// Format NVM Attributes.
    pub fna: Fna,
    /// Volatile Write Cache.
    pub vwc: Vwc,
    /// Atomic Write Unit Normal, in logical blocks, 0's based.
    pub awun: u16,
    /// Atomic Write Unit Power Fail, in logical blocks, 0's based.
    pub awupf: u16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare & Write Unit, in logical blocks, 0's based.
    pub acwu: u16,
    /// Copy Descriptor Formats Supported: bit n for format n.
    pub cdfs: u16,
    /// SGL Support.
    pub sgls: Sgls,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: u32,
    /// Maximum Domain Namespace Attachments (128-bit).
    pub maxdna: [u8; 16],
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: u32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name.
    pub subnqn: NvmeQualifiedName,
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size, in 16 bytes (fabrics).
    pub ioccsz: u32,
    /// I/O Queue Response Capsule Supported Size, in 16 bytes (fabrics).
    pub iorcsz: u32,
    /// In Capsule Data Offset, in 16 bytes (fabrics).
    pub icdoff: u16,
    /// Fabrics Controller Attributes (fabrics).
    pub fcatt: u8,
    /// Maximum SGL Data Block Descriptors (fabrics).
    pub msdbd: u8,
    /// Optional Fabric Commands Support (fabrics).
    pub ofcs: u16,
    /// Reserved.
    pub reserved1806: [u8; 242],
    /// Power State Descriptors, of which NPSS + 1 are valid.
    pub psd: [PowerStateDescriptor; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

layout!(IdentifyController, 4096, vid @ 0, ssvid @ 2, sn @ 4, mn @ 24, fr @ 64, rab @ 72, ieee @ 73, cmic @ 76,
    mdts @ 77, cntlid @ 78, ver @ 80, rtd3r @ 84, rtd3e @ 88, oaes @ 92, ctratt @ 96, rrls @ 100, cntrltype @ 111,
    fguid @ 112, crdt1 @ 128, crdt2 @ 130, crdt3 @ 132, nvmsr @ 253, vwci @ 254, mec @ 255, oacs @ 256, acl @ 258,
    aerl @ 259, frmw @ 260, lpa @ 261, elpe @ 262, npss @ 263, avscc @ 264, apsta @ 265, wctemp @ 266, cctemp @ 268,
    mtfa @ 270, hmpre @ 272, hmmin @ 276, tnvmcap @ 280, unvmcap @ 296, rpmbs @ 312, edstt @ 316, dsto @ 318,
    fwug @ 319, kas @ 320, hctma @ 322, mntmt @ 324, mxtmt @ 326, sanicap @ 328, hmminds @ 332, hmmaxd @ 336,
    nsetidmax @ 338, endgidmax @ 340, anatt @ 342, anacap @ 343, anagrpmax @ 344, nanagrpid @ 348, pels @ 352,
    domain_identifier @ 356, megcap @ 368, sqes @ 512, cqes @ 513, maxcmd @ 514, nn @ 516, oncs @ 520, fuses @ 522,
    fna @ 524, vwc @ 525, awun @ 526, awupf @ 528, icsvscc @ 530, nwpc @ 531, acwu @ 532, cdfs @ 534, sgls @ 536,
    mnan @ 540, maxdna @ 544, maxcna @ 560, subnqn @ 768, ioccsz @ 1792, iorcsz @ 1796, icdoff @ 1800, fcatt @ 1802,
    msdbd @ 1803, ofcs @ 1804, psd @ 2048, vs @ 3072);

impl Default for IdentifyController {
    /// All bytes 0.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyController {
    /// [`Self::cntrltype`]: not reported (before NVMe 1.4).
    pub const CNTRLTYPE_NOT_REPORTED: u8 = 0;
    /// [`Self::cntrltype`]: I/O controller.
    pub const CNTRLTYPE_IO: u8 = 1;
    /// [`Self::cntrltype`]: Discovery controller.
    pub const CNTRLTYPE_DISCOVERY: u8 = 2;
    /// [`Self::cntrltype`]: Administrative controller.
    pub const CNTRLTYPE_ADMINISTRATIVE: u8 = 3;

    /// The most data a command may transfer, in bytes, where CAP.MPSMIN gives `minimum_page_size` bytes;
    /// `None` for no limit.
    pub const fn maximum_data_transfer_size(&self, minimum_page_size: u64) -> Option<u64> {
        match self.mdts {
            0 => None,
            mdts @ 1..64 => minimum_page_size.checked_mul(1 << mdts),
            _ => None,
        }
    }

    /// How many Abort commands may be outstanding: 1 to 256.
    pub const fn abort_command_limit(&self) -> u32 {
        self.acl as u32 + 1
    }

    /// How many Asynchronous Event Requests may be outstanding: 1 to 256.
    pub const fn asynchronous_event_request_limit(&self) -> u32 {
        self.aerl as u32 + 1
    }

    /// How many entries the Error Information log page has: 1 to 256.
    pub const fn error_log_page_entries(&self) -> u32 {
        self.elpe as u32 + 1
    }

    /// How many power states there are: 1 to 256, of which up to 32 are valid.
    pub const fn number_of_power_states(&self) -> u32 {
        self.npss as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let id = IdentifyController {
            vid: 0x1234,
            sn: AsciiField::new("S1").unwrap(),
            mdts: 5,
            ver: Version::V2_0,
            oacs: Oacs::new().with_doorbell_buffer_config(true).with_format_nvm(true),
            sqes: EntrySizes::new().with_minimum(6).with_maximum(6),
            cqes: EntrySizes::new().with_minimum(4).with_maximum(4),
            nn: 0x0102,
            oncs: Oncs::new().with_compare(true).with_timestamp(true).with_verify(true),
            vwc: Vwc::new().with_present(true).with_flush_broadcast(Vwc::FLUSH_BROADCAST_SUPPORTED),
            sgls: Sgls::new().with_support(Sgls::SUPPORTED).with_bit_bucket(true).with_excess_length(true),
            subnqn: NvmeQualifiedName::new("nqn.x").unwrap(),
            ..IdentifyController::default()
        };
        let mut expected = [0_u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x34, 0x12]);
        put(4, b"S1                  ");
        put(77, &[5, 0, 0, 0, 0, 2, 0]);
        put(256, &[0x02, 0x01]);
        put(512, &[0x66, 0x44, 0, 0, 0x02, 0x01, 0, 0, 0xC1, 0x00]);
        put(525, &[0x07]);
        put(536, &[0x01, 0, 0x05, 0]);
        put(768, b"nqn.x");
        // Text that was not set stays all 0: `default` fills nothing in.
        assert_eq!(id.as_bytes(), expected);
    }

    #[test]
    fn limits_are_0s_based_and_mdts_is_in_minimum_pages() {
        let mut id = IdentifyController { aerl: 3, acl: 0, elpe: 255, npss: 0, ..Default::default() };
        assert_eq!((id.asynchronous_event_request_limit(), id.abort_command_limit()), (4, 1));
        assert_eq!((id.error_log_page_entries(), id.number_of_power_states()), (256, 1));
        assert_eq!(id.maximum_data_transfer_size(4096), None);
        id.mdts = 7;
        assert_eq!(id.maximum_data_transfer_size(4096), Some(512 << 10));
        id.mdts = 255;
        assert_eq!(id.maximum_data_transfer_size(4096), None);
    }
}
