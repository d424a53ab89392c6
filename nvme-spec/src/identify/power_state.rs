//! Power State Descriptors of Identify Controller (Base 2.0, 5.17.2.1).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Power State Descriptor, 32 bytes (Base 2.0, 5.17.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerStateDescriptor {
    /// Maximum Power, in 10 mW or, with MXPS, 0.1 mW.
    pub mp: u16,
    /// Reserved.
    pub reserved2: u8,
    /// MXPS and NOPS.
    pub flags: PowerStateFlags,
    /// Entry Latency, in µs.
    pub enlat: u32,
    /// Exit Latency, in µs.
    pub exlat: u32,
    /// Relative Read Throughput (bits 4:0).
    pub rrt: u8,
    /// Relative Read Latency (bits 4:0).
    pub rrl: u8,
    /// Relative Write Throughput (bits 4:0).
    pub rwt: u8,
    /// Relative Write Latency (bits 4:0).
    pub rwl: u8,
    /// Idle Power, in the scale of IPS.
    pub idlp: u16,
    /// Idle Power Scale, in bits 7:6: 0 not reported, 1 0.1 mW, 2 10 mW.
    pub ips: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Active Power, in the scale of APS.
    pub actp: u16,
    /// Active Power Workload in bits 2:0, Active Power Scale in bits 7:6.
    pub apw_aps: u8,
    /// Reserved.
    pub reserved23: [u8; 9],
}

layout!(PowerStateDescriptor, 32, mp @ 0, flags @ 3, enlat @ 4, exlat @ 8, rrt @ 12, rwl @ 15, idlp @ 16, ips @ 18,
    actp @ 20, apw_aps @ 22);

/// Byte 3 of a Power State Descriptor.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerStateFlags {
    /// MXPS, Max Power Scale: MP is in 0.1 mW, not 10 mW.
    pub mxps: bool,
    /// NOPS, Non-Operational State: no I/O commands are processed.
    pub nops: bool,
    #[bits(6)]
    __: u8,
}
