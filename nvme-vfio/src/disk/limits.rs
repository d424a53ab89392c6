//! What Identify says, as the disk's description and as where requests are split.

use block_core::{DiskInfo, Unmapped};
use nvme_spec::admin_command::Identify;
use nvme_spec::identify::{
    Dlfeat, IdentifyController, IdentifyControllerNvm, IdentifyNamespace, Sgls, cns, csi,
};
use nvme_spec::registers::Version;
use nvme_spec::{AdminOpcode, SubmissionQueueEntry};
use zerocopy::{FromZeros, IntoBytes};

use crate::admin::AdminData;
use crate::controller::Controller;
use crate::error::Error;
use crate::namespace::Namespace;

/// Most blocks that a command can name (NLB is 16 bits, 0's based).
const MAX_BLOCKS: u64 = 1 << 16;
/// Most that goes through bounce pages in one command: enough that the copy and not the command decides what it costs.
const MAX_BOUNCE: u32 = 128 << 10;
/// Most ranges in a Dataset Management command (NR is 8 bits, 0's based).
const MAX_RANGES: usize = 256;

/// Limits of the commands of one namespace. Sizes in bytes, and multiples of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// A logical block has 2^this bytes.
    pub(super) block_shift: u32,
    /// Largest read or write.
    pub(super) max_transfer: u32,
    /// Largest read or write through bounce pages.
    pub(super) max_bounce: u32,
    /// Reads and writes larger than `atomic` had better not cross multiples of this (NOIOB); 0: there are none.
    pub(super) boundary: u64,
    /// Largest write that is atomic, also when the power fails: never split.
    pub(super) atomic: u32,
    /// Largest Write Zeroes; 0: the controller has none.
    pub(super) write_zeroes: u64,
    /// Whether Write Zeroes may deallocate and still leaves zeroes.
    pub(super) deallocating_zeroes: bool,
    /// Dataset Management, if the controller has it.
    pub(super) discard: Option<DiscardLimits>,
    /// Whether there is a volatile write cache to flush.
    pub(super) volatile_cache: bool,
}

/// Limits of a Dataset Management command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiscardLimits {
    /// Most ranges.
    pub(super) ranges: usize,
    /// Most blocks in a range.
    pub(super) range_lbas: u32,
    /// Most blocks in all.
    pub(super) lbas: u64,
}

impl Limits {
    /// The limits of a namespace; if it cannot be a disk, why.
    pub(super) fn new(
        namespace: &Namespace,
        controller: &IdentifyController,
        nvm: &IdentifyControllerNvm,
        max_transfer: u32,
        minimum_page: u64,
    ) -> Result<Self, String> {
        let (block, block_shift) = (namespace.block_size(), namespace.block_shift());
        let whole_blocks = |bytes: u64| (bytes >> block_shift << block_shift) as u32;
        let max_transfer = whole_blocks(u64::from(max_transfer).min(MAX_BLOCKS << block_shift));
        if max_transfer == 0 {
            return Err(format!("its blocks of {block} bytes are more than the largest transfer"));
        }
        let max_bounce = whole_blocks(MAX_BOUNCE.min(max_transfer).into()).max(block);
        let identify = namespace.identify();
        let has_zeroes = controller.oncs.write_zeroes();
        Ok(Self {
            block_shift,
            max_transfer,
            max_bounce,
            boundary: u64::from(identify.noiob) << block_shift,
            atomic: atomic(identify, controller, block).min(max_bounce),
            write_zeroes: if has_zeroes {
                write_zeroes(nvm, max_transfer, minimum_page, block_shift)
            } else {
                0
            },
            deallocating_zeroes: has_zeroes
                && identify.dlfeat.write_zeroes_deallocate()
                && identify.dlfeat.read_behavior() == Dlfeat::READS_ZEROES,
            discard: controller.oncs.dataset_management().then(|| DiscardLimits::new(nvm)),
            volatile_cache: controller.vwc.present(),
        })
    }

    /// Size of a block in bytes.
    #[inline]
    pub(super) fn block(&self) -> u64 {
        1 << self.block_shift
    }

    /// How many of `len` bytes, whole blocks as is `offset`, one read or write takes.
    #[inline]
    pub(super) fn split(&self, offset: u64, len: u64) -> u32 {
        let len = len.min(self.max_transfer.into());
        if self.boundary == 0 || len <= self.atomic.into() {
            return len as u32;
        }
        len.min(self.boundary - offset % self.boundary) as u32
    }

