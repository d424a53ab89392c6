//! What the driver costs by itself: against a controller that takes no time, in the same thread.
//!
//! `qd1` is one read submitted, kicked and polled for; `qd128` is 128 of them together, per read. The controller's part
//! (a completion queue entry written for each) is in both, and is measured alone as `controller alone`.

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvme_spec::admin_command::{CreateIoCompletionQueue, CreateIoSubmissionQueue, Identify};
use nvme_spec::identify::{EntrySizes, IdentifyController, IdentifyNamespace, LbaFormat, cns};
use nvme_spec::registers::{self, Cap, ControllerConfiguration, ControllerStatus, ShutdownStatus, Version};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};
use nvme_vfio::transport::{DmaLimits, DmaMemory, DoorbellMemory, Transport};
use nvme_vfio::{Controller, DmaBuffer, Namespace, Options, QueuePair};
use zerocopy::{FromZeros, IntoBytes};

/// A controller of which only the admin queue is alive, on a thread of its own; I/O queues are the bench's to answer.
#[derive(Default)]
struct Idle {
    /// 1024 doorbells; mapped, as far as the driver knows.
    doorbells: Box<[AtomicU32]>,
    asq: AtomicU64,
    acq: AtomicU64,
    enabled: AtomicBool,
    /// Addresses in this process, with the I/O virtual addresses that they have.
    mappings: Mutex<Vec<(u64, u64, usize)>>,
    /// Submission and completion queue 1, and the latter's entries.
    queue: Mutex<(usize, usize, u32)>,
}

impl Idle {
    fn pointer(&self, iova: u64) -> *mut u8 {
        let mappings = self.mappings.lock().unwrap();
        let (first, _, base) =
            mappings.iter().find(|(first, len, _)| (*first..first + len).contains(&iova)).unwrap();
        (base + (iova - first) as usize) as *mut u8
    }

