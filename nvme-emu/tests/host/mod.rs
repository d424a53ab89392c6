//! A host for tests: registers, memory and queues by hand, so that it can do what no driver would.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod gate_disk;

use block_core::Disk;
use nvme_emu::namespace::{Identity, Namespace, NamespaceOptions};
use nvme_emu::pci::{Call, DmaMapping, InterruptKind, PciFunction};
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_emu::{ControllerOptions, Engine, EngineOptions, PollMode};
use nvme_spec::admin_command::{CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue};
use nvme_spec::registers::{self, ControllerStatus};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub const RAM: u64 = 64 << 20;
/// Where RAM begins for the controller.
pub const BASE: u64 = 0x1_0000_0000;
pub const PATIENCE: Duration = Duration::from_secs(10);

struct Queue {
    sq: u64,
    cq: u64,
    size: u32,
    tail: u32,
    head: u32,
    phase: bool,
}

pub struct Host {
    pub engine: Option<Engine>,
    pub function: PciFunction,
    pub ram_fd: OwnedFd,
    ram: *mut u8,
    next_page: u64,
    queues: HashMap<u16, Queue>,
    next_cid: u16,
    /// Shadow doorbell and EventIdx pages, if configured.
    pub shadow: Option<(u64, u64)>,
}

pub fn disk(spec: &str) -> Arc<dyn Disk> {
    block_core::Registry::default().open(spec.parse().unwrap()).unwrap()
}

pub fn subsystem(disks: Vec<Arc<dyn Disk>>) -> Arc<Subsystem> {
    let namespaces = disks.into_iter().enumerate().map(|(i, disk)| {
        let options =
            NamespaceOptions { block_size: Some(512), identity: Identity::Name(format!("test-{i}")) };
        Namespace::new(i as u32 + 1, disk, &options).unwrap()
    });
    let options = SubsystemOptions { max_controllers: 4, ..SubsystemOptions::default() };
    Subsystem::new(options, namespaces.collect()).unwrap()
}

impl Host {
    pub fn new(disks: Vec<Arc<dyn Disk>>) -> Self {
        Self::with(EngineOptions::default(), ControllerOptions::default(), disks)
    }

    pub fn with(engine: EngineOptions, controller: ControllerOptions, disks: Vec<Arc<dyn Disk>>) -> Self {
        let engine = Engine::start(engine).unwrap();
        let function = engine.add_controller(&subsystem(disks), &controller).unwrap();
        let mut host = Self::on(function);
        host.engine = Some(engine);
        host
    }

