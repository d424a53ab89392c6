//! One row: the jobs of a workload drive a namespace, each polling a queue pair of its own on a CPU of its own.

use super::latency::{Latency, Sampler, Samples};
use super::placement::{Placement, pin};
use super::workload::{Direction, Sequence, Workload};
use crate::failure::Usage;
use crate::interruption::Interruption;
use anyhow::{Context, Result, anyhow};
use nvme_vfio::{Controller, DmaBuffer, Namespace, QueuePair, SubmitError};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is driven.
pub struct Drive<'a> {
    /// With queue pairs as deep as the deepest workload.
    pub controller: &'a Controller,
    /// The namespace that is read and written.
    pub namespace: &'a Namespace,
}

/// What a row came to.
pub struct Measured {
    /// I/Os a second.
    pub iops: f64,
    /// How long they took.
    pub latency: Latency,
}

/// How long jobs run before they are measured.
const WARM_UP: Duration = Duration::from_millis(100);

/// How often the main thread looks whether it was interrupted.
const TICK: Duration = Duration::from_millis(50);

/// What the jobs are to do now; the main thread moves it on.
const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Runs a row.
///
/// # Errors
///
/// The workload does not fit the namespace, or an I/O fails.
pub fn measure(
    workload: &Workload,
    drive: &Drive<'_>,
    placement: &Placement,
    runtime: Duration,
    interruption: &Interruption,
) -> Result<Measured> {
    check(workload, drive)?;
    let jobs: Vec<Job> =
        (0..workload.numjobs).map(|number| Job::new(workload, drive, number)).collect::<Result<_>>()?;
    let phase = AtomicU8::new(WARMING_UP);
    let start = Barrier::new(jobs.len() + 1);
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let (phase, start) = (&phase, &start);
        let threads: Vec<_> = (0..)
            .zip(jobs)
            .map(|(number, job)| {
                scope.spawn(move || {
                    pin(placement.job(number));
                    start.wait();
                    let outcome = job.run(phase);
                    if outcome.is_err() {
                        phase.store(OVER, Ordering::Relaxed);
                    }
                    outcome
                })
            })
            .collect();
        start.wait();
        for (next, duration) in [(MEASURING, WARM_UP), (OVER, runtime)] {
            let deadline = Instant::now() + duration;
            while !interruption.is_told() && phase.load(Ordering::Relaxed) != OVER {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // Only from the phase before: a job that failed has moved it to the end.
                    let _ = phase.compare_exchange(next - 1, next, Ordering::Relaxed, Ordering::Relaxed);
                    break;
                }
                thread::sleep(left.min(TICK));
            }
        }
        phase.store(OVER, Ordering::Relaxed);
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow!("a job died")))).collect()
    });
    let mut outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?.into_iter();
    let Outcome { mut iops, mut samples } = outcomes.next().context("a row without jobs")?;
    for other in outcomes {
        iops += other.iops;
        samples.add(&other.samples)?;
    }
    Ok(Measured { iops, latency: samples.latency() })
}

fn check(workload: &Workload, drive: &Drive<'_>) -> Result<()> {
    let (namespace, block_size) = (drive.namespace, workload.block_size);
    let wrong = |message| Err(Usage(message).into());
    if !block_size.is_multiple_of(namespace.block_size()) {
        return wrong(format!(
            "--bs {block_size} is not a multiple of the block of {} bytes",
            namespace.block_size()
        ));
    }
    if block_size > drive.controller.max_transfer() {
        return wrong(format!(
            "--bs {block_size} is more than the largest transfer, {}",
            drive.controller.max_transfer()
        ));
    }
    if u64::from(block_size) * u64::from(workload.numjobs) > namespace.capacity() {
        return wrong(format!(
            "--bs {block_size} for each job is more than the disk's {} bytes",
            namespace.capacity()
        ));
    }
    Ok(())
}

/// What one job did.
struct Outcome {
    iops: f64,
    samples: Samples,
}

struct Job {
    pair: QueuePair,
    // After the queues: nothing may be in flight into it when it goes.
    buffers: DmaBuffer,
    namespace: Namespace,
    sequence: Sequence,
    block_size: usize,
    blocks: u32,
    /// Parts of the buffer that no I/O uses; the last one is used next, while it is in the cache.
    idle: Vec<u16>,
}

