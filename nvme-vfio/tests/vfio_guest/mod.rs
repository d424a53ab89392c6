//! A guest with an emulated IOMMU and two of QEMU's NVMe controllers, in which `vfio_exercise` of this package runs on the
//! kernel's VFIO. What it is to do is the same for each of the kernel's interfaces, and so are the tests: a file has one
//! [`machine`] and the cases that hold there, which are functions of [`Turn`].

// Each file of tests is a program of its own, and uses its own part of this.
#![allow(dead_code, unused_macros, unused_imports)]

use fixtures::{Guest, Kernel, guest_with_or_skip};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For what writes a lot, in a guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(300);

/// For the whole contract.
const VERY_LONG: Duration = Duration::from_secs(900);

/// The programs, in the guest's PATH.
pub const PROGRAM: &str = "vfio_exercise";
const DISK_PROGRAM: &str = "disk_exercise";

/// The interface without an IOMMU.
const NO_IOMMU: &str = "unsafe-no-iommu";

/// A booted guest, used by one test at a time.
pub struct VfioGuest {
    guest: Mutex<Guest>,
    /// The controllers' addresses: the first is given to programs, the second stays with the kernel.
    addresses: [String; 2],
    interface: &'static str,
}

/// What kind of guest.
pub struct Machine {
    pub kernel: Kernel,
    /// Bits of the IOMMU's addresses; `None`: there is no IOMMU.
    pub iommu: Option<u8>,
    /// Further words for the kernel's command line.
    pub arguments: &'static str,
    /// By which of the kernel's interfaces programs take controllers.
    pub interface: &'static str,
}

/// Makes tests of cases that are functions of [`Turn`], and `turn()` for tests of the file's own: all of them take turns on
/// one guest.
macro_rules! machine {
    ($machine:expr; $($case:ident),* $(,)?) => {
        /// The guest, for the test that calls this; `None` where there can be none.
        fn turn() -> Option<$crate::vfio_guest::Turn<'static>> {
            static GUEST: std::sync::OnceLock<Option<$crate::vfio_guest::VfioGuest>> = std::sync::OnceLock::new();
            GUEST.get_or_init(|| $crate::vfio_guest::boot(&$machine)).as_ref().map($crate::vfio_guest::VfioGuest::turn)
        }

        $(#[test]
        fn $case() {
            if let Some(turn) = turn() {
                turn.$case();
            }
        })*
    };
}
pub(crate) use machine;

/// The guest of a test program.
pub fn boot(machine: &Machine) -> Option<VfioGuest> {
    let mut builder = guest_with_or_skip(machine.kernel)?.kernel_arguments(machine.arguments);
    if let Some(bits) = machine.iommu {
        builder = builder.iommu(bits);
    }
    let disks = [disk(), disk()];
    let [first, second] = disks.each_ref().map(tempfile::NamedTempFile::path);
    let guest = builder
        .memory_mib(768)
        .program(&program(PROGRAM))
        .program(&program(DISK_PROGRAM))
        .qemu_nvme(first)
        .qemu_nvme(second)
        .boot()
        .expect("the guest boots");
    // QEMU has them open; nothing is left when it ends.
    drop(disks);
    let addresses = guest.nvme_addresses().expect("the controllers' addresses");
    let addresses = addresses.try_into().expect("two controllers");
    Some(VfioGuest { guest: Mutex::new(guest), addresses, interface: machine.interface })
}

pub fn disk() -> tempfile::NamedTempFile {
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    disk.as_file().set_len(256 << 20).expect("a size");
    disk
}

/// Where cargo has put the example: beside the tests' folder.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    test.ancestors().nth(2).expect("a target directory").join("examples").join(name)
}

/// The guest, while one test uses it: the first controller is bound to vfio-pci.
pub struct Turn<'a> {
    pub guest: MutexGuard<'a, Guest>,
    /// The controller to use.
    pub address: &'a str,
    /// The one that the kernel has.
    other: &'a str,
    interface: &'static str,
}

