//! The same registers and commands put to QEMU's own controller and to ringpair's, without a guest.
//!
//! Each case states what the specification asks for, and both controllers are held to it; where QEMU 11.1 is known to
//! answer otherwise, the case says so.

use fixtures::{PciFunction, Qtest, guest_or_skip};
use std::time::{Duration, Instant};

mod served;
use served::Served;

/// NVMe's class code: mass storage, non-volatile memory, NVM Express I/O controller.
const CLASS: u32 = 0x01_08_02;

/// Registers (NVMe Base specification, "Controller Properties").
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// CC: enabled, submission queue entries of 64 bytes, completion queue entries of 16.
const ENABLED: u32 = 0x0046_0001;

/// Where things are in the machine's memory: a page for each queue, and for data.
const ADMIN: u64 = 0x10_0000;
const IO: u64 = 0x10_2000;
const DATA: u64 = 0x10_4000;

/// Entries of each queue.
const ENTRIES: u32 = 64;

/// The disk's size in 512-byte blocks.
const BLOCKS: u64 = (16 << 20) / 512;

/// A queue pair: its id, its pages, and where it stands.
struct QueuePair {
    id: u64,
    sq: u64,
    cq: u64,
    next: u32,
    phase: u8,
    head: u32,
}

impl QueuePair {
    fn new(id: u64, base: u64) -> Self {
        Self { id, sq: base, cq: base + 0x1000, next: 0, phase: 1, head: 0 }
    }
}

/// A controller in a machine without a processor.
struct Controller {
    name: &'static str,
    machine: Qtest,
    function: PciFunction,
    admin: QueuePair,
    io: QueuePair,
}

/// A submission queue entry's dwords that cases set; the rest is zero.
#[derive(Clone, Copy, Default)]
struct Command {
    opcode: u8,
    nsid: u32,
    prp1: u64,
    prp2: u64,
    /// CDW10 to CDW13.
    dwords: [u32; 4],
}

/// What came back: status code type and status code as 0xTSS, and the command specific result.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Completion {
    status: u16,
    result: u32,
}

impl Controller {
    fn new(name: &'static str, arguments: &[&str]) -> Self {
        let mut machine = Qtest::start(arguments.iter().copied()).expect("QEMU starts");
        let function = machine.enable(CLASS).expect("the controller is there");
        let admin = QueuePair::new(0, ADMIN);
        Self { name, machine, function, admin, io: QueuePair::new(1, IO) }
    }

    fn read(&mut self, register: u64) -> u32 {
        self.machine.read_u32(self.function.bar0 + register).expect("an access")
    }

    fn write(&mut self, register: u64, value: u32) {
        self.machine.write_u32(self.function.bar0 + register, value).expect("an access");
    }

    /// Writes ASQ or ACQ, in two accesses of 32 bits as the specification allows.
    fn write_address(&mut self, register: u64, value: u64) {
        self.write(register, u32::try_from(value & 0xffff_ffff).expect("32 bits"));
        self.write(register + 4, u32::try_from(value >> 32).expect("32 bits"));
    }

    /// Waits for a value of CSTS under a mask.
    fn wait_status(&mut self, mask: u32, value: u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.read(CSTS);
            if status & mask == value {
                return;
            }
            assert!(Instant::now() < deadline, "{}: CSTS is {status:#x}", self.name);
        }
    }

    fn enable(&mut self) {
        for page in [ADMIN, ADMIN + 0x1000] {
            self.machine.write(page, &[0; 4096]).expect("an access");
        }
        self.admin = QueuePair::new(0, ADMIN);
        self.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.write_address(ASQ, self.admin.sq);
        self.write_address(ACQ, self.admin.cq);
        self.write(CC, ENABLED);
        self.wait_status(1, 1);
    }

    fn disable(&mut self) {
        self.write(CC, ENABLED & !1);
        self.wait_status(1, 0);
    }

    /// Creates I/O queue pair 1, polled.
    fn create_queues(&mut self) {
        self.machine.write(IO, &[0; 8192]).expect("an access");
        self.io = QueuePair::new(1, IO);
        for (opcode, prp1, flags) in [(0x05, self.io.cq, 1), (0x01, self.io.sq, 1 << 16 | 1)] {
            let dwords = [(ENTRIES - 1) << 16 | 1, flags, 0, 0];
            let done = self.admin(Command { opcode, prp1, dwords, ..Command::default() });
            assert_eq!(done.status, 0, "{}: creating a queue", self.name);
        }
    }

    fn admin(&mut self, command: Command) -> Completion {
        execute(&mut self.machine, &self.function, &mut self.admin, command, self.name)
    }

    fn io(&mut self, command: Command) -> Completion {
        execute(&mut self.machine, &self.function, &mut self.io, command, self.name)
    }
}