    /// Answers admin commands as long as the controller is enabled.
    fn answer_admin(&self) {
        let (mut head, mut tail, mut phase) = (0, 0, true);
        loop {
            if self.enabled.load(Ordering::Acquire) {
                while head != self.doorbells[0].load(Ordering::Acquire) {
                    // SAFETY: an entry of the admin submission queue, which the driver keeps mapped.
                    let command = unsafe {
                        let entry: *mut SubmissionQueueEntry =
                            self.pointer(self.asq.load(Ordering::Relaxed)).cast();
                        entry.add(head as usize).read_volatile()
                    };
                    head = (head + 1) % 32;
                    let Some(dw0) = self.admin(&command) else { continue };
                    let entry =
                        CompletionQueueEntry::new(command.cid, 0, head as u16, Status::SUCCESS, phase);
                    // SAFETY: an entry of the admin completion queue, which the driver keeps mapped.
                    unsafe {
                        let entries: *mut CompletionQueueEntry =
                            self.pointer(self.acq.load(Ordering::Relaxed)).cast();
                        entries.add(tail).write_volatile(entry.with_dw0(dw0));
                    }
                    tail = (tail + 1) % 32;
                    phase ^= tail == 0;
                }
            } else if head != 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn admin(&self, command: &SubmissionQueueEntry) -> Option<u32> {
        let give = |bytes: &[u8]| {
            // SAFETY: the driver's buffer for 4096 bytes, which begins at a page.
            unsafe { self.pointer(command.prp1).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        };
        match AdminOpcode(command.opcode) {
            AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST => return None,
            AdminOpcode::IDENTIFY if command.dwords::<Identify>().cns() == cns::CONTROLLER => {
                let mut identify = Box::new(IdentifyController::new_zeroed());
                identify.sqes = EntrySizes::new().with_minimum(6).with_maximum(6);
                identify.cqes = EntrySizes::new().with_minimum(4).with_maximum(4);
                give(identify.as_bytes());
            }
            AdminOpcode::IDENTIFY => {
                let mut namespace = Box::new(IdentifyNamespace::new_zeroed());
                namespace.nsze = 1 << 30;
                namespace.lbaf[0] = LbaFormat::of(9);
                give(namespace.as_bytes());
            }
            AdminOpcode::CREATE_IO_COMPLETION_QUEUE => {
                let mut queue = self.queue.lock().unwrap();
                queue.1 = self.pointer(command.prp1) as usize;
                queue.2 = command.dwords::<CreateIoCompletionQueue>().queue_size();
            }
            AdminOpcode::CREATE_IO_SUBMISSION_QUEUE => {
                assert_eq!(command.dwords::<CreateIoSubmissionQueue>().qid(), 1);
                self.queue.lock().unwrap().0 = self.pointer(command.prp1) as usize;
            }
            _ => {}
        }
        Some(0)
    }
}

struct Handle(Arc<Idle>);

impl Transport for Handle {
    fn name(&self) -> &str {
        "bench"
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        let enabled = self.0.enabled.load(Ordering::Relaxed);
        Ok(match offset {
            registers::VS => Version::V1_4.into_bits(),
            registers::CC => ControllerConfiguration::new().with_en(enabled).into_bits(),
            // Shut down as soon as it is asked to.
            _ => ControllerStatus::new().with_rdy(enabled).with_shst(ShutdownStatus::Complete).into_bits(),
        })
    }

    fn read64(&self, _: u64) -> io::Result<u64> {
        Ok(Cap::new().with_mqes(1023).with_to(1).with_css(Cap::CSS_NVM).into_bits())
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        if offset == registers::CC {
            let enable = ControllerConfiguration::from_bits(value).en();
            self.0.enabled.store(enable, Ordering::Release);
        }
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        let register = if offset == registers::ASQ { &self.0.asq } else { &self.0.acq };
        register.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn doorbells(&self) -> Option<DoorbellMemory> {
        let base = NonNull::from(&self.0.doorbells[0]).cast();
        Some(DoorbellMemory { base, len: 4096, may_trap: false })
    }

    fn dma_limits(&self) -> DmaLimits {
        DmaLimits { windows: vec![0..=1 << 40], page_size: 4096 }
    }

    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        self.0.mappings.lock().unwrap().push((iova, memory.len, memory.base.as_ptr() as usize));
        Ok(())
    }

    fn unmap_dma(&self, iova: u64, _: u64) -> io::Result<()> {
        self.0.mappings.lock().unwrap().retain(|(first, ..)| *first != iova);
        Ok(())
    }

    fn interrupt_vectors(&self) -> u32 {
        0
    }

    fn set_interrupts(&self, _: u32, _: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The controller's part of an I/O: a completion for each command, as it comes.
struct Answering {
    submission: *const SubmissionQueueEntry,
    completion: *mut CompletionQueueEntry,
    entries: usize,
    head: usize,
    tail: usize,
    phase: bool,
    depth: usize,
}

impl Answering {
    fn complete(&mut self, count: usize) {
        for _ in 0..count {
            // SAFETY: entries of the queues that the driver has created, and keeps.
            unsafe {
                let cid = (*self.submission.add(self.head)).cid;
                self.head = if self.head == self.depth { 0 } else { self.head + 1 };
                let entry = CompletionQueueEntry::new(cid, 1, self.head as u16, Status::SUCCESS, self.phase);
                self.completion.add(self.tail).write_volatile(entry);
            }
            self.tail += 1;
            if self.tail == self.entries {
                (self.tail, self.phase) = (0, !self.phase);
            }
        }
    }
}

struct Setup {
    answering: Answering,
    queue: QueuePair,
    namespace: Namespace,
    buffer: DmaBuffer,
    _controller: Controller,
}

impl Setup {
    fn new() -> Self {
        let doorbells = (0..1024).map(|_| AtomicU32::new(0)).collect();
        let idle = Arc::new(Idle { doorbells, ..Idle::default() });
        let admin = idle.clone();
        std::thread::spawn(move || admin.answer_admin());
        let controller = Controller::open(Box::new(Handle(idle.clone())), Options::default()).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let queue = controller.queue_pair().unwrap();
        let buffer = controller.alloc_dma(128 * 4096).unwrap();
        let (submission, completion, entries) = *idle.queue.lock().unwrap();
        let answering = Answering {
            submission: submission as *const _,
            completion: completion as *mut _,
            entries: entries as usize,
            head: 0,
            tail: 0,
            phase: true,
            depth: queue.depth().into(),
        };
        Self { answering, queue, namespace, buffer, _controller: controller }
    }

    #[inline]
    fn round(&mut self, depth: u64) {
        for token in 0..depth {
            let at = token as usize * 4096;
            let data = self.buffer.range(at..at + 4096);
            self.queue.read(&self.namespace, black_box(token * 8), 8, data, token).unwrap();
        }
        self.queue.kick();
        self.answering.complete(depth as usize);
        let mut sum = 0;
        let count = self.queue.poll(|token, result| sum += token + u64::from(result.is_err())).unwrap();
        assert_eq!(count as u64, depth);
        black_box(sum);
    }
}

fn driver(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("driver");
    let mut setup = Setup::new();
    for depth in [1, 32, 128] {
        group.throughput(Throughput::Elements(depth));
        group.bench_function(format!("qd{depth}"), |bencher| bencher.iter(|| setup.round(depth)));
    }
    // The same writes to queues of nobody's.
    let submission = vec![SubmissionQueueEntry::default(); 129];
    let completion = UnsafeCell::new(vec![CompletionQueueEntry::default(); 258]);
    let mut alone = Answering {
        submission: submission.as_ptr(),
        // SAFETY: nobody else has it.
        completion: unsafe { (*completion.get()).as_mut_ptr() },
        entries: 258,
        head: 0,
        tail: 0,
        phase: true,
        depth: 128,
    };
    group.throughput(Throughput::Elements(128));
    group
        .bench_function("controller alone, qd128", |bencher| bencher.iter(|| alone.complete(black_box(128))));
}

criterion_group!(benches, driver);
criterion_main!(benches);