    /// What the disk is like.
    pub(super) fn describe(&self, namespace: &Namespace, sgls: Sgls, read_only: bool) -> DiskInfo {
        let identify = namespace.identify();
        let block = namespace.block_size();
        // NSFEAT.OPTPERF says whether these mean anything; 0's based.
        let hint = |lbas: u16| {
            let lbas = if identify.nsfeat.optperf() { u64::from(lbas) + 1 } else { 1 };
            u32::try_from(lbas << self.block_shift).unwrap_or(block)
        };
        DiskInfo {
            capacity: namespace.capacity(),
            logical_block_size: block,
            physical_block_size: hint(identify.npwg),
            request_alignment: block,
            memory_alignment: if sgls.support() == Sgls::SUPPORTED { 1 } else { 4 },
            max_transfer: self.max_transfer,
            volatile_cache: self.volatile_cache,
            read_only: read_only || identify.nsattr.write_protected(),
            unmapped: match (self.discard, identify.dlfeat.read_behavior()) {
                (None, _) => Unmapped::Ignored,
                (Some(_), Dlfeat::READS_ZEROES) => Unmapped::ZeroesIfFreed,
                (Some(_), _) => Unmapped::Unspecified,
            },
            discard_granularity: hint(identify.npdg),
            fast_write_zeroes: self.write_zeroes > 0,
            optimal_io: if identify.nsfeat.optperf() { hint(identify.nows) } else { 0 },
            atomic_write: self.atomic,
        }
    }
}

/// Largest write that is all or nothing when the power fails.
fn atomic(identify: &IdentifyNamespace, controller: &IdentifyController, block: u32) -> u32 {
    // A boundary that atomic writes must not cross: promise no more than what cannot cross one.
    if identify.nsfeat.nsabp() && identify.nabspf != 0 {
        return block;
    }
    // 0's based; NAWUPF of 0 means AWUPF.
    let namespaces = if identify.nsfeat.nsabp() { identify.nawupf } else { 0 };
    let lbas = u32::from(namespaces.max(controller.awupf)) + 1;
    lbas.saturating_mul(block)
}

/// Largest Write Zeroes. A controller that names no limit of its own may mean MDTS: Linux keeps to it, so that is what
/// controllers are tested with.
fn write_zeroes(nvm: &IdentifyControllerNvm, max_transfer: u32, minimum_page: u64, block_shift: u32) -> u64 {
    let limit = match nvm.wzsl {
        0 => u64::from(max_transfer),
        wzsl => minimum_page.checked_shl(wzsl.into()).filter(|limit| *limit > 0).unwrap_or(u64::MAX),
    };
    (limit.min(MAX_BLOCKS << block_shift) >> block_shift << block_shift).max(1 << block_shift)
}

impl DiscardLimits {
    fn new(nvm: &IdentifyControllerNvm) -> Self {
        // 0: no limit but the field's.
        Self {
            ranges: if nvm.dmrl == 0 { MAX_RANGES } else { nvm.dmrl.into() },
            range_lbas: if nvm.dmrsl == 0 { u32::MAX } else { nvm.dmrsl },
            lbas: if nvm.dmsl == 0 { u64::MAX } else { nvm.dmsl },
        }
    }
}