impl VfioGuest {
    pub fn turn(&self) -> Turn<'_> {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        let [address, other] = &self.addresses;
        // A test that failed may have left its programs.
        let leftovers = "for p in /proc/[0-9]*; do
            case $(readlink $p/exe) in /host/*) kill -9 ${p#/proc/};; esac
        done";
        guest.check(leftovers).expect("nothing is left");
        guest.bind_vfio(address).expect("bound to vfio-pci");
        Turn { guest, address, other, interface: self.interface }
    }
}

impl Turn<'_> {
    /// A command line that runs the program on the controller.
    fn line(&self, rest: &str) -> String {
        self.line_for(self.address, rest)
    }

    pub fn line_for(&self, address: &str, rest: &str) -> String {
        let (options, command) = match rest.rsplit_once(" -- ") {
            Some((options, command)) => (options, command),
            None => ("", rest),
        };
        format!("{PROGRAM} --vfio {} {options} {address} {command}", self.interface)
    }

    pub fn succeed(&self, rest: &str) -> String {
        self.guest.check_within(&self.line(rest), LONG).expect("it succeeds")
    }

    /// Runs a line that has to fail, and returns what it complained of.
    pub fn complaint(&self, line: &str) -> String {
        let output = self.guest.run(line).expect("it ends");
        assert!(!output.success(), "{line}: {}", output.stdout);
        output.stderr
    }

    /// Starts the program in the background and waits until it says `word`; the number of its process.
    fn start(&self, rest: &str, word: &str) -> String {
        let line = self.line(rest);
        let script = format!(
            "{line} >/tmp/started 2>&1 & pid=$!
            for i in $(seq 600); do grep -q '{word}' /tmp/started && break; sleep 0.1; done
            grep -q '{word}' /tmp/started || {{ cat /tmp/started >&2; exit 1; }}
            echo $pid"
        );
        // Every test has the guest for itself: one file is enough.
        self.guest.check_within(&script, LONG).expect("it says the word").trim().to_owned()
    }

    fn kill(&self, pid: &str) {
        // Nobody may wait for it, so that it stays as a zombie; and its first thread is one before the others, which
        // hold its files as well, have ended.
        let alive = format!("grep -qs '^State:.[^ZX]' /proc/{pid}/task/*/status");
        let script = format!("kill -9 {pid}; while {alive}; do sleep 0.05; done");
        self.guest.check(&script).expect("it is gone");
    }

    pub fn the_controller_is_identified(&self) {
        let said = self.succeed("identify");
        assert!(said.contains(&format!("{}: taken by {}", self.address, self.interface)), "{said}");
        assert!(said.contains("serial disk0, model QEMU NVMe Ctrl"), "{said}");
        assert!(said.contains(&format!("namespace 1: {} bytes", 256 << 20)), "{said}");
    }

    pub fn all_sizes_through_all_queues_come_back_as_written(&self) {
        let said = self.succeed("--queues 4 -- exercise");
        assert!(said.contains("through 4 queues") && said.contains("bytes in one buffer"), "{said}");
        if self.interface == NO_IOMMU {
            assert!(said.contains("cannot be lent without an IOMMU"), "{said}");
            return;
        }
        assert!(said.contains("out of reach when taken back"), "{said}");
        let complaints = self.guest.check("dmesg | grep -i 'DMAR.*fault' | wc -l").expect("dmesg");
        // The one on purpose, in which the controller is kept from memory that was taken back.
        assert_ne!(complaints.trim(), "0", "the IOMMU has stopped nothing");
    }

    pub fn nothing_is_left_over_when_it_is_closed_and_opened_again(&self) {
        let said = self.succeed("reopen");
        assert!(said.contains("the function was reset") && said.contains("nothing is left over"), "{said}");
    }

    pub fn data_and_queues_survive_resets(&self) {
        let said = self.succeed("reset");
        assert!(said.contains("verified over 3 resets"), "{said}");
    }

    pub fn interrupts_wake_who_sleeps(&self) {
        let said = self.succeed("--interrupts --queues 3 -- exercise");
        assert!(said.contains("through 3 queues"), "{said}");
    }

    pub fn its_namespace_is_a_disk_that_keeps_the_contract(&self) {
        let line = format!("{DISK_PROGRAM} nvme://{}/1,vfio={} contract", self.address, self.interface);
        let said = self.guest.check_within(&line, VERY_LONG).expect("it is kept");
        assert!(said.contains("all of the contract is kept"), "{said}");
    }

    pub fn requests_into_registered_memory_are_not_copied(&self) {
        for options in ["", ",poll=always", ",depth=8,queues=3"] {
            let line = format!(
                "{DISK_PROGRAM} nvme://{}/1,vfio={}{options} zero-copy",
                self.address, self.interface
            );
            let said = self.guest.check_within(&line, LONG).expect("it succeeds");
            assert!(said.contains("bytes_bounced 0\n") && said.contains("verified"), "{said}");
        }
    }

    pub fn a_second_process_is_refused(&self) {
        let holder = self.start("hold", "taken by");
        let complaint = self.complaint(&self.line("identify"));
        assert!(complaint.contains(&format!("{} is in use by another process", self.address)), "{complaint}");
        self.kill(&holder);
        self.succeed("identify");
    }

    pub fn a_killed_process_leaves_a_controller_that_starts_afresh(&self) {
        for _ in 0..3 {
            let hammer = self.start("hammer", "hammering");
            self.kill(&hammer);
            self.succeed("identify");
        }
        self.succeed("exercise");
    }

    /// The kernel's driver is unbound from a controller that a program holds, which goes on running.
    pub fn a_controller_in_use_is_let_go_when_the_kernel_asks_for_it(&self) {
        for command in ["hammer", "hold"] {
            let (word, address) = (if command == "hammer" { "hammering" } else { "taken by" }, self.address);
            let holder = self.start(command, word);
            // Writing to `unbind` returns when the program has let go: or never.
            let unbind = format!(
                "cd /sys/bus/pci/devices/{address} && echo >driver_override && echo {address} >driver/unbind &&
                echo {address} >/sys/bus/pci/drivers_probe && [ $(basename $(readlink driver)) = nvme ]"
            );
            self.guest.check(&unbind).expect("the kernel has it back");
            if command == "hammer" {
                let told = "for i in $(seq 100); do grep -q 'was taken back' /tmp/started && exit; sleep 0.1; done; exit 1";
                self.guest.check(told).expect("writes fail with the reason");
            }
            self.guest.check(&format!("kill -0 {holder}")).expect("the program still runs");
            let read = format!(
                "for i in $(seq 100); do n=$(ls -d /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1) && break; sleep 0.1; done
                dd if=/dev/$(basename $n) of=/dev/null bs=64k count=16 iflag=direct"
            );
            self.guest.check(&read).expect("the kernel uses it");
            self.kill(&holder);
            self.guest.bind_vfio(address).expect("bound to vfio-pci again");
        }
        self.succeed("identify");
    }

    pub fn the_kernel_gets_it_back_and_reads_what_was_written(&self) {
        self.guest.check("head -c 3000000 /dev/urandom >/tmp/data").expect("data");
        self.succeed("write /tmp/data");
        self.guest.unbind_vfio(self.address).expect("the kernel takes it back");
        let script = format!(
            "for i in $(seq 100); do n=$(ls -d /sys/bus/pci/devices/{}/nvme/nvme*/nvme*n1) && break; sleep 0.1; done
            head -c 3000000 /dev/$(basename $n) | cmp - /tmp/data",
            self.address
        );
        self.guest.check(&script).expect("the kernel reads what was written");
    }

    pub fn a_controller_that_the_kernel_has_is_refused_with_what_to_do(&self) {
        let other = self.other;
        let complaint = self.complaint(&self.line_for(other, "identify"));
        let wanted =
            format!("{other} is bound to the driver nvme: `ringpair nvme bind {other}` gives it to VFIO");
        assert!(complaint.contains(&wanted), "{complaint}");
    }
}
