//! The admin commands, one behaviour a test. A [`Bench`] is a controller with a fake host and a fake machine
//! around it.

mod events;
mod features;
mod identify;
mod logs;
mod random;

use super::*;
use crate::namespace::tests::{described, namespace};
use crate::subsystem::SubsystemOptions;
use block_core::DiskInfo;
use nvme_spec::{NSID_BROADCAST, admin_command};

/// Data buffer of the host: a page of it, or none.
#[derive(Default)]
pub(super) struct Host {
    pub(super) data: Vec<u8>,
    pub(super) fails: Option<Status>,
}

impl HostBuffer for Host {
    fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        self.data = data.to_vec();
        self.fails.map_or(Ok(()), Err)
    }

    fn read(&mut self, data: &mut [u8]) -> Result<(), Status> {
        data.copy_from_slice(&self.data[..data.len()]);
        self.fails.map_or(Ok(()), Err)
    }
}

#[derive(Default)]
pub(super) struct FakeMachine {
    pub(super) counters: IoCounters,
    pub(super) vectors_in_use: Vec<u16>,
}

impl Machine for FakeMachine {
    fn io_counters(&self) -> IoCounters {
        self.counters
    }

    fn has_io_queues(&self) -> bool {
        !self.vectors_in_use.is_empty()
    }

    fn has_completion_queue_on(&self, vector: u16) -> bool {
        self.vectors_in_use.contains(&vector)
    }
}

pub(super) struct Bench {
    pub(super) admin: Admin,
    pub(super) host: Host,
    pub(super) machine: FakeMachine,
}

pub(super) fn options() -> Options {
    Options {
        io_queues: 8,
        vectors: 9,
        mdts: 5,
        shadow_doorbells: true,
        sgls: Sgls::new().with_support(Sgls::SUPPORTED),
        pci_vendor_id: 0x1234,
        pci_subsystem_vendor_id: 0x5678,
        firmware_revision: "0.1.0".into(),
    }
}

impl Bench {
    /// Namespaces 1 (512-byte blocks, `info`) and 3 (4096-byte blocks).
    pub(super) fn on(info: DiskInfo, options: Options) -> Self {
        let namespaces = vec![namespace(1, info, Some(512)), namespace(3, described(), Some(4096))];
        let subsystem = SubsystemOptions { serial: Some("SERIAL".into()), ..Default::default() };
        let subsystem = Subsystem::new(subsystem, namespaces).unwrap();
        let admin = Admin::new(&subsystem, options).unwrap();
        Self { admin, host: Host::default(), machine: FakeMachine::default() }
    }

    pub(super) fn new() -> Self {
        Self::on(described(), options())
    }

    pub(super) fn execute(&mut self, sqe: SubmissionQueueEntry) -> Outcome {
        self.admin.execute(&sqe, &mut self.host, &self.machine)
    }

    /// Executes a command that succeeds, and returns Dword 0.
    #[track_caller]
    pub(super) fn succeed(&mut self, sqe: SubmissionQueueEntry) -> u32 {
        match self.execute(sqe) {
            Outcome::Complete { dw0, .. } => dw0,
            other => panic!("{other:?}"),
        }
    }

    /// Executes a command that fails, and returns its status without flags.
    #[track_caller]
    pub(super) fn fail(&mut self, sqe: SubmissionQueueEntry) -> Status {
        match self.execute(sqe) {
            Outcome::Failed(status) => status.code(),
            other => panic!("{other:?}"),
        }
    }

    /// Completions of Asynchronous Event Requests that there are to post.
    pub(super) fn events(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.admin.take_event_completion()).map(|done| (done.cid, done.dw0)).collect()
    }

    /// Reads a log page from its start, without Retain Asynchronous Event.
    #[track_caller]
    pub(super) fn log(&mut self, lid: u8, bytes: u64) -> Vec<u8> {
        self.succeed(get_log(lid, bytes));
        self.host.data.clone()
    }
}

pub(super) fn command(opcode: AdminOpcode) -> SubmissionQueueEntry {
    SubmissionQueueEntry::new(opcode, 0x77)
}

