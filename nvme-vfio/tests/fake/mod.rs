//! A controller that does what the test says, and nothing by itself: it acts inside of register and doorbell writes,
//! on the thread that makes them, so that every test is deterministic.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod setup;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use nvme_spec::admin_command::{
    Abort, CreateIoCompletionQueue, CreateIoSubmissionQueue, DeleteIoQueue, DoorbellBufferConfig, Identify,
};
use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::doorbell::Doorbell;
use nvme_spec::identify::{EntrySizes, IdentifyController, IdentifyNamespace, LbaFormat, NamespaceList, cns};
use nvme_spec::registers::{
    self, AdminQueueAttributes, Cap, ControllerConfiguration, ControllerStatus, ShutdownNotification,
    ShutdownStatus, Version,
};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, Status, SubmissionQueueEntry};
use nvme_vfio::transport::{DmaLimits, DmaMemory, DoorbellMemory, Transport};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Write { register: &'static str, value: u64 },
    Doorbell(Doorbell, u32),
    Admin(AdminOpcode),
    FunctionReset,
    GivenBack,
}

/// What becomes of an I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Completes, when its doorbell is rung.
    Now(Status),
    /// Completes when the test says so ([`Fake::complete`]).
    Held,
}

pub struct State {
    pub cap: Cap,
    pub vs: Version,
    pub cc: ControllerConfiguration,
    pub csts: ControllerStatus,
    aqa: u32,
    asq: u64,
    acq: u64,
    pub identify: Box<IdentifyController>,
    pub namespace: Box<IdentifyNamespace>,
    /// Queues granted, of either kind.
    pub queues: u32,
    pub answer: Answer,
    /// Whether Abort ends held commands.
    pub aborts: bool,
    /// Admin commands with this opcode get no answer.
    pub ignored: Option<AdminOpcode>,
    /// Admin commands with this opcode fail.
    pub refused: Option<(AdminOpcode, Status)>,
    /// CSTS.RDY follows CC.EN.
    pub gets_ready: bool,
    /// CSTS.RDY stays, whatever CC.EN says, until the function is reset.
    pub stays_ready: bool,
    pub cfs_on_enable: bool,
    /// Every register reads as ones.
    pub gone: bool,
    /// Asynchronous Event Requests are answered at once, one after the other.
    pub events_without_end: bool,
    /// There is always another namespace.
    pub namespaces_without_end: bool,
    /// Whoever lent the controller wants it back.
    pub wanted_back: bool,
    /// Why nothing reaches it any more.
    pub lost: Option<String>,
    /// EventIdx is kept at this distance behind the tail (mod size), as by a controller that keeps polling.
    pub polls_shadows: bool,
    /// EventIdx is all ones: completion queues' from Doorbell Buffer Config on, submission queues' when they are created.
    /// So does SPDK's vfio-user target (26.01), which polls.
    pub never_rung: bool,
    /// What was in the first I/O queue's words of the buffers when the controller was told of them, and in shadow
    /// doorbells when their queues were created.
    pub found_in_shadows: Vec<u32>,
    /// Interrupt vectors.
    pub vectors: u32,
    /// Vectors connected (true) and disconnected, in order.
    pub connected: Vec<(u32, bool)>,
    pub steps: Vec<Step>,
    memory: BTreeMap<u64, (usize, u64)>,
    submission: BTreeMap<u16, Ring>,
    completion: BTreeMap<u16, Ring>,
    shadow: Option<DoorbellBufferConfig>,
    pub held: VecDeque<(u16, SubmissionQueueEntry)>,
    pub event_requests: VecDeque<u16>,
    /// I/O commands in the order in which they were fetched.
    pub commands: Vec<SubmissionQueueEntry>,
    pub record_commands: bool,
}

#[derive(Clone, Copy)]
struct Ring {
    base: u64,
    size: u32,
    /// Where this controller reads or writes next.
    index: u32,
    phase: bool,
    /// The completion queue of a submission queue.
    cqid: u16,
}