/// Submits a command and polls for its completion.
fn execute(
    machine: &mut Qtest,
    function: &PciFunction,
    queue: &mut QueuePair,
    command: Command,
    name: &str,
) -> Completion {
    let mut entry = [0; 64];
    entry[0] = command.opcode;
    entry[2..4].copy_from_slice(&u16::try_from(queue.next).expect("a small queue").to_le_bytes());
    entry[4..8].copy_from_slice(&command.nsid.to_le_bytes());
    entry[24..32].copy_from_slice(&command.prp1.to_le_bytes());
    entry[32..40].copy_from_slice(&command.prp2.to_le_bytes());
    for (number, dword) in command.dwords.iter().enumerate() {
        entry[40 + 4 * number..][..4].copy_from_slice(&dword.to_le_bytes());
    }
    machine.write(queue.sq + 64 * u64::from(queue.next), &entry).expect("an access");
    queue.next = (queue.next + 1) % ENTRIES;
    let doorbell = function.bar0 + DOORBELLS + 8 * queue.id;
    machine.write_u32(doorbell, queue.next).expect("an access");

    let address = queue.cq + 16 * u64::from(queue.head);
    let deadline = Instant::now() + Duration::from_secs(20);
    let completion = loop {
        let completion = machine.read(address, 16).expect("an access");
        if completion[14] & 1 == queue.phase {
            break completion;
        }
        assert!(Instant::now() < deadline, "{name}: opcode {:#x} does not complete", command.opcode);
    };
    queue.head = (queue.head + 1) % ENTRIES;
    if queue.head == 0 {
        queue.phase ^= 1;
    }
    machine.write_u32(doorbell + 4, queue.head).expect("an access");
    Completion {
        status: u16::from_le_bytes([completion[14], completion[15]]) >> 1 & 0x7ff,
        result: u32::from_le_bytes([completion[0], completion[1], completion[2], completion[3]]),
    }
}

