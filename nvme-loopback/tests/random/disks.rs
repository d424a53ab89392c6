//! The work on a disk: requests of any length, into memory that is registered and memory that is not.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block_core::{
    Completion, Disk, Operation, Queue, Request, RequestFlags, RequestResult, Segment, Submission,
};
use nvme_vfio::Controller;
use nvme_vfio::disk::{Drive, NvmeDisk};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::model::{Effect, SLOT};
use super::workload::{Outcome, Side, Taken, Work};
use super::{Case, Random};
use crate::drive::memory::SharedMemory;

pub struct Disks {
    queues: Vec<Option<Box<dyn Queue>>>,
    disk: NvmeDisk,
    pub drive: Arc<Drive>,
    depth: u16,
    memory: SharedMemory,
    /// Which the drive reaches.
    registered: SharedMemory,
    is_registered: bool,
}

impl Disks {
    pub fn new(case: &Case, controller: Controller) -> Result<Self, String> {
        let drive = Drive::new(controller).map_err(|error| error.to_string())?;
        let disk = drive.disk(1, false).map_err(|error| error.to_string())?;
        let slots = case.slots();
        let registered = SharedMemory::new(slots * SLOT);
        let memory = SharedMemory::new(slots * SLOT);
        // What cannot be registered is bounced.
        let is_registered = registered.try_register(&disk).is_ok();
        let queues = (0..case.queues).map(|_| disk.open_queue(case.depth).ok()).collect();
        Ok(Self { queues, disk, drive, depth: case.depth, memory, registered, is_registered })
    }

    fn memory(&self, slot: usize) -> &SharedMemory {
        // Slots of both kinds for each queue.
        if slot.is_multiple_of(2) { &self.registered } else { &self.memory }
    }

    fn outcome(result: RequestResult) -> Outcome {
        if result.is_ok() { Outcome::Success } else { Outcome::Error }
    }

    /// Ends everything, and gives the memory, taken back from the drive, to be looked at.
    pub fn close(&mut self) {
        self.queues.iter_mut().for_each(|queue| *queue = None);
        if self.is_registered {
            self.registered.unregister(&self.disk);
        }
    }
}

impl Side for Disks {
    fn whole_blocks(&self) -> bool {
        false
    }

    fn compares(&self) -> bool {
        false
    }

    fn write_memory(&mut self, slot: usize, at: usize, data: &[u8]) {
        self.memory(slot).write(slot * SLOT + at, data);
    }

    fn read_memory(&self, slot: usize, at: usize, len: usize) -> Vec<u8> {
        self.memory(slot).read(slot * SLOT + at, len)
    }

    fn submit(&mut self, queue: usize, work: &Work<'_>) -> Taken {
        let Work { effect, slot, at, len, token } = *work;
        // Two pieces, if there are two bytes.
        let split = (len / 3).max(1).min(len);
        let piece = |from: usize, len: usize| self.memory(slot).segment(slot * SLOT + at + from, len);
        let segments: Vec<Segment> =
            [piece(0, split), piece(split, len - split)].into_iter().filter(|piece| piece.len > 0).collect();
        let (operation, segments) = match effect {
            Effect::Read => (Operation::Read, &segments[..]),
            Effect::Write(_) => (Operation::Write, &segments[..]),
            Effect::Zeroes => (Operation::WriteZeroes, &[][..]),
            Effect::Discard => (Operation::Discard, &[][..]),
            Effect::Flush => (Operation::Flush, &[][..]),
            Effect::Compare(_) => unreachable!("disks do not compare"),
        };
        let flags = match token % 4 {
            0 => RequestFlags::FUA,
            1 => RequestFlags::MAY_UNMAP,
            _ => RequestFlags::NONE,
        };
        let offset = (slot * SLOT + at) as u64;
        let request = Request { operation, offset, len: len as u64, segments, flags, token };
        let Some(queue) = &mut self.queues[queue] else { return Taken::Full };
        // SAFETY: the memory stays until the queue has been dropped.
        match unsafe { queue.submit(request) } {
            Submission::Pending => Taken::Pending,
            Submission::Full => Taken::Full,
            Submission::Done(result) => Taken::Done(Self::outcome(result)),
        }
    }

    fn kick(&mut self, queue: usize) {
        self.queues[queue].iter_mut().for_each(|queue| queue.kick());
    }

    fn poll(&mut self, queue: usize, ended: &mut Vec<(u64, Outcome)>) -> Result<(), String> {
        let Some(queue) = &mut self.queues[queue] else { return Err("there was none".into()) };
        let mut completions: Vec<Completion> = Vec::new();
        queue.poll(&mut completions);
        ended.extend(
            completions.iter().map(|completion| (completion.token, Self::outcome(completion.result))),
        );
        Ok(())
    }

    fn sleep(&mut self, queue: usize) {
        let queue = self.queues[queue].as_mut();
        match queue.and_then(|queue| if queue.may_sleep() { queue.wait_fd() } else { None }) {
            Some(fd) => {
                let limit = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };
                let _ = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
            }
            None => thread::sleep(Duration::from_micros(100)),
        }
    }

    fn disturb(&mut self, random: &mut Random) {
        if random.one_in(10) {
            let _ = self.drive.controller().reset();
        } else {
            let _ = self.disk.flush();
        }
    }

    fn renew(&mut self, queue: usize, _: &[usize]) -> Result<(), String> {
        // Waits for all that is pending: the memory is ours again.
        self.queues[queue] = None;
        let open = || self.disk.open_queue(self.depth);
        self.queues[queue] = Some(super::persistently(self.drive.controller(), open)?);
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.drive.controller().failure().map(str::to_owned)
    }
}
