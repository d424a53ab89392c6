//! The front door with QEMU at it: as a laboratory without a processor, and with a Linux guest in it.

mod host;

use fixtures::{PciFunction, Qtest, guest_or_skip};
use host::{disk, subsystem};
use nvme_emu::vfio_user::Server;
use nvme_emu::{ControllerOptions, Engine, EngineOptions, PollMode};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// NVMe's class code.
const NVME_CLASS: u32 = 0x01_08_02;

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;

/// A controller with one disk, served to whoever connects.
struct Served {
    engine: Engine,
    dir: TempDir,
}

impl Served {
    fn new(poll: PollMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(EngineOptions { poll, ..EngineOptions::default() }).unwrap();
        let options = ControllerOptions { queues: 2, ..ControllerOptions::default() };
        let function = engine.add_controller(&subsystem(vec![disk("mem:64M")]), &options).unwrap();
        let server = Server::bind(&dir.path().join("s"), function.clone()).unwrap();
        engine.serve(&function, Box::new(server));
        Self { engine, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn laboratory(&self) -> (Qtest, PciFunction) {
        let socket = self.socket();
        let device = format!(
            r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{}"}}}}"#,
            socket.display()
        );
        let mut machine = Qtest::start(["-device", &device]).expect("QEMU starts");
        let nvme = machine.enable(NVME_CLASS).expect("the controller is there");
        (machine, nvme)
    }

    fn doorbell_messages(&self) -> u64 {
        self.engine.counters().controllers[0].doorbell_messages
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Enables the controller and has it identify itself, through queues in the machine's memory.
fn identify(machine: &mut Qtest, nvme: PciFunction) -> Vec<u8> {
    let (sq, cq, data) = (0x10_0000, 0x10_1000, 0x10_2000_u64);
    machine.write(cq, &[0; 256]).unwrap();
    machine.write_u32(nvme.bar0 + 0x24, 0x000f_000f).unwrap();
    machine.write_u64(nvme.bar0 + 0x28, sq).unwrap();
    machine.write_u64(nvme.bar0 + 0x30, cq).unwrap();
    machine.write_u32(nvme.bar0 + CC, 0x0046_0001).unwrap();
    until("CSTS.RDY", || machine.read_u32(nvme.bar0 + CSTS).unwrap() & 1 == 1);
    let mut command = [0; 64];
    command[0] = 0x06;
    command[24..32].copy_from_slice(&data.to_le_bytes());
    command[40] = 1;
    machine.write(sq, &command).unwrap();
    machine.write_u32(nvme.bar0 + 0x1000, 1).unwrap();
    until("a completion", || machine.read(cq + 14, 1).unwrap()[0] & 1 == 1);
    machine.read(data, 4096).unwrap()
}

#[test]
fn qemu_reaches_registers_doorbells_and_memory() {
    if guest_or_skip().is_none() {
        return;
    }
    let served = Served::new(PollMode::Adaptive);
    let (mut machine, nvme) = served.laboratory();
    assert_eq!(machine.config_read(nvme.device, 0x00).unwrap(), 0x0001_5250);
    assert_eq!(machine.config_read(nvme.device, 0x2c).unwrap(), 0x0001_5250);
    assert_eq!(machine.read_u32(nvme.bar0 + 8).unwrap() >> 16, 2, "NVMe 2.x");
    let identity = identify(&mut machine, nvme);
    assert_eq!(identity[..4], [0x50, 0x52, 0x50, 0x52], "VID and SSVID are those of the function");
    assert_eq!(served.doorbell_messages(), 1);
}

#[test]
fn qemu_maps_the_doorbells_of_a_controller_that_keeps_polling() {
    if guest_or_skip().is_none() {
        return;
    }
    let served = Served::new(PollMode::Always);
    let (mut machine, nvme) = served.laboratory();
    identify(&mut machine, nvme);
    assert_eq!(served.doorbell_messages(), 0, "the doorbell was written to memory");
}

#[test]
fn a_function_level_reset_disables_the_controller() {
    if guest_or_skip().is_none() {
        return;
    }
    let served = Served::new(PollMode::Adaptive);
    let (mut machine, nvme) = served.laboratory();
    identify(&mut machine, nvme);
    let capability = find_express(&mut machine, nvme.device);
    let control = machine.config_read(nvme.device, capability + 8).unwrap();
    machine.config_write(nvme.device, capability + 8, control | 1 << 15).unwrap();
    until("reset", || machine.read_u32(nvme.bar0 + CSTS).unwrap() & 1 == 0);
    assert_eq!(machine.config_read(nvme.device, capability + 8).unwrap() & 1 << 15, 0);
    assert_eq!(machine.read_u32(nvme.bar0 + CC).unwrap(), 0);
    identify(&mut machine, nvme);
}

/// Where the PCI Express capability is.
fn find_express(machine: &mut Qtest, device: u8) -> u8 {
    let mut at = machine.config_read(device, 0x34).unwrap() as u8;
    while at != 0 {
        let header = machine.config_read(device, at).unwrap();
        if header as u8 == 0x10 {
            return at;
        }
        at = (header >> 8) as u8;
    }
    panic!("no PCI Express capability");
}

#[test]
fn a_killed_qemu_makes_room_for_the_next_one() {
    if guest_or_skip().is_none() {
        return;
    }
    let served = Served::new(PollMode::Adaptive);
    for _ in 0..3 {
        let (mut machine, nvme) = served.laboratory();
        assert_eq!(machine.read_u32(nvme.bar0 + CC).unwrap(), 0, "nothing is left of the one before");
        identify(&mut machine, nvme);
        drop(machine);
    }
}

#[test]
fn an_engine_shuts_down_while_a_client_is_connected() {
    if guest_or_skip().is_none() {
        return;
    }
    let served = Served::new(PollMode::Adaptive);
    let (mut machine, nvme) = served.laboratory();
    identify(&mut machine, nvme);
    let (done, shut_down) = std::sync::mpsc::channel();
    let Served { engine, dir } = served;
    std::thread::spawn(move || {
        engine.shutdown();
        done.send(()).unwrap();
    });
    shut_down.recv_timeout(Duration::from_secs(10)).expect("it does not hang");
    assert!(!dir.path().join("s").exists());
}

/// What a Linux guest sees of the function, and interrupts of both kinds.
fn linux_uses_it(arguments: &str, interrupts: &str) {
    let Some(builder) = guest_or_skip() else { return };
    let served = Served::new(PollMode::Adaptive);
    let guest = builder.kernel_arguments(arguments).vfio_user(&served.socket()).boot().expect("it boots");
    guest.check("modprobe nvme; until [ -b /dev/nvme0n1 ]; do sleep 0.05; done").expect("the namespace");
    let device = "/sys/class/nvme/nvme0/device";
    assert_eq!(guest.check(&format!("cat {device}/class {device}/vendor")).unwrap(), "0x010802\n0x5250\n");
    assert!(guest.check(&format!("cat {device}/reset_method")).unwrap().contains("flr"));
    let write = "dd if=/dev/urandom of=/tmp/data bs=64k count=64; dd if=/tmp/data of=/dev/nvme0n1 oflag=direct bs=64k";
    let compare = "dd if=/dev/nvme0n1 iflag=direct bs=64k count=64 | cmp - /tmp/data";
    guest.check(&format!("({write}) 2>/dev/null && {compare} 2>/dev/null")).expect("data is read back");
    let lines = guest.check("grep nvme /proc/interrupts").unwrap();
    assert!(lines.contains(interrupts), "{lines}");
    guest.check(&format!("echo 1 >{device}/reset")).expect("a function-level reset");
    guest.check(compare).expect("the data is still there after a reset");
    let complaints = guest.check("dmesg | grep -iE 'nvme.*(timeout|abort|fail|error)' || true").unwrap();
    assert_eq!(complaints, "");
    guest.power_off().expect("it shuts down");
}

#[test]
fn linux_uses_it_with_msix() {
    linux_uses_it("", "PCI-MSIX");
}

#[test]
fn linux_uses_it_with_intx() {
    linux_uses_it("pci=nomsi", "IO-APIC");
}
