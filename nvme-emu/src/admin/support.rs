//! What there is: commands, features and log pages, and the log pages that list them (NVMe Base 2.0c, 5.16.1). What
//! is in these tables is offered, what is not is refused, so the lists cannot lie.

use super::Admin;
use nvme_spec::feature::fid;
use nvme_spec::log_page::{
    CommandEffects, CommandsSupportedAndEffects, FeatureEffects, FeatureIdentifiersSupportedAndEffects, lid,
    scope,
};
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

/// Features.
const FEATURES: [u8; 12] = [
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::INTERRUPT_COALESCING,
    fid::INTERRUPT_VECTOR_CONFIGURATION,
    fid::WRITE_ATOMICITY_NORMAL,
    fid::ASYNCHRONOUS_EVENT_CONFIGURATION,
    fid::TIMESTAMP,
    fid::IO_COMMAND_SET_PROFILE,
];

/// Log pages, all of them about the controller as a whole. 13h comes with 12h (LPA bit 5).
pub(super) const LOG_PAGES: [u8; 8] = [
    lid::SUPPORTED_LOG_PAGES,
    lid::ERROR_INFORMATION,
    lid::SMART_HEALTH_INFORMATION,
    lid::FIRMWARE_SLOT_INFORMATION,
    lid::CHANGED_NAMESPACE_LIST,
    lid::COMMANDS_SUPPORTED_AND_EFFECTS,
    lid::FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS,
    lid::NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS,
];

/// Whether each namespace has a value of its own for a feature.
pub(super) fn namespace_specific(fid: u8) -> bool {
    fid == fid::ERROR_RECOVERY
}

/// Whether a new value of a feature concerns queues and reactors.
pub(super) fn acted_on_by_the_core(fid: u8) -> bool {
    matches!(
        fid,
        fid::ARBITRATION
            | fid::VOLATILE_WRITE_CACHE
            | fid::INTERRUPT_COALESCING
            | fid::INTERRUPT_VECTOR_CONFIGURATION
    )
}

impl Admin {
    /// Whether there is such an admin command.
    pub(super) fn offers_command(&self, opcode: AdminOpcode) -> bool {
        let configured = opcode != AdminOpcode::DOORBELL_BUFFER_CONFIG || self.options.shadow_doorbells;
        configured && ADMIN_COMMANDS.contains(&opcode)
    }

    /// Whether there is such a feature. Base 2.0c, 5.27.1.4: none for a volatile write cache that is not there.
    pub(super) fn offers_feature(&self, fid: u8) -> bool {
        let configured = fid != fid::VOLATILE_WRITE_CACHE || self.features.has_volatile_write_cache();
        configured && FEATURES.contains(&fid)
    }

    /// Commands Supported and Effects (05h), for the NVM command set.
    pub(super) fn command_effects(&self) -> CommandsSupportedAndEffects {
        let mut page = CommandsSupportedAndEffects::default();
        for opcode in ADMIN_COMMANDS.into_iter().filter(|&opcode| self.offers_command(opcode)) {
            *page.admin(opcode) = CommandEffects::new().with_csupp(true).with_csp(scope::CONTROLLER);
        }
        for (opcode, writes) in NVM_COMMANDS {
            let effects = CommandEffects::new().with_csupp(true).with_lbcc(writes);
            *page.nvm(opcode) = effects.with_csp(scope::NAMESPACE);
        }
        page
    }

    /// Feature Identifiers Supported and Effects (12h).
    pub(super) fn feature_effects(&self) -> FeatureIdentifiersSupportedAndEffects {
        let mut page = FeatureIdentifiersSupportedAndEffects::default();
        for fid in FEATURES.into_iter().filter(|&fid| self.offers_feature(fid)) {
            let scope = if namespace_specific(fid) { scope::NAMESPACE } else { scope::CONTROLLER };
            page.0[usize::from(fid)] = FeatureEffects::new().with_fsupp(true).with_fsp(scope);
        }
        page
    }
}