pub(super) fn identify(cns: u8, nsid: u32) -> SubmissionQueueEntry {
    let dwords = admin_command::Identify::new().with_cns(cns);
    command(AdminOpcode::IDENTIFY).with_nsid(nsid).with_dwords(dwords)
}

pub(super) fn get_log(lid: u8, bytes: u64) -> SubmissionQueueEntry {
    let dwords = admin_command::GetLogPage::new().with_lid(lid).with_number_of_bytes(bytes);
    command(AdminOpcode::GET_LOG_PAGE).with_dwords(dwords)
}

pub(super) fn set_feature(fid: u8, dw11: u32) -> SubmissionQueueEntry {
    let mut sqe =
        command(AdminOpcode::SET_FEATURES).with_dwords(admin_command::SetFeatures::new().with_fid(fid));
    sqe.cdw11 = dw11;
    sqe
}

pub(super) fn get_feature(fid: u8, sel: u8, dw11: u32) -> SubmissionQueueEntry {
    let dwords = admin_command::GetFeatures::new().with_fid(fid).with_sel(sel);
    let mut sqe = command(AdminOpcode::GET_FEATURES).with_dwords(dwords);
    sqe.cdw11 = dw11;
    sqe
}

pub(super) fn u16_at(data: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(data[offset..offset + 2].try_into().unwrap())
}

pub(super) fn u32_at(data: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap())
}

pub(super) fn u64_at(data: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(data[offset..offset + 8].try_into().unwrap())
}

#[test]
fn opcodes_that_are_not_offered_are_invalid() {
    let mut bench = Bench::new();
    for opcode in 0..=0xff {
        let offered = bench.admin.offers_command(AdminOpcode(opcode));
        let outcome = bench.execute(command(AdminOpcode(opcode)));
        let invalid = matches!(outcome, Outcome::Failed(status) if status.is(Status::INVALID_OPCODE));
        assert_eq!(offered, !invalid, "{}", AdminOpcode(opcode));
    }
}

#[test]
fn queues_abort_and_doorbell_buffers_are_left_to_the_core() {
    let mut bench = Bench::new();
    for opcode in [
        AdminOpcode::CREATE_IO_COMPLETION_QUEUE,
        AdminOpcode::CREATE_IO_SUBMISSION_QUEUE,
        AdminOpcode::DELETE_IO_COMPLETION_QUEUE,
        AdminOpcode::DELETE_IO_SUBMISSION_QUEUE,
        AdminOpcode::ABORT,
        AdminOpcode::DOORBELL_BUFFER_CONFIG,
    ] {
        assert_eq!(bench.execute(command(opcode)), Outcome::NotMine);
    }
}

#[test]
fn doorbell_buffer_config_is_no_command_where_it_is_not_offered() {
    let mut bench = Bench::on(described(), Options { shadow_doorbells: false, ..options() });
    assert_eq!(bench.fail(command(AdminOpcode::DOORBELL_BUFFER_CONFIG)), Status::INVALID_OPCODE);
    bench.succeed(identify(1, 0));
    assert_eq!(u16_at(&bench.host.data, 256), 0);
}

#[test]
fn admin_commands_are_neither_fused_nor_use_sgls() {
    let mut bench = Bench::new();
    let mut fused = identify(1, 0);
    fused.flags.set_fuse(FusedOperation::First);
    assert_eq!(bench.fail(fused), Status::INVALID_FIELD);
    let mut sgl = identify(1, 0);
    sgl.flags.set_psdt(CommandFlags::PSDT_SGL);
    assert_eq!(bench.fail(sgl), Status::INVALID_FIELD);
}

#[test]
fn a_buffer_that_cannot_be_reached_fails_the_command() {
    let mut bench = Bench::new();
    bench.host.fails = Some(Status::DATA_TRANSFER_ERROR);
    assert_eq!(bench.fail(identify(1, 0)), Status::DATA_TRANSFER_ERROR);
    assert_eq!(bench.fail(get_log(2, 512)), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn errors_of_the_guests_making_say_not_to_retry_and_that_there_is_more() {
    let mut bench = Bench::new();
    let Outcome::Failed(status) = bench.execute(identify(0xff, 0)) else { panic!() };
    assert!(status.dnr() && status.more());
}