impl Job {
    fn new(workload: &Workload, drive: &Drive<'_>, number: u16) -> Result<Self> {
        let namespace = drive.namespace.clone();
        let block_size = workload.block_size as usize;
        let len = block_size * usize::from(workload.iodepth);
        let buffers = drive.controller.alloc_dma(len)?;
        buffers.fill(0..len, 0xA5);
        let pair = drive.controller.queue_pair()?;
        if workload.iodepth > pair.depth() {
            let (asked, depth) = (workload.iodepth, pair.depth());
            let message = format!("--iodepth {asked} is more than the controller's queues hold: {depth}");
            return Err(Usage(message).into());
        }
        Ok(Self {
            pair,
            buffers,
            sequence: Sequence::new(workload, namespace.capacity(), number),
            blocks: workload.block_size / namespace.block_size(),
            namespace,
            block_size,
            idle: (0..workload.iodepth).collect(),
        })
    }

    fn run(mut self, phase: &AtomicU8) -> Result<Outcome> {
        let slots = u16::try_from(self.idle.len())?;
        let mut unsampled = Sampler::new(slots, u32::MAX)?;
        let warming_up = self.run_while(WARMING_UP, phase, &mut unsampled)?;
        let mut sampler = Sampler::new(slots, Sampler::interval(warming_up))?;
        let iops = self.run_while(MEASURING, phase, &mut sampler)?;
        let samples = sampler.finish();
        while self.pair.in_flight() > 0 {
            self.pair.poll(|_, _| ())?;
        }
        Ok(Outcome { iops, samples })
    }

    /// Keeps every slot busy until the phase ends; I/Os a second.
    fn run_while(&mut self, own: u8, phase: &AtomicU8, sampler: &mut Sampler) -> Result<f64> {
        let (mut completed, mut failure) = (0u64, None);
        let began = Instant::now();
        while phase.load(Ordering::Relaxed) == own {
            if !self.idle.is_empty() {
                while let Some(slot) = self.idle.pop() {
                    sampler.submitting(slot);
                    self.submit(slot)?;
                }
                self.pair.kick();
            }
            let idle = &mut self.idle;
            let count = self.pair.poll(|token, result| {
                // Tokens are slots.
                let slot = token as u16;
                sampler.completed(slot);
                idle.push(slot);
                if let Err(status) = result {
                    failure = Some(status);
                }
            })?;
            completed += count as u64;
            if let Some(status) = failure {
                return Err(anyhow!("an I/O ended with {status}"));
            }
        }
        Ok(completed as f64 / began.elapsed().as_secs_f64())
    }

    #[inline]
    fn submit(&mut self, slot: u16) -> Result<(), SubmitError> {
        let (direction, offset) = self.sequence.next();
        let slba = offset / u64::from(self.namespace.block_size());
        let start = usize::from(slot) * self.block_size;
        let data = [self.buffers.range(start..start + self.block_size)];
        match direction {
            Direction::Read => self.pair.read(&self.namespace, slba, self.blocks, data, slot.into()),
            Direction::Write => self.pair.write(&self.namespace, slba, self.blocks, data, false, slot.into()),
        }
    }
}

/// Writes the whole namespace once, in order: memory that nobody wrote is not there yet, and reading it means nothing.
///
/// # Errors
///
/// As [`measure`].
pub fn fill(drive: &Drive<'_>) -> Result<()> {
    let namespace = drive.namespace;
    let blocks = (drive.controller.max_transfer().min(1 << 20) / namespace.block_size()).max(1);
    let len = (blocks * namespace.block_size()) as usize;
    let data = drive.controller.alloc_dma(len)?;
    data.fill(0..len, 0xA5);
    let mut pair = drive.controller.queue_pair()?;
    let (mut slba, mut failure) = (0, None);
    loop {
        while slba < namespace.capacity_lbas() && pair.in_flight() < usize::from(pair.depth()) {
            let left = namespace.capacity_lbas() - slba;
            let now = u32::try_from(left).map_or(blocks, |left| left.min(blocks));
            let piece = [data.range(0..(now * namespace.block_size()) as usize)];
            pair.write(namespace, slba, now, piece, false, 0)?;
            slba += u64::from(now);
        }
        if pair.in_flight() == 0 {
            return Ok(());
        }
        pair.kick();
        pair.poll(|_, result| failure = failure.or(result.err()))?;
        if let Some(status) = failure {
            return Err(anyhow!("filling the disk ended with {status}"));
        }
    }
}
