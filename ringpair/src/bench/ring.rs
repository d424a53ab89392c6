//! The bare ring: what two CPUs can pass between them, with nothing else done.
//!
//! A queue pair as NVMe lays it out: 64-byte SQEs, a tail doorbell, 16-byte CQEs with a phase bit, a head doorbell.
//! One side fills in SQEs and rings; the other copies each out and posts a CQE. There is no decoding, no
//! address translation, no data and no controller, so whatever a real controller and driver do comes on top.

use super::placement::{Placement, pin};
use super::workload::Workload;
use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Sqe([u64; 8]);

struct SqSlot(UnsafeCell<Sqe>);

/// The phase bit is in the second half, which is written last.
#[repr(align(16))]
struct Cqe([AtomicU64; 2]);

const PHASE: u64 = 1 << 48;

/// On a line of its own; two, because adjacent lines are fetched together.
#[repr(align(128))]
struct Doorbell(AtomicU32);

struct Ring {
    sq: Box<[SqSlot]>,
    cq: Box<[Cqe]>,
    sq_tail: Doorbell,
    cq_head: Doorbell,
}

// SAFETY: an SQ slot is accessed by one side at a time: the host writes it before it releases a tail past it, the
// device reads it after it acquired such a tail, and the host writes it again only after it acquired a
// completion that the device released after that read. Everything else is atomic.
unsafe impl Sync for Ring {}

impl Ring {
    fn new(iodepth: u16) -> Self {
        // One entry stays empty, as in NVMe.
        let entries = (u32::from(iodepth) + 1).next_power_of_two();
        Self {
            sq: (0..entries).map(|_| SqSlot(UnsafeCell::new(Sqe([0; 8])))).collect(),
            cq: (0..entries).map(|_| Cqe([AtomicU64::new(0), AtomicU64::new(0)])).collect(),
            sq_tail: Doorbell(AtomicU32::new(0)),
            cq_head: Doorbell(AtomicU32::new(0)),
        }
    }

    fn mask(&self) -> u32 {
        self.sq.len() as u32 - 1
    }
}

/// The driver's side: keeps `iodepth` commands in flight until told to stop, and says how many completed.
fn host(ring: &Ring, iodepth: u16, stop: &AtomicBool) -> u64 {
    let mask = ring.mask();
    let (mut tail, mut head, mut room, mut completed) = (0u32, 0u32, u32::from(iodepth), 0u64);
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if room > 0 && !stopping {
            for _ in 0..room {
                let slot = ring.sq[(tail & mask) as usize].0.get();
                // SAFETY: fewer commands are in flight than the ring has entries, so the device has completed, and
                // therefore read, whatever was in this slot before (see `Sync` above).
                unsafe { *slot = Sqe([u64::from(tail); 8]) };
                tail = tail.wrapping_add(1);
            }
            room = 0;
            ring.sq_tail.0.store(tail, Ordering::Release);
        }
        let before = head;
        while head != tail {
            let expected = if head & (mask + 1) == 0 { PHASE } else { 0 };
            let cqe = &ring.cq[(head & mask) as usize];
            if cqe.0[1].load(Ordering::Acquire) & PHASE != expected {
                break;
            }
            black_box(cqe.0[0].load(Ordering::Relaxed));
            head = head.wrapping_add(1);
        }
        if head == before {
            if stopping && head == tail {
                return completed;
            }
            spin_loop();
            continue;
        }
        let reaped = head.wrapping_sub(before);
        completed += u64::from(reaped);
        room += reaped;
        ring.cq_head.0.store(head, Ordering::Release);
    }
}

/// The controller's side: how far it has come in each ring.
struct Device<'a> {
    ring: &'a Ring,
    head: u32,
    cq_head: u32,
}

impl Device<'_> {
    fn poll(&mut self) -> bool {
        let mask = self.ring.mask();
        let tail = self.ring.sq_tail.0.load(Ordering::Acquire);
        if tail == self.head {
            return false;
        }
        while self.head != tail {
            if self.head.wrapping_sub(self.cq_head) > mask {
                self.cq_head = self.ring.cq_head.0.load(Ordering::Acquire);
                if self.head.wrapping_sub(self.cq_head) > mask {
                    break;
                }
            }
            let slot = self.ring.sq[(self.head & mask) as usize].0.get();
            // SAFETY: the tail that was acquired is past this slot, and the host does not touch it until the
            // completion below (see `Sync` above).
            let sqe = black_box(unsafe { *slot });
            let phase = if self.head & (mask + 1) == 0 { PHASE } else { 0 };
            let cqe = &self.ring.cq[(self.head & mask) as usize];
            cqe.0[0].store(sqe.0[0], Ordering::Relaxed);
            cqe.0[1].store(phase | (sqe.0[1] & 0xFFFF), Ordering::Release);
            self.head = self.head.wrapping_add(1);
        }
        true
    }
}

/// Commands a second that the jobs of `workload` and one reactor can pass each other.
pub fn measure(workload: &Workload, placement: &Placement, runtime: Duration) -> f64 {
    let rings: Vec<Ring> = (0..workload.numjobs).map(|_| Ring::new(workload.iodepth)).collect();
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let start = Barrier::new(usize::from(workload.numjobs) + 2);
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            pin(placement.reactor());
            let mut devices: Vec<Device<'_>> =
                rings.iter().map(|ring| Device { ring, head: 0, cq_head: 0 }).collect();
            start.wait();
            while !over.load(Ordering::Relaxed) {
                let busy = devices.iter_mut().fold(false, |busy, device| device.poll() | busy);
                if !busy {
                    spin_loop();
                }
            }
        });
        let (start, stop) = (&start, &stop);
        let hosts: Vec<_> = (0..workload.numjobs)
            .zip(&rings)
            .map(|(job, ring)| {
                scope.spawn(move || {
                    pin(placement.job(job));
                    start.wait();
                    host(ring, workload.iodepth, stop)
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        thread::sleep(runtime);
        stop.store(true, Ordering::Relaxed);
        let completed: u64 = hosts.into_iter().map(|host| host.join().unwrap_or(0)).sum();
        let elapsed = began.elapsed();
        over.store(true, Ordering::Relaxed);
        let _ = device.join();
        completed as f64 / elapsed.as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Pattern;

    #[test]
    fn every_command_is_completed_once_at_any_depth() {
        for (iodepth, numjobs) in [(1, 1), (3, 2), (128, 1)] {
            let workload = Workload {
                pattern: Pattern::RandomRead,
                read_percent: 50,
                block_size: 4096,
                iodepth,
                numjobs,
            };
            let placement = Placement::choose().unwrap();
            // `host` returns only when what it has submitted has come back.
            assert!(measure(&workload, &placement, Duration::from_millis(20)) > 0.0);
        }
    }
}