    /// A host for a controller of somebody else's engine.
    pub fn on(function: PciFunction) -> Self {
        let fd = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, RAM).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let ram = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), RAM as usize, protection, MapFlags::SHARED, &fd, 0).unwrap()
        };
        let host = Self {
            engine: None,
            function,
            ram_fd: fd,
            ram: ram.cast(),
            next_page: 0,
            queues: HashMap::new(),
            next_cid: 1,
            shadow: None,
        };
        host.map_ram().unwrap();
        host
    }

    pub fn map_ram(&self) -> Result<(), i32> {
        let backing = Some((self.ram_fd.try_clone().unwrap(), 0));
        self.call(Call::MapDma(DmaMapping { iova: BASE, len: RAM, read: true, write: true, backing }))
    }

    pub fn call(&self, call: Call) -> Result<(), i32> {
        let (answer, answered) = mpsc::channel();
        self.function.call(call, Box::new(move |result| answer.send(result).unwrap()));
        answered.recv_timeout(PATIENCE).expect("the call is answered")
    }

    /// A call that is not waited for.
    pub fn begin(&self, call: Call) -> mpsc::Receiver<Result<(), i32>> {
        let (answer, answered) = mpsc::channel();
        self.function.call(
            call,
            Box::new(move |result| {
                let _ = answer.send(result);
            }),
        );
        answered
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.read_bar0(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.function.write_bar0(offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.function.write_bar0(offset, &value.to_le_bytes());
    }

    pub fn csts(&self) -> ControllerStatus {
        ControllerStatus::from_bits(self.read32(registers::CSTS))
    }

    pub fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !condition(self) {
            assert!(begin.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Pages of RAM that nobody has used, as the controller's address.
    pub fn pages(&mut self, count: u64) -> u64 {
        let at = self.next_page;
        self.next_page += count * 4096;
        assert!(self.next_page <= RAM);
        BASE + at
    }

    pub fn write_ram(&self, iova: u64, data: &[u8]) {
        assert!(iova - BASE + data.len() as u64 <= RAM);
        // SAFETY: inside the mapping, as asserted; the controller's copies of it expect changes.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.ram.add((iova - BASE) as usize), data.len())
        };
    }

    pub fn read_ram(&self, iova: u64, len: usize) -> Vec<u8> {
        assert!(iova - BASE + len as u64 <= RAM);
        let mut data = vec![0; len];
        // SAFETY: as in `write_ram`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ram.add((iova - BASE) as usize), data.as_mut_ptr(), len)
        };
        data
    }

    pub fn ram32(&self, iova: u64) -> &std::sync::atomic::AtomicU32 {
        assert!(iova - BASE + 4 <= RAM && iova.is_multiple_of(4));
        // SAFETY: aligned and inside the mapping, which is never unmapped.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(self.ram.add((iova - BASE) as usize).cast()) }
    }

    /// Enables with admin queues of 32 entries and waits for RDY.
    pub fn enable(&mut self) {
        let (sq, cq) = (self.pages(1), self.pages(1));
        self.enable_at(sq, cq);
        self.wait("CSTS.RDY", |host| host.csts().rdy());
    }

    pub fn enable_at(&mut self, sq: u64, cq: u64) {
        self.queues.clear();
        self.shadow = None;
        self.write_ram(cq, &[0; 4096]);
        self.queues.insert(0, Queue { sq, cq, size: 32, tail: 0, head: 0, phase: true });
        self.write32(registers::AQA, 31 << 16 | 31);
        self.write64(registers::ASQ, sq);
        self.write64(registers::ACQ, cq);
        self.write32(registers::CC, 6 << 16 | 4 << 20 | 1);
    }

    pub fn disable(&self) {
        self.write32(registers::CC, 6 << 16 | 4 << 20);
    }

    /// Writes a command into a queue without ringing.
    pub fn put(&mut self, qid: u16, mut sqe: SubmissionQueueEntry) -> u16 {
        sqe.cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        let queue = self.queues.get_mut(&qid).unwrap();
        let at = queue.sq + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.size;
        self.write_ram(at, zerocopy::IntoBytes::as_bytes(&sqe));
        sqe.cid
    }

    /// Rings as a driver does: shadow first where there is one, the register if EventIdx asks for it.
    pub fn ring(&self, qid: u16) {
        use std::sync::atomic::Ordering;
        let tail = self.queues[&qid].tail;
        if let Some((doorbells, event_indexes)) = self.shadow.filter(|_| qid > 0) {
            let offset = u64::from(qid) * 8;
            let old = self.ram32(doorbells + offset).swap(tail, Ordering::SeqCst) as u16;
            let event = self.ram32(event_indexes + offset).load(Ordering::SeqCst) as u16;
            let new = tail as u16;
            if new.wrapping_sub(event).wrapping_sub(1) >= new.wrapping_sub(old) {
                return;
            }
        }
        self.write32(0x1000 + u64::from(qid) * 8, tail);
    }

    pub fn submit(&mut self, qid: u16, sqe: SubmissionQueueEntry) -> u16 {
        let cid = self.put(qid, sqe);
        self.ring(qid);
        cid
    }

    /// The next completion, if there is one.
    pub fn poll(&mut self, qid: u16) -> Option<CompletionQueueEntry> {
        let (cq, head, phase) = {
            let queue = &self.queues[&qid];
            (queue.cq, queue.head, queue.phase)
        };
        let at = cq + u64::from(head) * 16;
        if self.ram32(at + 12).load(std::sync::atomic::Ordering::Acquire) >> 16 & 1 != u32::from(phase) {
            return None;
        }
        let bytes: [u8; 16] = self.read_ram(at, 16).try_into().unwrap();
        let queue = self.queues.get_mut(&qid).unwrap();
        queue.head = (queue.head + 1) % queue.size;
        queue.phase ^= queue.head == 0;
        let head = queue.head;
        if let Some((doorbells, _)) = self.shadow.filter(|_| qid > 0) {
            let offset = u64::from(qid) * 8 + 4;
            self.ram32(doorbells + offset).store(head, std::sync::atomic::Ordering::SeqCst);
        } else {
            self.write32(0x1004 + u64::from(qid) * 8, head);
        }
        Some(zerocopy::transmute!(bytes))
    }

    pub fn completion(&mut self, qid: u16) -> CompletionQueueEntry {
        let begin = Instant::now();
        loop {
            if let Some(cqe) = self.poll(qid) {
                return cqe;
            }
            assert!(begin.elapsed() < PATIENCE, "no completion on queue {qid}, CSTS {:?}", self.csts());
            std::thread::yield_now();
        }
    }

    /// Submits one command and waits for its completion.
    pub fn run(&mut self, qid: u16, sqe: SubmissionQueueEntry) -> CompletionQueueEntry {
        let cid = self.submit(qid, sqe);
        let cqe = self.completion(qid);
        assert_eq!(cqe.cid, cid);
        cqe
    }

    pub fn status(&mut self, qid: u16, sqe: SubmissionQueueEntry) -> Status {
        self.run(qid, sqe).status()
    }

    pub fn create_cq(&mut self, qid: u16, size: u32, base: u64) -> Status {
        let dwords = CreateIoCompletionQueue::new().with_qid(qid).with_queue_size(size).with_pc(true);
        let sqe = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0)
            .with_prp(base, 0)
            .with_dwords(dwords.with_ien(true).with_iv(qid));
        self.status(0, sqe)
    }

    pub fn create_sq(&mut self, qid: u16, cqid: u16, size: u32, base: u64) -> Status {
        let dwords = CreateIoSubmissionQueue::new().with_qid(qid).with_queue_size(size).with_pc(true);
        let sqe = SubmissionQueueEntry::new(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0)
            .with_prp(base, 0)
            .with_dwords(dwords.with_cqid(cqid));
        self.status(0, sqe)
    }

    pub fn delete(&mut self, opcode: AdminOpcode, qid: u16) -> Status {
        let sqe = SubmissionQueueEntry::new(opcode, 0).with_dwords(DeleteIoQueue::new().with_qid(qid));
        self.status(0, sqe)
    }

    /// An I/O queue pair of 64 entries.
    pub fn create_queue(&mut self, qid: u16) {
        let (sq, cq) = (self.pages(1), self.pages(1));
        self.write_ram(cq, &[0; 4096]);
        assert_eq!(self.create_cq(qid, 64, cq), Status::SUCCESS);
        assert_eq!(self.create_sq(qid, qid, 64, sq), Status::SUCCESS);
        self.queues.insert(qid, Queue { sq, cq, size: 64, tail: 0, head: 0, phase: true });
    }

    /// Sets up shadow doorbells.
    pub fn use_shadow_doorbells(&mut self) {
        let (doorbells, event_indexes) = (self.pages(1), self.pages(1));
        let sqe = SubmissionQueueEntry::new(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0)
            .with_prp(doorbells, event_indexes);
        assert_eq!(self.status(0, sqe), Status::SUCCESS);
        self.shadow = Some((doorbells, event_indexes));
    }

    pub fn interrupt_count(&self) -> u64 {
        self.engine.as_ref().unwrap().counters().controllers[0].interrupts
    }

    pub fn connect_msix(&self, eventfds: Vec<Option<OwnedFd>>) {
        self.call(Call::SetInterrupts { kind: InterruptKind::Msix, start: 0, eventfds }).unwrap();
    }
}

pub fn adaptive() -> EngineOptions {
    EngineOptions::default()
}

pub fn polling(reactors: usize) -> EngineOptions {
    EngineOptions { reactors, poll: PollMode::Always, cpus: Vec::new() }
}
