//! Commands of the admin queue: what is between the queue and [`crate::admin`], and what features change elsewhere.

use super::control::{Control, State, Then};
use super::queues::Queues;
use super::shared::Shared;
use crate::admin::{self, CommandError, HostBuffer, IoCounters, Machine, Outcome};
use crate::controller::ControllerCounters;
use crate::faults::Verdict;
use crate::memory::{Access, MemoryMap};
use crate::reactor::message::{ControllerIndex, ShardRequest};
use crate::transfer::{SegmentList, Walker};
use nvme_spec::admin_command::SetFeatures;
use nvme_spec::feature::fid;
use nvme_spec::identify::Sgls;
use nvme_spec::log_page::ParameterErrorLocation;
use nvme_spec::{Status, SubmissionQueueEntry};
use std::time::Duration;

impl Control {
    /// Executes a command of the admin queue.
    pub(super) fn admin(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry) {
        let controller = &mut self.controllers[index];
        if controller.state != State::Enabled {
            return;
        }
        controller.take_reports();
        let faults = controller.shared.faults.as_ref();
        let corrupt = match faults.map_or(Verdict::Execute, |faults| faults.on_command(0, sqe)) {
            Verdict::Execute => None,
            Verdict::Corrupt(offset, bytes) => Some((offset, bytes)),
            // For the reactor it is as if the command had been parked.
            Verdict::Ignore => return controller.to_home(ShardRequest::ParkAdmin),
            Verdict::Fail(status) => return controller.complete_admin(sqe.cid, status, 0),
        };
        let page_size = controller.shared.registers.cc().memory_page_size();
        let map = controller.map.clone();
        let mut buffer = CommandBuffer { map: &map, page_size, sqe, corrupt };
        let machine = View { shared: &controller.shared, queues: &controller.queues };
        match controller.admin.execute(sqe, &mut buffer, &machine) {
            Outcome::Complete { dw0, changed: false } => {
                controller.complete_admin(sqe.cid, Status::SUCCESS, dw0);
            }
            Outcome::Complete { dw0, changed: true } => self.tune(index, sqe, dw0),
            Outcome::Failed(status) => controller.complete_admin(sqe.cid, status, 0),
            Outcome::Parked => controller.to_home(ShardRequest::ParkAdmin),
            Outcome::NotMine => self.queue_command(index, sqe),
        }
        self.controllers[index].post_events();
        if self.controllers[index].shared.fault.is_set() {
            self.fault(index);
        }
    }

    /// Features have changed: the command completes when all reactors know, and if it has switched the volatile write
    /// cache off, when everything that is in there is durable: from then on, whatever has completed is.
    fn tune(&mut self, index: ControllerIndex, sqe: &SubmissionQueueEntry, dw0: u32) {
        let controller = &mut self.controllers[index];
        let mut emptying = None;
        if sqe.dwords::<SetFeatures>().fid() == fid::VOLATILE_WRITE_CACHE {
            if controller.admin.features().volatile_write_cache() {
                controller.write_cache.allow();
            } else {
                emptying = controller.write_cache.switched_off();
            }
        }
        let (tuning, home) = (controller.tuning(), controller.shared.home);
        let disables = controller.handled_disables;
        let sqe = *sqe;
        let complete = move |control: &mut Self, result: Result<(), i32>| {
            let controller = &mut control.controllers[index];
            // A reset that has overtaken it has taken the command with it.
            if controller.handled_disables == disables && controller.state == State::Enabled {
                if let (Some(emptying), Ok(())) = (emptying, result) {
                    controller.write_cache.emptied(emptying);
                }
                let result = result.map(|()| dw0).map_err(|_| Status::WRITE_FAULT);
                control.complete(index, &sqe, result);
            }
        };
        let then: Then = Box::new(move |control, _| {
            if emptying.is_some() {
                control.ask(index, home, ShardRequest::FlushAll, Box::new(complete));
            } else {
                complete(control, Ok(()));
            }
        });
        // Writes from before are not durable when they complete. A command that has switched the cache off before this one
        // may still be waiting for them.
        let settle = emptying.is_some();
        self.ask_all(index, || ShardRequest::Tuning { tuning: tuning.clone(), settle }, then);
    }