/// A handle to the controller; it is the transport too.
#[derive(Clone)]
pub struct Fake(Arc<Mutex<State>>);

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    pub fn new() -> Self {
        let mut identify = Box::new(IdentifyController::new_zeroed());
        identify.sqes = EntrySizes::new().with_minimum(6).with_maximum(6);
        identify.cqes = EntrySizes::new().with_minimum(4).with_maximum(4);
        identify.nn = 1;
        identify.mdts = 9;
        identify.aerl = 2;
        let mut namespace = Box::new(IdentifyNamespace::new_zeroed());
        (namespace.nsze, namespace.ncap) = (1 << 20, 1 << 20);
        namespace.lbaf[0] = LbaFormat::of(9);
        Self(Arc::new(Mutex::new(State {
            cap: Cap::new().with_mqes(1023).with_cqr(true).with_to(1).with_css(Cap::CSS_NVM),
            vs: Version::V1_4,
            cc: ControllerConfiguration::new(),
            csts: ControllerStatus::new(),
            aqa: 0,
            asq: 0,
            acq: 0,
            identify,
            namespace,
            queues: 8,
            answer: Answer::Now(Status::SUCCESS),
            aborts: false,
            ignored: None,
            refused: None,
            gets_ready: true,
            stays_ready: false,
            cfs_on_enable: false,
            gone: false,
            events_without_end: false,
            namespaces_without_end: false,
            wanted_back: false,
            lost: None,
            polls_shadows: false,
            never_rung: false,
            found_in_shadows: Vec::new(),
            vectors: 0,
            connected: Vec::new(),
            steps: Vec::new(),
            memory: BTreeMap::new(),
            submission: BTreeMap::new(),
            completion: BTreeMap::new(),
            shadow: None,
            held: VecDeque::new(),
            event_requests: VecDeque::new(),
            commands: Vec::new(),
            record_commands: true,
        })))
    }

    /// A fake with something changed.
    pub fn with(change: impl FnOnce(&mut State)) -> Self {
        let fake = Self::new();
        change(&mut fake.state());
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn boxed(&self) -> Box<dyn Transport> {
        Box::new(self.clone())
    }

    /// Completes the held command at this place in their order.
    pub fn complete(&self, place: usize, status: Status) {
        let mut state = self.state();
        let (sqid, command) = state.held.remove(place).unwrap();
        let head = state.submission[&sqid].index as u16;
        state.post(CompletionQueueEntry::new(command.cid, sqid, head, status, false));
    }

    /// Posts any completion at all, with the right Phase Tag.
    pub fn post(&self, entry: CompletionQueueEntry) {
        self.state().post(entry);
    }

    /// Completes an Asynchronous Event Request.
    pub fn event(&self, dw0: u32) {
        let mut state = self.state();
        let cid = state.event_requests.pop_front().unwrap();
        let head = state.submission[&0].index as u16;
        state.post(CompletionQueueEntry::new(cid, 0, head, Status::SUCCESS, false).with_dw0(dw0));
    }

    /// Skips an entry of a completion queue, as a controller does that forgets to flip the Phase Tag.
    pub fn skip(&self, cqid: u16) {
        let mut state = self.state();
        let ring = state.completion.get_mut(&cqid).unwrap();
        ring.index = (ring.index + 1) % ring.size;
    }

    /// How many admin commands of this kind there were.
    pub fn admin_commands(&self, opcode: AdminOpcode) -> usize {
        self.state().steps.iter().filter(|step| **step == Step::Admin(opcode)).count()
    }

    /// Copies out of DMA memory, as the controller would.
    pub fn read_memory(&self, iova: u64, data: &mut [u8]) {
        self.state().read(iova, data);
    }

    pub fn writes(&self) -> Vec<(&'static str, u64)> {
        let state = self.state();
        let write = |step: &Step| match step {
            Step::Write { register, value } => Some((*register, *value)),
            _ => None,
        };
        state.steps.iter().filter_map(write).collect()
    }

    pub fn doorbells(&self, doorbell: Doorbell) -> Vec<u32> {
        let state = self.state();
        let value = |step: &Step| match step {
            Step::Doorbell(which, value) if *which == doorbell => Some(*value),
            _ => None,
        };
        state.steps.iter().filter_map(value).collect()
    }
}

impl State {
    /// Whether the driver lets this controller reach an address.
    pub fn is_mapped(&self, iova: u64) -> bool {
        self.memory.range(..=iova).next_back().is_some_and(|(first, (_, size))| iova - first < *size)
    }

    /// Where the submission and the completion queue with this identifier are.
    pub fn queues(&self, qid: u16) -> [u64; 2] {
        [self.submission[&qid].base, self.completion[&qid].base]
    }

    fn pointer(&self, iova: u64, len: usize) -> *mut u8 {
        let (first, (base, size)) = self.memory.range(..=iova).next_back().expect("mapped memory");
        assert!(iova - first + len as u64 <= *size, "I/O virtual address {iova:#x}+{len:#x} is not mapped");
        (base + (iova - first) as usize) as *mut u8
    }

