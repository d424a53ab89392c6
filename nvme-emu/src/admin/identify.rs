//! Identify (NVMe Base 2.0c, 5.17).

use super::async_event::EVENT_REQUEST_LIMIT;
use super::error_log::ERROR_LOG_ENTRIES;
use super::fault::{Fault, field};
use super::smart::{CRITICAL_TEMPERATURE, WARNING_TEMPERATURE};
use super::{ABORT_LIMIT, Admin, HostBuffer, Outcome};
use crate::namespace::{Namespace, OUI};
use block_core::Unmapped;
use nvme_spec::identify::{
    AsciiField, Cmic, ControllerList, Dlfeat, EntrySizes, Frmw, IdentifyController, IdentifyControllerNvm,
    IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, IoCommandSetCombinations,
    LbaFormat, Lpa, NamespaceIdentificationDescriptors, NamespaceIdentifier, NamespaceList, Nmic, NsAttr,
    Nsfeat, Nstat, NvmeQualifiedName, Oacs, Oaes, Oncs, Vwc, cns, csi,
};
use nvme_spec::registers::Version;
use nvme_spec::{NSID_BROADCAST, SubmissionQueueEntry, admin_command};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// A data structure, to be copied to the host.
fn page(structure: impl IntoBytes + Immutable) -> Vec<u8> {
    structure.as_bytes().to_vec()
}

/// A text that was checked where it came in; nothing where it does not fit all the same.
fn ascii<const N: usize>(text: &str) -> AsciiField<N> {
    AsciiField::new(text).unwrap_or_default()
}

impl Admin {
    pub(super) fn identify(
        &self,
        sqe: &SubmissionQueueEntry,
        host: &mut dyn HostBuffer,
    ) -> Result<Outcome, Fault> {
        let dwords = sqe.dwords::<admin_command::Identify>();
        let nsid = sqe.nsid;
        let data = match dwords.cns() {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => {
                self.about_namespace(nsid, |namespace| self.identify_namespace(namespace))
            }
            cns::CONTROLLER => Ok(page(self.identify_controller())),
            cns::ACTIVE_NAMESPACE_ID_LIST | cns::ALLOCATED_NAMESPACE_ID_LIST => self.namespace_list(nsid),
            cns::NAMESPACE_IDENTIFICATION_DESCRIPTOR_LIST => {
                Ok(page(identification_descriptors(self.active_namespace(nsid)?)))
            }
            cns::IO_COMMAND_SET_NAMESPACE => {
                nvm_command_set(dwords)?;
                // No protection information, no storage tags, no extended formats: all of it is zero.
                self.about_namespace(nsid, |_| IdentifyNamespaceNvm::default())
            }
            cns::IO_COMMAND_SET_CONTROLLER => {
                nvm_command_set(dwords)?;
                Ok(page(self.identify_controller_nvm()))
            }
            cns::IO_COMMAND_SET_ACTIVE_NAMESPACE_ID_LIST => {
                nvm_command_set(dwords)?;
                self.namespace_list(nsid)
            }
            cns::IO_COMMAND_SET_INDEPENDENT_NAMESPACE => {
                self.about_namespace(nsid, |namespace| self.identify_independent(namespace))
            }
            cns::NAMESPACE_ATTACHED_CONTROLLER_LIST => {
                if nsid == NSID_BROADCAST {
                    return Err(Fault::invalid_field(field::NSID));
                }
                // Every controller attaches every namespace.
                self.active_namespace(nsid)?;
                Ok(self.controller_list(dwords.cntid()))
            }
            cns::CONTROLLER_LIST => Ok(self.controller_list(dwords.cntid())),
            cns::IO_COMMAND_SET => self.io_command_sets(dwords.cntid()),
            _ => Err(Fault::invalid_field(field::CDW10)),
        }?;
        host.write(&data)?;
        Ok(Outcome::DONE)
    }

    /// A data structure about a namespace: zeroes for one that is inactive. Without Namespace Management there is
    /// nothing to say about all of them (NSID FFFFFFFFh), which is an invalid namespace like any past NN
    /// (Base 2.0c, 5.17.2.1).
    fn about_namespace<T: IntoBytes + Immutable + FromZeros>(
        &self,
        nsid: u32,
        describe: impl FnOnce(&Namespace) -> T,
    ) -> Result<Vec<u8>, Fault> {
        if nsid == 0 || nsid > self.subsystem().nn() {
            return Err(Fault::invalid_namespace());
        }
        Ok(page(self.subsystem().namespace(nsid).map_or_else(T::new_zeroed, describe)))
    }