    /// Ends a command of the admin queue that the core executed itself.
    pub(super) fn complete(
        &mut self,
        index: ControllerIndex,
        sqe: &SubmissionQueueEntry,
        result: Result<u32, Status>,
    ) {
        let controller = &mut self.controllers[index];
        let (status, dw0) = match result {
            Ok(dw0) => (Status::SUCCESS, dw0),
            Err(status) => {
                let error = CommandError {
                    sqid: 0,
                    cid: sqe.cid,
                    status,
                    location: ParameterErrorLocation::NONE,
                    lba: 0,
                    nsid: sqe.nsid,
                };
                (controller.admin.record_error(error), 0)
            }
        };
        controller.complete_admin(sqe.cid, status, dw0);
        controller.post_events();
    }
}

/// An admin command's data, in guest memory.
struct CommandBuffer<'a> {
    map: &'a MemoryMap,
    page_size: u64,
    sqe: &'a SubmissionQueueEntry,
    /// Bytes that a fault has changed, and where.
    corrupt: Option<(usize, Vec<u8>)>,
}

impl CommandBuffer<'_> {
    fn walk(&self, len: usize, access: Access) -> Result<SegmentList, Status> {
        let mut list = SegmentList::new();
        let mut walker = Walker { map: self.map, page_size: self.page_size, hint: &mut 0, list: &mut list };
        walker.walk(self.sqe, len, access)?;
        Ok(list)
    }
}

impl HostBuffer for CommandBuffer<'_> {
    fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        let segments = self.walk(data.len(), Access::Write)?;
        let Some((offset, bytes)) = &self.corrupt else {
            segments.write(data);
            return Ok(());
        };
        let mut data = data.to_vec();
        let from = (*offset).min(data.len());
        let len = bytes.len().min(data.len() - from);
        data[from..from + len].copy_from_slice(&bytes[..len]);
        segments.write(&data);
        Ok(())
    }

    fn read(&mut self, data: &mut [u8]) -> Result<(), Status> {
        self.walk(data.len(), Access::Read)?.read(data);
        Ok(())
    }
}

/// The controller around its admin commands.
struct View<'a> {
    shared: &'a Shared,
    queues: &'a Queues,
}

impl Machine for View<'_> {
    fn io_counters(&self) -> IoCounters {
        let sum = ControllerCounters::sum(
            &self.shared.counters,
            self.shared.shard_counters.iter().map(AsRef::as_ref),
            false,
        );
        IoCounters {
            bytes_read: sum.bytes_read + sum.bytes_compared,
            bytes_written: sum.bytes_written,
            read_commands: sum.reads + sum.compares,
            write_commands: sum.writes,
            busy: Duration::from_nanos(sum.busy_ns),
        }
    }

    fn has_io_queues(&self) -> bool {
        self.queues.any()
    }

    fn has_completion_queue_on(&self, vector: u16) -> bool {
        self.queues.has_vector(vector)
    }
}

/// The options of a controller's admin commands.
pub(crate) fn admin_options(io_queues: u16, mdts: u8, shadow_doorbells: bool) -> admin::Options {
    admin::Options {
        io_queues,
        vectors: io_queues + 1,
        mdts,
        shadow_doorbells,
        // Byte-aligned data blocks and segments; lists may be longer than the data.
        sgls: Sgls::new().with_support(Sgls::SUPPORTED).with_excess_length(true),
        pci_vendor_id: crate::pci::config_space::VENDOR_ID,
        pci_subsystem_vendor_id: crate::pci::config_space::VENDOR_ID,
        firmware_revision: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