/// Identify Controller of the NVM command set; all zeroes, no limits, where the controller does not have it.
pub(super) fn identify_nvm(controller: &Controller) -> Result<Box<IdentifyControllerNvm>, Error> {
    let mut nvm = Box::new(IdentifyControllerNvm::new_zeroed());
    // Asked before, it would be an error in the controller's log.
    if controller.version() < Version::new().with_mjr(1).with_mnr(4) {
        return Ok(nvm);
    }
    let dwords = Identify::new().with_cns(cns::IO_COMMAND_SET_CONTROLLER).with_csi(csi::NVM);
    let command = SubmissionQueueEntry::new(AdminOpcode::IDENTIFY, 0).with_dwords(dwords);
    match controller.admin(command, AdminData::FromController(nvm.as_mut_bytes())) {
        Ok(_) => Ok(nvm),
        Err(Error::Command { .. }) => Ok(Box::new(IdentifyControllerNvm::new_zeroed())),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_spec::identify::{LbaFormat, NsAttr, Nsfeat, Oncs, Vwc};
    use proptest::prelude::*;

    fn namespace(lbads: u8, change: impl FnOnce(&mut IdentifyNamespace)) -> Namespace {
        let mut identify = Box::new(IdentifyNamespace { nsze: 1 << 20, ..Default::default() });
        identify.lbaf[0] = LbaFormat::of(lbads);
        change(&mut identify);
        Namespace::new(1, identify).unwrap()
    }

    fn limits(
        namespace: &Namespace,
        controller: impl FnOnce(&mut IdentifyController),
        nvm: IdentifyControllerNvm,
    ) -> Limits {
        let mut identify = IdentifyController::new_zeroed();
        controller(&mut identify);
        Limits::new(namespace, &identify, &nvm, 1 << 20, 4096).unwrap()
    }

    fn plain(namespace: &Namespace) -> Limits {
        limits(namespace, |_| {}, IdentifyControllerNvm::default())
    }

    #[test]
    fn a_controller_without_the_optional_commands_is_asked_for_none() {
        let limits = plain(&namespace(9, |_| {}));
        assert_eq!((limits.write_zeroes, limits.discard, limits.volatile_cache), (0, None, false));
        let info = limits.describe(&namespace(9, |_| {}), Sgls::new(), false);
        assert_eq!((info.unmapped, info.fast_write_zeroes), (Unmapped::Ignored, false));
        assert_eq!((info.optimal_io, info.physical_block_size, info.atomic_write), (0, 512, 512));
        assert_eq!((info.capacity, info.memory_alignment, info.read_only), (512 << 20, 4, false));
    }

    #[test]
    fn hints_count_only_where_the_namespace_says_that_they_do() {
        let said = |optperf| {
            let namespace = namespace(9, |id| {
                id.nsfeat = Nsfeat::new().with_optperf(optperf);
                (id.npwg, id.npdg, id.nows) = (7, 127, 2047);
            });
            let info = plain(&namespace).describe(&namespace, Sgls::new(), false);
            (info.physical_block_size, info.discard_granularity, info.optimal_io)
        };
        assert_eq!(said(true), (4096, 65536, 1 << 20));
        assert_eq!(said(false), (512, 512, 0));
    }

    #[test]
    fn atomicity_is_the_namespaces_or_the_controllers_and_a_block_where_there_are_boundaries() {
        let atomic = |nsabp, nawupf, nabspf, awupf| {
            let namespace = namespace(9, |id| {
                id.nsfeat = Nsfeat::new().with_nsabp(nsabp);
                (id.nawupf, id.nabspf) = (nawupf, nabspf);
            });
            limits(&namespace, |id| id.awupf = awupf, IdentifyControllerNvm::default()).atomic
        };
        assert_eq!(atomic(false, 31, 0, 0), 512, "not the namespace's");
        assert_eq!(atomic(true, 31, 0, 7), 16384);
        assert_eq!(atomic(true, 0, 0, 7), 4096, "as the controller");
        assert_eq!(atomic(true, 31, 7, 7), 512, "with a boundary");
        assert_eq!(atomic(true, u16::MAX, 0, 0), MAX_BOUNCE, "what is never split");
    }

    #[test]
    fn write_zeroes_keeps_to_its_own_limit_or_to_that_of_transfers() {
        let zeroes = |wzsl| {
            let namespace = namespace(9, |_| {});
            let nvm = IdentifyControllerNvm { wzsl, ..Default::default() };
            limits(&namespace, |id| id.oncs = Oncs::new().with_write_zeroes(true), nvm).write_zeroes
        };
        assert_eq!(zeroes(0), 1 << 20);
        assert_eq!(zeroes(3), 32 << 10);
        assert_eq!(zeroes(200), 32 << 20, "65,536 blocks");
    }

    #[test]
    fn the_flags_of_a_drive_are_the_disks() {
        let namespace = namespace(12, |id| {
            id.nsattr = NsAttr::new().with_write_protected(true);
            id.dlfeat =
                Dlfeat::new().with_read_behavior(Dlfeat::READS_ZEROES).with_write_zeroes_deallocate(true);
        });
        let oncs = Oncs::new().with_write_zeroes(true).with_dataset_management(true);
        let limits = limits(
            &namespace,
            |id| (id.oncs, id.vwc) = (oncs, Vwc::new().with_present(true)),
            IdentifyControllerNvm { dmrl: 16, dmrsl: 100, ..Default::default() },
        );
        assert_eq!(limits.discard, Some(DiscardLimits { ranges: 16, range_lbas: 100, lbas: u64::MAX }));
        assert!(limits.deallocating_zeroes);
        let info = limits.describe(&namespace, Sgls::new().with_support(Sgls::SUPPORTED), false);
        assert!(info.read_only && info.volatile_cache && info.fast_write_zeroes);
        assert_eq!((info.unmapped, info.memory_alignment), (Unmapped::ZeroesIfFreed, 1));
        assert_eq!(info.logical_block_size, 4096);
    }

    #[test]
    fn blocks_larger_than_a_transfer_cannot_be_used() {
        let identify = IdentifyController::new_zeroed();
        let nvm = IdentifyControllerNvm::default();
        let error = Limits::new(&namespace(17, |_| {}), &identify, &nvm, 65536, 4096).unwrap_err();
        assert!(error.contains("131072"), "{error}");
    }

    proptest! {
        #[test]
        fn pieces_are_whole_blocks_inside_the_limits_and_cross_no_boundary(
            noiob in prop_oneof![Just(0u16), 1u16..200], start in 0u64..10_000, blocks in 1u64..5_000,
        ) {
            let limits = plain(&namespace(9, |id| id.noiob = noiob));
            let boundary = u64::from(noiob) * 512;
            let (mut at, end) = (start * 512, (start + blocks) * 512);
            while at < end {
                let n = u64::from(limits.split(at, end - at));
                prop_assert!(n > 0 && n.is_multiple_of(512) && n <= 1 << 20 && at + n <= end);
                if boundary > 0 && n > 512 {
                    prop_assert_eq!(at / boundary, (at + n - 1) / boundary);
                }
                at += n;
            }
        }
    }
}
