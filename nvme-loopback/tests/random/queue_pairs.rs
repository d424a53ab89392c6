//! The work on queue pairs.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use nvme_spec::nvm_command::{DatasetManagement, DatasetManagementRange};
use nvme_spec::{AdminOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::{AdminData, Controller, DmaBuffer, Namespace, QueuePair, SubmitError};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::model::{Effect, SLOT};
use super::workload::{Outcome, Side, Taken, Work};
use super::{Case, Random};

const BLOCKS: u64 = (SLOT / 512) as u64;

pub struct QueuePairs {
    queues: Vec<Option<QueuePair>>,
    pub controller: Controller,
    namespace: Namespace,
    pub memory: Vec<DmaBuffer>,
    /// Commands that ended without an answer of the controller's.
    pub lost: u64,
    /// Of these, those that could have been sent once more.
    pub lost_repeatable: u64,
    compares: HashSet<u64>,
}

impl QueuePairs {
    pub fn new(case: &Case, controller: Controller) -> Result<Self, nvme_vfio::Error> {
        let namespace = controller.namespace(1)?;
        let memory = (0..case.slots()).map(|_| controller.alloc_dma(SLOT)).collect::<Result<_, _>>()?;
        let queues = (0..case.queues).map(|_| controller.queue_pair().ok()).collect();
        let compares = HashSet::new();
        Ok(Self { queues, controller, namespace, memory, lost: 0, lost_repeatable: 0, compares })
    }

    /// Ends everything but the memory.
    pub fn into_memory(self) -> Vec<DmaBuffer> {
        self.memory
    }
}

impl Side for QueuePairs {
    fn whole_blocks(&self) -> bool {
        true
    }

    fn compares(&self) -> bool {
        true
    }

    fn write_memory(&mut self, slot: usize, at: usize, data: &[u8]) {
        self.memory[slot].write_at(at, data);
    }

    fn read_memory(&self, slot: usize, at: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory[slot].read_at(at, &mut data);
        data
    }

    fn submit(&mut self, queue: usize, work: &Work<'_>) -> Taken {
        let Some(pair) = &mut self.queues[queue] else { return Taken::Full };
        let Work { effect, slot, at, len, token } = *work;
        let (slba, blocks) = (slot as u64 * BLOCKS + at as u64 / 512, (len / 512) as u32);
        let data = self.memory[slot].range(at..at + len);
        let namespace = &self.namespace;
        let sent = match effect {
            Effect::Read => pair.read(namespace, slba, blocks, data, token),
            Effect::Write(_) => pair.write(namespace, slba, blocks, data, token.is_multiple_of(3), token),
            Effect::Zeroes => {
                pair.write_zeroes(namespace, slba, blocks, token.is_multiple_of(2), false, token)
            }
            Effect::Compare(_) => pair.compare(namespace, slba, blocks, data, token),
            Effect::Flush => pair.flush(namespace, token),
            Effect::Discard => {
                let range = |block: u32| DatasetManagementRange {
                    context_attributes: 0,
                    length_lbas: 1,
                    slba: slba + u64::from(block),
                };
                let ranges: Vec<_> = (0..blocks).map(range).collect();
                pair.dataset_management(namespace, DatasetManagement::new().with_ad(true), &ranges, token)
            }
        };
        match sent {
            Ok(()) => {
                if matches!(effect, Effect::Compare(_)) {
                    self.compares.insert(token);
                }
                Taken::Pending
            }
            // What has broken says so when it is polled.
            Err(SubmitError::Full | SubmitError::Fault(_)) => Taken::Full,
            Err(error) => panic!("{error}"),
        }
    }

    fn kick(&mut self, queue: usize) {
        self.queues[queue].iter_mut().for_each(QueuePair::kick);
    }

    fn poll(&mut self, queue: usize, ended: &mut Vec<(u64, Outcome)>) -> Result<(), String> {
        let Some(pair) = &mut self.queues[queue] else { return Err("there was none".into()) };
        let (lost, lost_repeatable) = (&mut self.lost, &mut self.lost_repeatable);
        let compares = &mut self.compares;
        let polled = pair.poll(|token, result| {
            let compared = compares.remove(&token);
            let outcome = match result {
                Ok(()) => Outcome::Success,
                Err(status) if status.is(Status::COMPARE_FAILURE) => Outcome::Different,
                Err(status) => {
                    let aborted = status.is(Status::COMMAND_ABORTED_BY_HOST);
                    *lost += u64::from(aborted || status.is(Status::HOST_PATHING_ERROR));
                    *lost_repeatable += u64::from(aborted && !compared);
                    Outcome::Error
                }
            };
            ended.push((token, outcome));
        });
        polled.map(drop).map_err(|fault| fault.to_string())
    }

    fn sleep(&mut self, queue: usize) {
        let Some(pair) = &self.queues[queue] else { return thread::sleep(Duration::from_millis(1)) };
        match pair.wait_fd() {
            Some(fd) => {
                // The caretaker wakes whoever waits for something; others may be waiting on another queue.
                let limit = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };
                let _ = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
                let _ = rustix::io::read(fd, &mut [0; 8]);
            }
            None => thread::sleep(Duration::from_micros(100)),
        }
    }

    fn disturb(&mut self, random: &mut Random) {
        if random.one_in(10) {
            let _ = self.controller.reset();
        } else {
            let get = SubmissionQueueEntry::new(AdminOpcode::GET_FEATURES, 0);
            let _ = self.controller.admin(SubmissionQueueEntry { cdw10: 7, ..get }, AdminData::None);
        }
    }

    fn renew(&mut self, queue: usize, pending: &[usize]) -> Result<(), String> {
        self.queues[queue] = None;
        for &slot in pending {
            // A controller that did not obey may still be writing to it.
            let new = self.controller.alloc_dma(SLOT);
            self.memory[slot] = new.map_err(|error| error.to_string())?;
        }
        self.queues[queue] = Some(super::persistently(&self.controller, || self.controller.queue_pair())?);
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.controller.failure().map(str::to_owned)
    }
}