    /// Identify Controller (CNS 01h; Base 2.0c, Figure 275).
    fn identify_controller(&self) -> IdentifyController {
        let subsystem = self.subsystem();
        let cache = subsystem.namespaces().iter().any(Namespace::volatile_cache);
        let [high, middle, low] = OUI;
        IdentifyController {
            vid: self.options.pci_vendor_id,
            ssvid: self.options.pci_subsystem_vendor_id,
            sn: ascii(subsystem.serial()),
            mn: ascii(subsystem.model()),
            fr: self.firmware_revision(),
            // 2^6 commands at a time.
            rab: 6,
            ieee: [low, middle, high],
            cmic: Cmic::new().with_multiple_controllers(subsystem.multi_controller()),
            mdts: self.options.mdts,
            cntlid: self.cntlid(),
            ver: Version::V2_0,
            // A shutdown flushes, and hosts wait for it as long as this says.
            rtd3e: 10_000_000,
            oaes: Oaes::new().with_namespace_attribute(true),
            cntrltype: IdentifyController::CNTRLTYPE_IO,
            oacs: Oacs::new().with_doorbell_buffer_config(self.options.shadow_doorbells),
            acl: ABORT_LIMIT - 1,
            aerl: EVENT_REQUEST_LIMIT - 1,
            frmw: Frmw::new().with_slots(1).with_first_slot_read_only(true),
            lpa: Lpa::new()
                .with_commands_supported_and_effects(true)
                .with_extended_data(true)
                .with_supported_log_pages(true),
            elpe: (ERROR_LOG_ENTRIES - 1) as u8,
            wctemp: WARNING_TEMPERATURE,
            cctemp: CRITICAL_TEMPERATURE,
            // 64 and 16 bytes, at least and at most.
            sqes: EntrySizes::new().with_minimum(6).with_maximum(6),
            cqes: EntrySizes::new().with_minimum(4).with_maximum(4),
            nn: subsystem.nn(),
            oncs: Oncs::new()
                .with_compare(true)
                .with_dataset_management(true)
                .with_write_zeroes(true)
                .with_save_and_select(true)
                .with_timestamp(true)
                .with_verify(true),
            vwc: Vwc::new().with_present(cache).with_flush_broadcast(Vwc::FLUSH_BROADCAST_SUPPORTED),
            // One logical block: that much is whole, whatever happens.
            awun: 0,
            awupf: 0,
            sgls: self.options.sgls,
            subnqn: NvmeQualifiedName::new(subsystem.nqn()).unwrap_or_default(),
            // One power state, about which nothing is reported.
            ..Default::default()
        }
    }

    /// FR, which is log page 03h's too.
    pub(super) fn firmware_revision(&self) -> AsciiField<8> {
        ascii(&self.options.firmware_revision)
    }

    /// Identify Controller of the NVM command set (CNS 06h; NVM Command Set 1.0c, Figure 98). What is 0 has no limit.
    fn identify_controller_nvm(&self) -> IdentifyControllerNvm {
        IdentifyControllerNvm { wzsl: self.write_zeroes_limit(), ..Default::default() }
    }

    /// WZSL, as a power of two in pages of 4096 bytes: as much as one command can name, so it needs no check. Only
    /// where zeroes cost nothing; elsewhere hosts do well to keep to MDTS, which they do without it.
    fn write_zeroes_limit(&self) -> u8 {
        let namespaces = self.subsystem().namespaces();
        let Some(shift) = namespaces.first().map(Namespace::block_shift) else { return 0 };
        let alike = |it: &Namespace| it.block_shift() == shift && it.disk_info().fast_write_zeroes;
        // 65536 blocks.
        if namespaces.iter().all(alike) { 16 + shift - 12 } else { 0 }
    }

    /// Identify Namespace (CNS 00h and 11h; NVM Command Set 1.0c, Figure 97).
    fn identify_namespace(&self, namespace: &Namespace) -> IdentifyNamespace {
        let capacity = namespace.capacity_lbas();
        let granularity = Granularity::of(namespace);
        let atomic = granularity.atomic;
        let mut lbaf = [LbaFormat::default(); 64];
        lbaf[0] = LbaFormat::of(namespace.block_shift());
        IdentifyNamespace {
            nsze: capacity,
            ncap: capacity,
            nuse: capacity,
            // More than the controller's one logical block (AWUN, AWUPF).
            nsfeat: Nsfeat::new().with_optperf(true).with_nsabp(atomic > 0),
            nmic: self.nmic(),
            dlfeat: deallocation(namespace.disk_info().unmapped),
            // A write is one request to the disk, whatever its length, so it is as atomic as the disk is.
            nawun: atomic,
            nawupf: atomic,
            nvmcap: u128::from(namespace.capacity()).to_le_bytes(),
            npwg: granularity.write,
            npwa: granularity.write,
            npdg: granularity.deallocate,
            npda: granularity.deallocate,
            nows: granularity.optimal_write,
            nsattr: nsattr(namespace),
            nguid: namespace.nguid(),
            eui64: namespace.eui64(),
            lbaf,
            ..Default::default()
        }
    }

