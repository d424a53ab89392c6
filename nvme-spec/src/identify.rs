//! Data structures that the Identify command returns (Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5). All are
//! 4096 bytes long.

mod capabilities;
mod controller;
mod identifiers;
mod io_command_set;
mod lists;
mod namespace;
mod power_state;
mod text;

pub use capabilities::{Cmic, Ctratt, EntrySizes, Fna, Frmw, Fuses, Lpa, Oacs, Oaes, Oncs, Sgls, Vwc};
pub use controller::IdentifyController;
pub use identifiers::{NamespaceIdentificationDescriptors, NamespaceIdentifier};
pub use io_command_set::{
    ExtendedLbaFormat, IdentifyControllerNvm, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, Nstat,
};
pub use lists::{ControllerList, IoCommandSetCombinations, NamespaceList};
pub use namespace::{
    Dlfeat, Dpc, Dps, Flbas, Fpi, IdentifyNamespace, LbaFormat, Mc, Nmic, NsAttr, Nsfeat, Rescap,
};
pub use power_state::{PowerStateDescriptor, PowerStateFlags};
pub use text::{AsciiField, NvmeQualifiedName};

/// CNS, Controller or Namespace Structure: which data structure Identify returns (Base 2.0, 5.17.1).
pub mod cns {
    /// Identify Namespace, for the NSID.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list, of NSIDs above the NSID.
    pub const ACTIVE_NAMESPACE_ID_LIST: u8 = 0x02;
    /// Namespace Identification Descriptor list, for the NSID.
    pub const NAMESPACE_IDENTIFICATION_DESCRIPTOR_LIST: u8 = 0x03;
    /// NVM Set List.
    pub const NVM_SET_LIST: u8 = 0x04;
    /// I/O Command Set specific Identify Namespace, for the NSID and CSI.
    pub const IO_COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// I/O Command Set specific Identify Controller, for the CSI.
    pub const IO_COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// I/O Command Set specific Active Namespace ID list, for the CSI.
    pub const IO_COMMAND_SET_ACTIVE_NAMESPACE_ID_LIST: u8 = 0x07;
    /// I/O Command Set Independent Identify Namespace, for the NSID.
    pub const IO_COMMAND_SET_INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated Namespace ID list.
    pub const ALLOCATED_NAMESPACE_ID_LIST: u8 = 0x10;
    /// Identify Namespace, for an allocated NSID.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controller list of the controllers attached to the NSID.
    pub const NAMESPACE_ATTACHED_CONTROLLER_LIST: u8 = 0x12;
    /// Controller list of the controllers in the NVM subsystem.
    pub const CONTROLLER_LIST: u8 = 0x13;
    /// Primary Controller Capabilities.
    pub const PRIMARY_CONTROLLER_CAPABILITIES: u8 = 0x14;
    /// Secondary Controller list.
    pub const SECONDARY_CONTROLLER_LIST: u8 = 0x15;
    /// Namespace Granularity List.
    pub const NAMESPACE_GRANULARITY_LIST: u8 = 0x16;
    /// UUID List.
    pub const UUID_LIST: u8 = 0x17;
    /// Domain List.
    pub const DOMAIN_LIST: u8 = 0x18;
    /// Endurance Group List.
    pub const ENDURANCE_GROUP_LIST: u8 = 0x19;
    /// I/O Command Set specific Allocated Namespace ID list.
    pub const IO_COMMAND_SET_ALLOCATED_NAMESPACE_ID_LIST: u8 = 0x1A;
    /// I/O Command Set specific Identify Namespace, for an allocated NSID.
    pub const IO_COMMAND_SET_ALLOCATED_NAMESPACE: u8 = 0x1B;
    /// Identify I/O Command Set: [`super::IoCommandSetCombinations`].
    pub const IO_COMMAND_SET: u8 = 0x1C;
}

/// CSI, Command Set Identifier (Base 2.0, 5.17.1).
pub mod csi {
    /// NVM Command Set.
    pub const NVM: u8 = 0x00;
    /// Key Value Command Set.
    pub const KEY_VALUE: u8 = 0x01;
    /// Zoned Namespace Command Set.
    pub const ZONED_NAMESPACE: u8 = 0x02;
}

/// Size of every Identify data structure, in bytes.
pub const DATA_SIZE: usize = 4096;