/// QEMU's controller and ringpair's, each with a disk of [`BLOCKS`] blocks full of zeroes.
fn controllers() -> Option<(Served, [Controller; 2])> {
    guest_or_skip()?;
    let served = Served::files(&[BLOCKS * 512, BLOCKS * 512]);
    // The server's second disk is the file behind QEMU's controller as well: nobody writes to it here.
    let file = served.path("disk1");
    let blockdev =
        format!("raw,node-name=disk,file.driver=file,file.locking=off,file.filename={}", file.display());
    let theirs =
        Controller::new("QEMU", &["-blockdev", &blockdev, "-device", "nvme,serial=oracle,drive=disk"]);
    let socket = served.socket();
    let device = serde_json::json!({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": socket}});
    let ours = Controller::new("ringpair", &["-device", &device.to_string()]);
    Some((served, [theirs, ours]))
}

/// A command, the status that the specification asks for, and whether QEMU 11.1 answers so.
type Case = (&'static str, Command, u16, bool);

fn admin_cases(mqes: u32) -> Vec<Case> {
    let command = |opcode, nsid, prp1, cdw10, cdw11| Command {
        opcode,
        nsid,
        prp1,
        dwords: [cdw10, cdw11, 0, 0],
        ..Command::default()
    };
    let small = (ENTRIES - 1) << 16;
    vec![
        ("an opcode that does not exist", command(0xbf, 0, 0, 0, 0), 0x001, true),
        ("Identify, a CNS that does not exist", command(0x06, 0, DATA, 0xf0, 0), 0x002, true),
        ("Identify Controller", command(0x06, 0, DATA, 1, 0), 0x000, true),
        ("Identify Namespace 0", command(0x06, 0, DATA, 0, 0), 0x00b, true),
        ("Identify Namespace, an identifier past NN", command(0x06, 0xffff_fff0, DATA, 0, 0), 0x00b, true),
        ("Get Log Page, a page that does not exist", command(0x02, 0, DATA, 0x00f_00bf, 0), 0x109, false),
        ("Get Features, a feature that does not exist", command(0x0a, 0, 0, 0xbf, 0), 0x002, true),
        ("Set Features, a feature that does not exist", command(0x09, 0, 0, 0xbf, 0), 0x002, true),
        ("Set Features, Number of Queues when there are some", command(0x09, 0, 0, 7, 0), 0x00c, true),
        ("Create CQ 0", command(0x05, 0, IO, small, 1), 0x101, true),
        ("Create CQ 65535", command(0x05, 0, IO, small | 0xffff, 1), 0x101, true),
        ("Create CQ of one entry", command(0x05, 0, IO, 2, 1), 0x102, true),
        ("Create CQ, one entry too many", command(0x05, 0, IO, (mqes + 1) << 16 | 2, 1), 0x102, true),
        ("Create CQ, off its page", command(0x05, 0, IO + 8, small | 2, 1), 0x013, true),
        (
            "Create CQ, a vector that does not exist",
            command(0x05, 0, IO, small | 2, 0x07ff_0003),
            0x108,
            true,
        ),
        ("Create SQ 0", command(0x01, 0, IO, small, 0x1_0001), 0x101, true),
        ("Create SQ on a CQ that is not there", command(0x01, 0, IO, small | 2, 0x2_0001), 0x100, true),
        ("Create SQ of one entry", command(0x01, 0, IO, 2, 0x1_0001), 0x102, true),
        ("Create SQ, one entry too many", command(0x01, 0, IO, (mqes + 1) << 16 | 2, 0x1_0001), 0x102, true),
        ("Create CQ 1 once more", command(0x05, 0, IO, small | 1, 1), 0x101, true),
        ("Create SQ 1 once more", command(0x01, 0, IO, small | 1, 0x1_0001), 0x101, true),
        ("Delete CQ 1 before its SQ", command(0x04, 0, 0, 1, 0), 0x10c, true),
        ("Delete CQ 0", command(0x04, 0, 0, 0, 0), 0x101, false),
        ("Delete CQ 9, not there", command(0x04, 0, 0, 9, 0), 0x101, false),
        ("Delete SQ 0", command(0x00, 0, 0, 0, 0), 0x101, true),
        ("Delete SQ 9, not there", command(0x00, 0, 0, 9, 0), 0x101, true),
    ]
}

fn io_cases(mdts_blocks: u32) -> Vec<Case> {
    let command = |opcode, nsid, prp1, prp2, first: u64, blocks: u32| Command {
        opcode,
        nsid,
        prp1,
        prp2,
        dwords: [first as u32, (first >> 32) as u32, blocks - 1, 0],
    };
    vec![
        ("an opcode that does not exist", command(0x7f, 1, DATA, 0, 0, 1), 0x001, true),
        ("Read namespace 0", command(0x02, 0, DATA, 0, 0, 1), 0x00b, true),
        ("Read a namespace past NN", command(0x02, 0xffff_fff0, DATA, 0, 0, 1), 0x00b, true),
        ("Read the last block", command(0x02, 1, DATA, 0, BLOCKS - 1, 1), 0x000, true),
        ("Read one block past the end", command(0x02, 1, DATA, 0, BLOCKS, 1), 0x080, true),
        ("Read over the end", command(0x02, 1, DATA, 0, BLOCKS - 1, 2), 0x080, true),
        ("Read at an LBA that overflows", command(0x02, 1, DATA, 0, u64::MAX, 2), 0x080, true),
        ("Write past the end", command(0x01, 1, DATA, 0, BLOCKS, 1), 0x080, true),
        ("Write Zeroes over the end", command(0x08, 1, 0, 0, BLOCKS - 1, 2), 0x080, true),
        ("Read more than MDTS", command(0x02, 1, DATA, 0, 0, mdts_blocks + 1), 0x002, true),
        ("Read, a second page off its boundary", command(0x02, 1, DATA, DATA + 8, 0, 16), 0x013, true),
        ("Read with PRP1 off a double word", command(0x02, 1, DATA + 2, 0, 0, 1), 0x013, false),
        ("Compare zeroes with data", command(0x05, 1, DATA, 0, 0, 1), 0x285, true),
        ("Flush", command(0x00, 1, 0, 0, 0, 1), 0x000, true),
    ]
}

#[test]
fn bad_commands_get_the_status_that_the_specification_names() {
    let Some((_served, mut controllers)) = controllers() else { return };
    let mut wrong = Vec::new();
    for controller in &mut controllers {
        let cap = controller.read(CAP);
        controller.enable();
        for too_many in [0xffff, 0xffff_0000] {
            let queues = Command { opcode: 0x09, dwords: [0x07, too_many, 0, 0], ..Command::default() };
            assert_eq!(controller.admin(queues).status, 0x002, "{}: 65536 queues", controller.name);
        }
        controller.create_queues();
        let mdts_blocks = largest_transfer(controller) / 512;
        for (what, command, status, _) in known(controller.name, admin_cases(cap & 0xffff)) {
            let done = controller.admin(command);
            if done.status != status {
                wrong.push(format!("{}: {what}: {:#05x}, not {status:#05x}", controller.name, done.status));
            }
        }
        controller.machine.write(DATA, &[0x5a; 512]).expect("an access");
        for (what, command, status, _) in known(controller.name, io_cases(mdts_blocks)) {
            if what.starts_with("Compare") {
                controller.machine.write(DATA, &[0x5a; 512]).expect("an access");
            }
            let done = controller.io(command);
            if done.status != status {
                wrong.push(format!("{}: {what}: {:#05x}, not {status:#05x}", controller.name, done.status));
            }
        }
        // After all of that, it works as if nothing had been.
        let last = Command { opcode: 0x02, nsid: 1, prp1: DATA, ..Command::default() };
        assert_eq!(controller.io(last).status, 0, "{}", controller.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The cases in which the controller is expected to do as the specification says.
fn known(name: &str, cases: Vec<Case>) -> impl Iterator<Item = Case> {
    let qemu = name == "QEMU";
    cases.into_iter().filter(move |(_, _, _, agrees)| *agrees || !qemu)
}

/// MDTS in bytes.
fn largest_transfer(controller: &mut Controller) -> u32 {
    let identify = Command { opcode: 0x06, prp1: DATA, dwords: [1, 0, 0, 0], ..Command::default() };
    assert_eq!(controller.admin(identify).status, 0);
    let mdts = controller.machine.read(DATA + 77, 1).expect("an access")[0];
    assert!((1..=12).contains(&mdts), "{}: MDTS is {mdts}", controller.name);
    4096 << mdts
}

#[test]
fn registers_follow_enable_and_disable() {
    let Some((_served, mut controllers)) = controllers() else { return };
    for controller in &mut controllers {
        let name = controller.name;
        assert_eq!(controller.read(CSTS), 0, "{name}: before anything");
        assert_eq!(controller.read(CC), 0, "{name}: before anything");
        let (cap, high, version) = (controller.read(CAP), controller.read(CAP + 4), controller.read(VS));
        assert!(cap & 0xffff >= 1 && cap >> 16 & 1 == 1, "{name}: CAP.MQES, CAP.CQR: {cap:#x}");
        assert!(cap >> 24 > 0, "{name}: CAP.TO: {cap:#x}");
        assert_eq!(high >> 5 & 1, 1, "{name}: CAP.CSS has the NVM command set: {high:#x}");
        assert!(version >= 0x0001_0000, "{name}: VS: {version:#x}");
        for read_only in [CAP, CAP + 4, VS] {
            let before = controller.read(read_only);
            controller.write(read_only, !before);
            assert_eq!(controller.read(read_only), before, "{name}: {read_only:#x} is read only");
        }

        for _ in 0..3 {
            controller.enable();
            controller.create_queues();
            let read = Command { opcode: 0x02, nsid: 1, prp1: DATA, ..Command::default() };
            assert_eq!(controller.io(read).status, 0, "{name}");
            controller.disable();
            assert_eq!(controller.read(CSTS) & 1, 0, "{name}");
        }
        controller.enable();
        // CC.SHN: an orderly shutdown, and CSTS.SHST says when it is complete.
        controller.write(CC, ENABLED | 1 << 14);
        controller.wait_status(3 << 2, 2 << 2);
    }
}
