//! The commands of the NVM command set (NVM Command Set Specification, "I/O commands").

use nvme_spec::nvm_command::{
    Compare, CopyRanges, CopySourceRange, DatasetManagement, DatasetManagementRange, ReadWrite, Verify,
    WriteZeroes,
};
use nvme_spec::{NvmOpcode, SubmissionQueueEntry};

use zerocopy::IntoBytes;

use super::{QueuePair, SubmitError};
use crate::dma::DmaRange;
use crate::namespace::Namespace;

/// Source ranges of a Copy that fit into a memory page of the smallest size.
pub(crate) const MAX_COPY_RANGES: usize = 128;

impl QueuePair {
    /// Reads blocks.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`]; nothing was submitted then. The same holds for all commands.
    #[inline]
    pub fn read(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        data: impl AsRef<[DmaRange]>,
        token: u64,
    ) -> Result<(), SubmitError> {
        let dwords = ReadWrite::new().with_slba(slba).with_number_of_logical_blocks(blocks);
        let command = command(NvmOpcode::READ, namespace).with_dwords(dwords);
        self.transfer(namespace, blocks, command, data.as_ref(), token)
    }

    /// Writes blocks; with `fua`, durably.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    #[inline]
    pub fn write(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        data: impl AsRef<[DmaRange]>,
        fua: bool,
        token: u64,
    ) -> Result<(), SubmitError> {
        let dwords = ReadWrite::new().with_slba(slba).with_number_of_logical_blocks(blocks).with_fua(fua);
        let command = command(NvmOpcode::WRITE, namespace).with_dwords(dwords);
        self.transfer(namespace, blocks, command, data.as_ref(), token)
    }

    /// Compares blocks with data; a difference is [`nvme_spec::Status::COMPARE_FAILURE`].
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn compare(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        data: impl AsRef<[DmaRange]>,
        token: u64,
    ) -> Result<(), SubmitError> {
        let dwords = Compare::new().with_slba(slba).with_number_of_logical_blocks(blocks);
        let command = command(NvmOpcode::COMPARE, namespace).with_dwords(dwords);
        self.transfer(namespace, blocks, command, data.as_ref(), token)
    }

    /// Has the controller read blocks without transferring them.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn verify(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        token: u64,
    ) -> Result<(), SubmitError> {
        check_blocks(blocks)?;
        let dwords = Verify::new().with_slba(slba).with_number_of_logical_blocks(blocks);
        self.submit(command(NvmOpcode::VERIFY, namespace).with_dwords(dwords), token)
    }

    /// Makes blocks read as zeroes; with `deac`, they may be deallocated; with `fua`, durably.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn write_zeroes(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        deac: bool,
        fua: bool,
        token: u64,
    ) -> Result<(), SubmitError> {
        check_blocks(blocks)?;
        let dwords = WriteZeroes::new().with_slba(slba).with_number_of_logical_blocks(blocks);
        let dwords = dwords.with_deac(deac).with_fua(fua);
        self.submit(command(NvmOpcode::WRITE_ZEROES, namespace).with_dwords(dwords), token)
    }

    /// Makes all writes that have completed durable.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn flush(&mut self, namespace: &Namespace, token: u64) -> Result<(), SubmitError> {
        self.submit(command(NvmOpcode::FLUSH, namespace), token)
    }

    /// Dataset Management with 1 to 256 ranges. `attributes` is CDW11 of it, its number of ranges is filled in.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn dataset_management(
        &mut self,
        namespace: &Namespace,
        attributes: DatasetManagement,
        ranges: &[DatasetManagementRange],
        token: u64,
    ) -> Result<(), SubmitError> {
        if !(1..=256).contains(&ranges.len()) {
            return Err(SubmitError::Count(ranges.len()));
        }
        let dwords = attributes.with_number_of_ranges(ranges.len() as u32);
        let command = command(NvmOpcode::DATASET_MANAGEMENT, namespace).with_dwords(dwords);
        self.submit_with_list(command, ranges.as_bytes(), token)
    }

    /// Has the controller copy 1 to 128 ranges, one behind the other, to `to`; with `fua`, durably. A controller has it
    /// if [`nvme_spec::identify::Oncs::copy`] says so, and in as much at once as [`Namespace::copy_limits`] says.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::read`].
    pub fn copy(
        &mut self,
        namespace: &Namespace,
        to: u64,
        ranges: &[CopySourceRange],
        fua: bool,
        token: u64,
    ) -> Result<(), SubmitError> {
        if !(1..=MAX_COPY_RANGES).contains(&ranges.len()) {
            return Err(SubmitError::Count(ranges.len()));
        }
        let dwords = CopyRanges::new().with_sdlba(to).with_fua(fua);
        let dwords = dwords.with_number_of_ranges(ranges.len() as u32);
        let command = command(NvmOpcode::COPY, namespace).with_dwords(dwords);
        self.submit_with_list(command, ranges.as_bytes(), token)
    }

    /// Submits a command whose data is a list of its own, of a memory page at most.
    fn submit_with_list(
        &mut self,
        command: SubmissionQueueEntry,
        entries: &[u8],
        token: u64,
    ) -> Result<(), SubmitError> {
        debug_assert!(entries.len() <= 4096);
        self.check_room()?;
        let index = self.commands.next().ok_or(SubmitError::Full)?;
        let list = self.lists.of(index);
        // SAFETY: the smallest memory page has 4096 bytes, the list of a command that is not in flight is nobody
        // else's, and `entries`, being a reference, is elsewhere.
        unsafe {
            let to = list.base.cast::<u8>().as_ptr();
            std::ptr::copy_nonoverlapping(entries.as_ptr(), to, entries.len());
        }
        self.post(command.with_prp(list.iova, 0), token)
    }

    /// Checks a read's or write's length and submits it.
    #[inline]
    fn transfer(
        &mut self,
        namespace: &Namespace,
        blocks: u32,
        command: SubmissionQueueEntry,
        data: &[DmaRange],
        token: u64,
    ) -> Result<(), SubmitError> {
        check_blocks(blocks)?;
        let len = u64::from(blocks) << namespace.block_shift();
        let sum = data.iter().map(|range| u64::from(range.len)).sum();
        if len != sum {
            return Err(SubmitError::Length { blocks: len, data: sum });
        }
        if len > self.max_transfer.into() {
            return Err(SubmitError::TooLong { len, max: self.max_transfer });
        }
        self.submit_with_data(command, data, token)
    }
}

#[inline]
fn command(opcode: NvmOpcode, namespace: &Namespace) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(opcode, 0).with_nsid(namespace.nsid())
}

#[inline]
fn check_blocks(blocks: u32) -> Result<(), SubmitError> {
    if (1..=0x1_0000).contains(&blocks) { Ok(()) } else { Err(SubmitError::Count(blocks as usize)) }
}