    /// I/O Command Set Independent Identify Namespace (CNS 08h; Base 2.0c, Figure 280).
    fn identify_independent(&self, namespace: &Namespace) -> IdentifyNamespaceIndependent {
        IdentifyNamespaceIndependent {
            nmic: self.nmic(),
            nsattr: nsattr(namespace),
            nstat: Nstat::new().with_nrdy(true),
            ..Default::default()
        }
    }

    fn nmic(&self) -> Nmic {
        Nmic::new().with_shared(self.subsystem().multi_controller())
    }

    /// Namespaces above an NSID, at most 1024 (CNS 02h, 07h and 10h).
    fn namespace_list(&self, above: u32) -> Result<Vec<u8>, Fault> {
        // Base 2.0c, 5.17.2.2.
        if above >= NSID_BROADCAST - 1 {
            return Err(Fault::invalid_namespace());
        }
        let nsids = self.subsystem().namespaces().iter().map(Namespace::nsid);
        Ok(page(nsids.filter(|&nsid| nsid > above).collect::<NamespaceList>()))
    }

    /// Controllers from an identifier up (CNS 12h and 13h).
    fn controller_list(&self, from: u16) -> Vec<u8> {
        let controllers = self.subsystem().controllers().into_iter();
        page(controllers.filter(|&cntlid| cntlid >= from).collect::<ControllerList>())
    }

    /// Identify I/O Command Set (CNS 1Ch; Base 2.0c, 5.17.2.21) for a controller; FFFFh is this one. One
    /// combination: the NVM command set.
    fn io_command_sets(&self, cntid: u16) -> Result<Vec<u8>, Fault> {
        if cntid != 0xffff && !self.subsystem().controllers().contains(&cntid) {
            return Err(Fault::invalid_field(field::CDW10 + 2));
        }
        Ok(page(IoCommandSetCombinations::nvm_only()))
    }
}

/// Refuses command sets that there are none of.
fn nvm_command_set(dwords: admin_command::Identify) -> Result<(), Fault> {
    match dwords.csi() {
        csi::NVM => Ok(()),
        _ => Err(Fault::invalid_field(field::CDW11 + 3)),
    }
}

/// What deallocated blocks read as, and whether Write Zeroes can deallocate: where discarding does anything, it can
/// be asked to leave zeroes.
fn deallocation(unmapped: Unmapped) -> Dlfeat {
    let read_behavior = match unmapped {
        Unmapped::Zeroes | Unmapped::ZeroesIfFreed => Dlfeat::READS_ZEROES,
        Unmapped::Unspecified | Unmapped::Ignored => Dlfeat::READS_NOT_REPORTED,
    };
    let deallocate = unmapped != Unmapped::Ignored;
    Dlfeat::new().with_read_behavior(read_behavior).with_write_zeroes_deallocate(deallocate)
}

fn nsattr(namespace: &Namespace) -> NsAttr {
    NsAttr::new().with_write_protected(namespace.read_only())
}

/// Sizes that the disk likes, in logical blocks, 0's based.
struct Granularity {
    write: u16,
    deallocate: u16,
    optimal_write: u16,
    atomic: u16,
}

impl Granularity {
    fn of(namespace: &Namespace) -> Self {
        let info = namespace.disk_info();
        let blocks = |bytes: u32| bytes.div_ceil(namespace.block_size()).clamp(1, 65536);
        let write = blocks(info.physical_block_size);
        // A multiple of the write granularity, and that itself where the disk has no opinion.
        let optimal = blocks(info.optimal_io) / write * write;
        let zeroes_based = |blocks: u32| (blocks.max(1) - 1) as u16;
        Self {
            write: zeroes_based(write),
            deallocate: zeroes_based(blocks(info.discard_granularity)),
            optimal_write: zeroes_based(optimal.max(write)),
            // Whole blocks only, unlike the others.
            atomic: zeroes_based((info.atomic_write / namespace.block_size()).min(65536)),
        }
    }
}

/// Namespace Identification Descriptor list (CNS 03h).
fn identification_descriptors(namespace: &Namespace) -> NamespaceIdentificationDescriptors {
    NamespaceIdentificationDescriptors::from_iter([
        NamespaceIdentifier::Eui64(namespace.eui64()),
        NamespaceIdentifier::Nguid(namespace.nguid()),
        NamespaceIdentifier::Uuid(namespace.uuid().into_bytes()),
        NamespaceIdentifier::Csi(csi::NVM),
    ])
}