    pub fn read(&self, iova: u64, data: &mut [u8]) {
        let from = self.pointer(iova, data.len());
        // SAFETY: `pointer` has checked the range against what the driver has mapped and not yet unmapped.
        unsafe { std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
    }

    pub fn write(&self, iova: u64, data: &[u8]) {
        let to = self.pointer(iova, data.len());
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    }

    fn read_u32(&self, iova: u64) -> u32 {
        let mut data = [0; 4];
        self.read(iova, &mut data);
        u32::from_le_bytes(data)
    }

    fn post(&mut self, entry: CompletionQueueEntry) {
        let cqid = self.submission.get(&entry.sq_id).map_or(1, |ring| ring.cqid);
        self.post_to(cqid, entry);
    }

    pub fn post_to(&mut self, cqid: u16, mut entry: CompletionQueueEntry) {
        let ring = self.completion.get_mut(&cqid).unwrap();
        entry.status = entry.status & !1 | u16::from(ring.phase);
        let at = ring.base + u64::from(ring.index) * 16;
        ring.index += 1;
        if ring.index == ring.size {
            (ring.index, ring.phase) = (0, !ring.phase);
        }
        self.write(at, entry.as_bytes());
    }

    fn reset(&mut self) {
        self.cc = ControllerConfiguration::new();
        self.csts = ControllerStatus::new();
        self.forget();
    }

    fn forget(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.held.clear();
        self.event_requests.clear();
        self.shadow = None;
    }

    fn write_cc(&mut self, value: u32) {
        let (old, cc) = (self.cc, ControllerConfiguration::from_bits(value));
        self.cc = cc;
        if cc.en() && !old.en() {
            let aqa = AdminQueueAttributes::from_bits(self.aqa);
            let ring = |base, size| Ring { base, size, index: 0, phase: true, cqid: 0 };
            self.submission.insert(0, ring(self.asq, aqa.submission_queue_entries()));
            self.completion.insert(0, ring(self.acq, aqa.completion_queue_entries()));
            self.csts = ControllerStatus::new().with_rdy(self.gets_ready).with_cfs(self.cfs_on_enable);
        }
        if !cc.en() && old.en() {
            self.forget();
            if !self.stays_ready {
                self.csts = ControllerStatus::new().with_cfs(self.csts.cfs());
            }
        }
        if cc.en() && cc.shn() == ShutdownNotification::Normal {
            self.csts.set_shst(ShutdownStatus::Complete);
        }
    }

    fn ring(&mut self, doorbell: Doorbell, value: u32) {
        self.steps.push(Step::Doorbell(doorbell, value));
        if let Doorbell::SubmissionQueueTail(qid) = doorbell {
            self.fetch(qid, value);
        }
    }

    /// Looks at the shadow doorbells, as a controller does that polls.
    pub fn poll_shadows(&mut self) {
        let Some(shadow) = self.shadow else { return };
        let qids: Vec<u16> = self.submission.keys().copied().filter(|qid| *qid != 0).collect();
        for qid in qids {
            let at = Doorbell::SubmissionQueueTail(qid).offset_in_buffer(self.cap.dstrd());
            let tail = self.read_u32(shadow.shadow_doorbells + at);
            self.fetch(qid, tail);
        }
    }

    fn look_at_shadow(&mut self, doorbell: Doorbell) {
        if let Some(shadow) = self.shadow {
            let at = doorbell.offset_in_buffer(self.cap.dstrd());
            let value = self.read_u32(shadow.shadow_doorbells + at);
            self.found_in_shadows.push(value);
        }
    }

    fn forbid_ringing(&mut self, doorbell: Doorbell) {
        if let Some(shadow) = self.shadow.filter(|_| self.never_rung) {
            let at = doorbell.offset_in_buffer(self.cap.dstrd());
            self.write(shadow.event_idx + at, &u32::MAX.to_le_bytes());
        }
    }

    fn fetch(&mut self, qid: u16, tail: u32) {
        let Some(ring) = self.submission.get(&qid).copied() else { return };
        assert!(tail < ring.size, "tail {tail} is outside queue {qid} of {} entries", ring.size);
        let mut index = ring.index;
        while index != tail {
            let mut bytes = [0; 64];
            self.read(ring.base + u64::from(index) * 64, &mut bytes);
            index = (index + 1) % ring.size;
            self.submission.get_mut(&qid).unwrap().index = index;
            let command = SubmissionQueueEntry::read_from_bytes(&bytes).unwrap();
            if qid == 0 { self.admin(command) } else { self.io(qid, command) }
        }
        if let Some(shadow) = self.shadow.filter(|_| qid != 0 && !self.never_rung) {
            // Busy: not to be rung before the whole queue has gone by. Idle: to be rung at the next entry.
            let event_idx = if self.polls_shadows { (tail + ring.size - 1) % ring.size } else { tail };
            let at = Doorbell::SubmissionQueueTail(qid).offset_in_buffer(self.cap.dstrd());
            self.write(shadow.event_idx + at, &event_idx.to_le_bytes());
        }
    }

    fn io(&mut self, qid: u16, command: SubmissionQueueEntry) {
        if self.record_commands {
            self.commands.push(command);
        }
        match self.answer {
            Answer::Now(status) => {
                let head = self.submission[&qid].index as u16;
                self.post(CompletionQueueEntry::new(command.cid, qid, head, status, false));
            }
            Answer::Held => self.held.push_back((qid, command)),
        }
    }

    fn admin(&mut self, command: SubmissionQueueEntry) {
        let opcode = AdminOpcode(command.opcode);
        self.steps.push(Step::Admin(opcode));
        if self.ignored == Some(opcode) {
            self.held.push_back((0, command));
            return;
        }
        let status = match self.refused {
            Some((refused, status)) if refused == opcode => status,
            _ => Status::SUCCESS,
        };
        let mut dw0 = 0;
        if status.is_success() {
            match opcode {
                AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST if self.events_without_end => {
                    dw0 = AsynchronousEvent::TEMPERATURE_THRESHOLD.into_bits();
                }
                AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST => {
                    self.event_requests.push_back(command.cid);
                    return;
                }
                AdminOpcode::IDENTIFY => self.identify(command),
                AdminOpcode::SET_FEATURES if command.cdw10 & 0xff == 7 => {
                    dw0 = (self.queues - 1) * 0x1_0001;
                }
                AdminOpcode::CREATE_IO_COMPLETION_QUEUE => {
                    let dwords: CreateIoCompletionQueue = command.dwords();
                    let size = dwords.queue_size();
                    let ring = Ring { base: command.prp1, size, index: 0, phase: true, cqid: 0 };
                    self.completion.insert(dwords.qid(), ring);
                    self.look_at_shadow(Doorbell::CompletionQueueHead(dwords.qid()));
                }
                AdminOpcode::CREATE_IO_SUBMISSION_QUEUE => {
                    let dwords: CreateIoSubmissionQueue = command.dwords();
                    let (size, cqid) = (dwords.queue_size(), dwords.cqid());
                    let ring = Ring { base: command.prp1, size, index: 0, phase: true, cqid };
                    self.submission.insert(dwords.qid(), ring);
                    let doorbell = Doorbell::SubmissionQueueTail(dwords.qid());
                    self.look_at_shadow(doorbell);
                    self.forbid_ringing(doorbell);
                }
                AdminOpcode::DELETE_IO_SUBMISSION_QUEUE => {
                    self.submission.remove(&command.dwords::<DeleteIoQueue>().qid());
                }
                AdminOpcode::DELETE_IO_COMPLETION_QUEUE => {
                    self.completion.remove(&command.dwords::<DeleteIoQueue>().qid());
                }
                AdminOpcode::ABORT => dw0 = self.abort(command.dwords()),
                AdminOpcode::DOORBELL_BUFFER_CONFIG => {
                    let config: DoorbellBufferConfig = command.dwords();
                    let at = Doorbell::SubmissionQueueTail(1).offset_in_buffer(self.cap.dstrd());
                    for buffer in [config.shadow_doorbells, config.event_idx] {
                        let value = self.read_u32(buffer + at);
                        self.found_in_shadows.push(value);
                    }
                    self.shadow = Some(config);
                    for cqid in 1..=self.queues as u16 {
                        self.forbid_ringing(Doorbell::CompletionQueueHead(cqid));
                    }
                }
                _ => {}
            }
        }
        let head = self.submission[&0].index as u16;
        self.post(CompletionQueueEntry::new(command.cid, 0, head, status, false).with_dw0(dw0));
    }

    fn abort(&mut self, abort: Abort) -> u32 {
        let named = |(sqid, command): &(u16, SubmissionQueueEntry)| {
            (*sqid, command.cid) == (abort.sqid(), abort.cid())
        };
        let Some(place) = self.held.iter().position(named).filter(|_| self.aborts) else {
            return Abort::NOT_ABORTED;
        };
        let (sqid, command) = self.held.remove(place).unwrap();
        let head = self.submission[&sqid].index as u16;
        self.post(CompletionQueueEntry::new(command.cid, sqid, head, Status::ABORTED_BY_REQUEST, false));
        0
    }

    fn identify(&mut self, command: SubmissionQueueEntry) {
        let mut list = NamespaceList::new_zeroed();
        let bytes = match command.dwords::<Identify>().cns() {
            cns::CONTROLLER => self.identify.as_bytes(),
            cns::NAMESPACE => self.namespace.as_bytes(),
            cns::ACTIVE_NAMESPACE_ID_LIST if self.namespaces_without_end => {
                list.0.iter_mut().zip(command.nsid + 1..).for_each(|(entry, nsid)| *entry = nsid);
                list.as_bytes()
            }
            cns::ACTIVE_NAMESPACE_ID_LIST => {
                list.0[0] = if command.nsid == 0 { 1 } else { 0 };
                list.as_bytes()
            }
            other => panic!("Identify with CNS {other:#x}"),
        };
        // One page, wherever it is in its page.
        let first = 4096 - (command.prp1 % 4096) as usize;
        self.write(command.prp1, &bytes[..first]);
        if first < 4096 {
            self.write(command.prp2, &bytes[first..]);
        }
    }
}

impl Transport for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        let state = self.state();
        if state.gone || state.lost.is_some() {
            return Ok(u32::MAX);
        }
        Ok(match offset {
            registers::VS => state.vs.into_bits(),
            registers::CC => state.cc.into_bits(),
            registers::CSTS => state.csts.into_bits(),
            _ => panic!("32-bit read at {offset:#x}"),
        })
    }

    fn read64(&self, offset: u64) -> io::Result<u64> {
        let state = self.state();
        assert_eq!(offset, registers::CAP);
        Ok(if state.gone { u64::MAX } else { state.cap.into_bits() })
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        let mut state = self.state();
        let register = match offset {
            registers::CC => "CC",
            registers::AQA => "AQA",
            _ => {
                let doorbell = Doorbell::at(offset, state.cap.dstrd()).expect("a doorbell");
                state.ring(doorbell, value);
                return Ok(());
            }
        };
        state.steps.push(Step::Write { register, value: value.into() });
        match register {
            "CC" => state.write_cc(value),
            _ => state.aqa = value,
        }
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        let mut state = self.state();
        let register = match offset {
            registers::ASQ => "ASQ",
            registers::ACQ => "ACQ",
            _ => panic!("64-bit write at {offset:#x}"),
        };
        state.steps.push(Step::Write { register, value });
        *(if register == "ASQ" { &mut state.asq } else { &mut state.acq }) = value;
        Ok(())
    }

    fn doorbells(&self) -> Option<DoorbellMemory> {
        None
    }

    fn dma_limits(&self) -> DmaLimits {
        DmaLimits { windows: vec![0..=0xffff_ffff], page_size: 4096 }
    }

    unsafe fn map_dma(&self, iova: u64, memory: &DmaMemory<'_>) -> io::Result<()> {
        let base = memory.base.as_ptr() as usize;
        let before = self.state().memory.insert(iova, (base, memory.len));
        assert!(before.is_none(), "mapped twice");
        Ok(())
    }

    fn unmap_dma(&self, iova: u64, len: u64) -> io::Result<()> {
        if self.state().lost.is_some() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (_, mapped) = self.state().memory.remove(&iova).expect("mapped before");
        assert_eq!(mapped, len);
        Ok(())
    }

    fn interrupt_vectors(&self) -> u32 {
        self.state().vectors
    }

    fn set_interrupts(&self, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let mut state = self.state();
        for (vector, eventfd) in (start..).zip(eventfds) {
            assert!(vector < state.vectors);
            state.connected.push((vector, eventfd.is_some()));
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = self.state();
        state.steps.push(Step::FunctionReset);
        state.reset();
        Ok(())
    }

    fn lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    fn is_wanted_back(&self) -> bool {
        self.state().wanted_back
    }

    fn give_back(&self) {
        let mut state = self.state();
        state.steps.push(Step::GivenBack);
        assert!(state.memory.is_empty(), "the controller still has memory");
        (state.gone, state.wanted_back) = (true, false);
    }
}
