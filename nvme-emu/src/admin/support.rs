//! What there is: commands, features and log pages, and the log pages that list them (00h, 05h, 12h and 13h). A
//! command or feature that is in these tables is executed, one that is not is refused, so the lists cannot lie.

use super::Admin;
use super::log_page::LogPage;
use nvme_spec::{AdminOpcode, NvmOpcode};

/// Admin commands. Those that this module does not execute itself are the core's.
const ADMIN_COMMANDS: [AdminOpcode; 11] = [
    AdminOpcode::DELETE_IO_SUBMISSION_QUEUE,
    AdminOpcode::CREATE_IO_SUBMISSION_QUEUE,
    AdminOpcode::GET_LOG_PAGE,
    AdminOpcode::DELETE_IO_COMPLETION_QUEUE,
    AdminOpcode::CREATE_IO_COMPLETION_QUEUE,
    AdminOpcode::IDENTIFY,
    AdminOpcode::ABORT,
    AdminOpcode::SET_FEATURES,
    AdminOpcode::GET_FEATURES,
    AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST,
    AdminOpcode::DOORBELL_BUFFER_CONFIG,
];

/// Commands of the NVM command set that the data path executes, and whether they change logical blocks.
const NVM_COMMANDS: [(NvmOpcode, bool); 7] = [
    (NvmOpcode::FLUSH, false),
    (NvmOpcode::WRITE, true),
    (NvmOpcode::READ, false),
    (NvmOpcode::COMPARE, false),
    (NvmOpcode::WRITE_ZEROES, true),
    (NvmOpcode::DATASET_MANAGEMENT, true),
    (NvmOpcode::VERIFY, false),
];

/// Features (NVMe Base 2.0c, Figure 316).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Arbitration = 0x01,
    PowerManagement = 0x02,
    TemperatureThreshold = 0x04,
    ErrorRecovery = 0x05,
    VolatileWriteCache = 0x06,
    NumberOfQueues = 0x07,
    InterruptCoalescing = 0x08,
    InterruptVectorConfiguration = 0x09,
    WriteAtomicityNormal = 0x0a,
    AsynchronousEventConfiguration = 0x0b,
    Timestamp = 0x0e,
    IoCommandSetProfile = 0x19,
}

pub(super) const FEATURES: [Feature; 12] = [
    Feature::Arbitration,
    Feature::PowerManagement,
    Feature::TemperatureThreshold,
    Feature::ErrorRecovery,
    Feature::VolatileWriteCache,
    Feature::NumberOfQueues,
    Feature::InterruptCoalescing,
    Feature::InterruptVectorConfiguration,
    Feature::WriteAtomicityNormal,
    Feature::AsynchronousEventConfiguration,
    Feature::Timestamp,
    Feature::IoCommandSetProfile,
];

impl Feature {
    pub(super) fn from_identifier(identifier: u8) -> Option<Self> {
        FEATURES.into_iter().find(|&feature| feature as u8 == identifier)
    }

    /// Whether each namespace has a value of its own.
    pub(super) fn namespace_specific(self) -> bool {
        self == Self::ErrorRecovery
    }

    /// Whether a new value concerns queues and reactors.
    pub(super) fn acted_on_by_the_core(self) -> bool {
        matches!(
            self,
            Self::Arbitration
                | Self::VolatileWriteCache
                | Self::InterruptCoalescing
                | Self::InterruptVectorConfiguration
        )
    }

    /// Dword 0 of Get Features, SEL 3h: changeable (bit 2), namespace specific (bit 1), not saveable (bit 0).
    pub(super) fn capabilities(self) -> u32 {
        1 << 2 | u32::from(self.namespace_specific()) << 1
    }
}

/// Bits of an entry in log page 05h (NVMe Base 2.0c, Figure 211).
mod command_effects {
    /// CSUPP: the command is supported.
    pub const SUPPORTED: u32 = 1;
    /// LBCC: it may change logical blocks.
    pub const LOGICAL_BLOCKS: u32 = 1 << 1;
    /// CSP: it acts on namespaces.
    pub const NAMESPACE: u32 = 1 << 20;
    /// CSP: it acts on the controller.
    pub const CONTROLLER: u32 = 1 << 21;
}

/// Bits of an entry in log page 12h (NVMe Base 2.0c, Figure 257).
mod feature_effects {
    /// FSUPP: the feature is supported.
    pub const SUPPORTED: u32 = 1;
    /// FSP: a namespace's.
    pub const NAMESPACE: u32 = 1 << 20;
    /// FSP: the controller's.
    pub const CONTROLLER: u32 = 1 << 21;
}

/// An array of dwords, as it lies in a log page.
fn page<const N: usize>(dwords: [u32; N], len: usize) -> Vec<u8> {
    let mut page: Vec<u8> = dwords.into_iter().flat_map(u32::to_le_bytes).collect();
    page.resize(len, 0);
    page
}

impl Admin {
    /// Whether there is such an admin command.
    pub(super) fn offers_command(&self, opcode: AdminOpcode) -> bool {
        let configured = opcode != AdminOpcode::DOORBELL_BUFFER_CONFIG || self.options.shadow_doorbells;
        configured && ADMIN_COMMANDS.contains(&opcode)
    }

    /// Supported Log Pages (00h; NVMe Base 2.0c, 5.16.1.1): LSUPP for each, and no index offsets.
    pub(super) fn supported_log_pages(&self) -> Vec<u8> {
        let mut pages = [0; 256];
        for log_page in LogPage::ALL {
            pages[log_page as usize] = 1;
        }
        page(pages, 1024)
    }

    /// Commands Supported and Effects (05h; NVMe Base 2.0c, 5.16.1.6): ACS0 to ACS255, then IOCS0 to IOCS255 of the
    /// NVM command set.
    pub(super) fn command_effects(&self) -> Vec<u8> {
        let mut commands = [0; 512];
        for opcode in ADMIN_COMMANDS.into_iter().filter(|&opcode| self.offers_command(opcode)) {
            commands[usize::from(opcode.0)] = command_effects::SUPPORTED | command_effects::CONTROLLER;
        }
        for (opcode, writes) in NVM_COMMANDS {
            let blocks = if writes { command_effects::LOGICAL_BLOCKS } else { 0 };
            let effects = command_effects::SUPPORTED | command_effects::NAMESPACE | blocks;
            commands[256 + usize::from(opcode.0)] = effects;
        }
        page(commands, 4096)
    }

    /// Feature Identifiers Supported and Effects (12h; NVMe Base 2.0c, 5.16.1.18).
    pub(super) fn feature_effects(&self) -> Vec<u8> {
        let mut features = [0; 256];
        for feature in FEATURES.into_iter().filter(|&feature| self.offers_feature(feature)) {
            let scope = match feature.namespace_specific() {
                true => feature_effects::NAMESPACE,
                false => feature_effects::CONTROLLER,
            };
            features[feature as usize] = feature_effects::SUPPORTED | scope;
        }
        page(features, 1024)
    }
}
