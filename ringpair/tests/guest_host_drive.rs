//! A machine's own drive, from `ringpair nvme list` to a program that uses it and back to the kernel: on kernel VFIO, in
//! a stock Debian guest with an emulated IOMMU and two of QEMU's NVMe controllers.

use fixtures::{Guest, Job, Kernel, guest_with_or_skip};
use std::path::Path;
use std::time::Duration;

/// For what takes its time in a guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(180);

/// What QEMU says when the host notifies its controller that it shuts it down (CC.SHN).
const SHUT_DOWN: &str = "pci_nvme_mmio_shutdown_set";

/// Runs a line that has to fail with one line of error, which is returned.
fn complaint(guest: &Guest, line: &str) -> String {
    let output = guest.run(line).expect("it ends");
    assert!(!output.success(), "{line}: {}", output.stdout);
    assert_eq!(output.stderr.trim().lines().count(), 1, "{line}: {}", output.stderr);
    output.stderr
}

/// What `ringpair nvme list` says of the controller at an address.
fn listed(guest: &Guest, address: &str) -> serde_json::Value {
    let text = guest.check("ringpair nvme list --json").expect("a list");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(rows.len(), 2, "{text}");
    rows.into_iter().find(|row| row["address"] == address).expect("it is listed")
}

#[test]
fn a_drive_goes_from_the_kernel_to_ringpair_and_back() {
    let Some(builder) = guest_with_or_skip(Kernel::V6_12) else { return };
    let disks = [(); 2].map(|()| {
        let disk = tempfile::NamedTempFile::new().expect("a temporary file");
        disk.as_file().set_len(64 << 20).expect("a size");
        disk
    });
    let guest = builder
        .iommu(39)
        .memory_mib(768)
        .program(Path::new(env!("CARGO_BIN_EXE_ringpair")))
        .qemu_nvme_and_namespace(disks[0].path(), "first")
        .qemu_nvme(disks[1].path())
        .qemu_arguments(["-trace", SHUT_DOWN])
        .boot()
        .expect("the guest boots");
    let addresses = guest.nvme_addresses().expect("the controllers' addresses");
    let address = addresses[0].as_str();
    // Which of the kernel's names it has is decided in a race.
    let row = listed(&guest, address);
    assert_eq!((&row["driver"], &row["usable"]), (&"nvme".into(), &"after-bind".into()), "{row}");
    assert_eq!(row["model"], "QEMU NVMe Ctrl", "{row}");
    let serial = row["serial"].as_str().expect("a serial number").to_owned();
    let disk = row["disks"][0].as_str().expect("a disk").to_owned();

    is_not_taken_from_who_uses_it(&guest, address, &disk);

    guest
        .check(&format!("head -c 1000000 /dev/urandom >/tmp/data && cp /tmp/data /dev/{disk} && sync"))
        .expect("data");
    let said = guest.check(&format!("ringpair nvme bind {address}")).expect("bound");
    assert!(said.contains("vfio-pci") && said.contains("/dev/vfio/"), "{said}");
    let row = listed(&guest, address);
    assert_eq!((&row["driver"], &row["usable"]), (&"vfio-pci".into(), &"yes".into()), "{row}");
    assert_eq!(row["serial"], serial.as_str(), "it is remembered: {row}");

    is_for_users_who_may(&guest, address);
    works_on_it(&guest, address);
    is_copied_and_compared_by_the_drive(&guest, address);
    is_shut_down_in_order_by_signals(&guest, address);
    is_served(&guest, address);
    tells_of_its_health_while_it_is_served(&guest, address);
    goes_back_to_the_kernel_from_a_server_by_force(&guest, address);

    let said = guest.check(&format!("ringpair nvme unbind {address}")).expect("given back");
    assert!(said.contains("driver nvme"), "{said}");
    let appears = format!(
        "for i in $(seq 100); do n=$(ls -d /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1) && break; sleep 0.1; done
        sleep 0.5; ringpair io /dev/$(basename $n) verify --length 1M --pattern 9"
    );
    guest.check_within(&appears, LONG).expect("the kernel reads what ringpair wrote");
    assert_eq!(listed(&guest, address)["usable"], "after-bind");
}

fn is_not_taken_from_who_uses_it(guest: &Guest, address: &str, disk: &str) {
    guest
        .check(&format!(
            "mkfs.ext4 -qF /dev/{disk} >/dev/null && mkdir -p /mnt/x && mount -t ext4 /dev/{disk} /mnt/x"
        ))
        .expect("mounted");
    let bind = format!("ringpair nvme bind {address}");
    let said = complaint(guest, &bind);
    assert!(said.contains(&format!("/dev/{disk} is mounted at /mnt/x")), "{said}");
    let row = listed(guest, address);
    assert_eq!(row["usable"], "no", "{row}");
    assert!(row["reason"].as_str().expect("text").contains("/mnt/x"), "{row}");
    guest.check("umount /mnt/x").expect("unmounted");

    guest.check(&format!("mkswap /dev/{disk} >/dev/null && swapon /dev/{disk}")).expect("swap space");
    let said = complaint(guest, &bind);
    assert!(said.contains(&format!("/dev/{disk} is swap space")), "{said}");
    guest.check(&format!("swapoff /dev/{disk}")).expect("no swap space");

    // Mounted where this process does not see it: only the kernel knows.
    let hidden = format!(
        "mkfs.ext4 -qF /dev/{disk} >/dev/null; unshare -m sh -c 'mount -t ext4 /dev/{disk} /mnt/x; touch /tmp/mounted; \
         until [ -e /tmp/enough ]; do sleep 0.1; done'"
    );
    let job = guest.start(&hidden).expect("started");
    guest.check("for i in $(seq 100); do [ -e /tmp/mounted ] && break; sleep 0.1; done").expect("mounted");
    let said = complaint(guest, &bind);
    assert!(said.contains(&format!("/dev/{disk} is in use by the kernel")), "{said}");
    guest.check("touch /tmp/enough").expect("enough");
    guest.wait(job, LONG).expect("it ends");
}

/// What README has an administrator permit is what an ordinary user needs, and what is missing is said.
fn is_for_users_who_may(guest: &Guest, address: &str) {
    let user = |limit: &str, line: &str| {
        format!("ulimit -l {limit} && start-stop-daemon -S -q -c user -x /usr/local/bin/ringpair -- {line}")
    };
    // The guest has no users yet.
    let users = "echo root:x:0:0::/:/bin/sh >>/etc/passwd; echo user:x:1000:1000::/tmp:/bin/sh >>/etc/passwd; \
                 echo user:x:1000: >>/etc/group";
    guest.check(users).expect("a user");
    let file = format!("/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{address}/iommu_group))");
    let identify = format!("identify nvme://{address}");
    let said = complaint(guest, &user("65536", &identify));
    assert!(said.contains("no permission to open /dev/vfio/") && said.contains("udev"), "{said}");
    let said = guest.check(&user("65536", "nvme list")).expect("a list");
    assert!(said.contains("no permission to open /dev/vfio/"), "{said}");
    for command in ["unbind", "bind"] {
        let other = guest.nvme_addresses().expect("addresses").pop().expect("a second one");
        let address = if command == "bind" { &other } else { address };
        let said = complaint(guest, &user("65536", &format!("nvme {command} {address}")));
        assert!(said.contains("no permission to write") && said.contains("sudo ringpair nvme"), "{said}");
    }

    guest.check(&format!("chgrp 1000 {file} && chmod 660 {file}")).expect("permission");
    let said = complaint(guest, &user("8", &identify));
    assert!(said.contains("raise ulimit -l"), "{said}");
    let said = guest.check(&user("65536", &identify)).expect("identified by an ordinary user");
    assert!(said.contains("QEMU NVMe Ctrl"), "{said}");
    let said = guest.check(&user("65536", "nvme list")).expect("a list");
    assert!(said.contains("through /dev/vfio/"), "{said}");
}

/// Every command takes the drive as a target.
fn works_on_it(guest: &Guest, address: &str) {
    let said = guest
        .check(&format!("ringpair io nvme://{address}/1 read --length 1000448 --output /tmp/read"))
        .expect("read");
    assert!(!said.is_empty());
    guest.check("head -c 1000000 /tmp/read | cmp - /tmp/data").expect("what the kernel wrote");
    let said = guest.check(&format!("ringpair identify nvme://{address}")).expect("identified");
    assert!(said.contains("QEMU NVMe Ctrl") && said.contains("64 MiB"), "{said}");
    let said = guest.check(&format!("ringpair nvme smart {address}")).expect("its health");
    assert!(said.contains("50 °C"), "QEMU's controllers have that by default: {said}");
    guest.check(&format!("ringpair nvme error-log {address}")).expect("its errors");
    let bench = format!("ringpair bench nvme://{address}/1 --rw randread --iodepth 4 --runtime 200ms --json");
    let said = guest.check_within(&bench, LONG).expect("a bench");
    assert!(said.contains("randread"), "{said}");

    let format = format!("ringpair nvme format nvme://{address}/1");
    let said = complaint(guest, &format!("{format} </dev/null"));
    assert!(said.contains("--yes"), "{said}");
    let said = guest.check(&format!("{format} --block-size 4096 --yes")).expect("formatted");
    assert!(said.contains("blocks of 4096 bytes"), "{said}");
    let said = guest.check(&format!("{format} --block-size 512 --yes")).expect("formatted");
    assert!(said.contains("blocks of 512 bytes"), "{said}");
}

/// The commands that take two pieces of data, and those that take none.
fn is_copied_and_compared_by_the_drive(guest: &Guest, address: &str) {
    let io = |rest: &str| guest.check_within(&format!("ringpair io nvme://{address}/1 {rest}"), LONG);
    io("write --length 3M --pattern 4").expect("written");
    // More than one Copy takes, of more than one source range.
    io("copy --length 3M --to 16M --fua").expect("copied");
    io("read --offset 16M --length 3M --output /tmp/copy").expect("read");
    io("compare --offset 16M --length 3M --input /tmp/copy").expect("the drive finds it the same");
    io("verify --length 3M --input /tmp/copy").expect("it is the same");
    let said = complaint(guest, &format!("ringpair io nvme://{address}/1 compare --length 4k --pattern 5"));
    assert!(said.to_lowercase().contains("compare failure"), "{said}");
    io("write-zeroes --offset 16M --length 1M").expect("zeroed");
    io("write-zeroes --offset 17M --length 1M --deallocate").expect("zeroed");
    io("verify --offset 16M --length 2M --input /dev/null").expect("zeroes");
    io("discard --offset 18M --length 1M").expect("discarded");
    io("flush").expect("flushed");
}

/// Whoever is told to end while it drives the controller notifies it of that first.
fn is_shut_down_in_order_by_signals(guest: &Guest, address: &str) {
    let target = format!("nvme://{address}/1");
    for (signal, line, begun) in [
        ("TERM", format!("ringpair io {target} read --bs 512 --output /tmp/out"), "[ -s /tmp/out ]"),
        ("INT", format!("ringpair io {target} read --bs 512 --output /tmp/out"), "[ -s /tmp/out ]"),
        ("TERM", format!("ringpair bench {target} --runtime 100s"), "sleep 2"),
        ("TERM", format!("ringpair serve --socket /tmp/s {target}"), "grep -q ^ready /tmp/said"),
        ("INT", format!("ringpair serve --socket /tmp/s {target}"), "grep -q ^ready /tmp/said"),
    ] {
        let notified = guest.console().matches(SHUT_DOWN).count();
        guest.check("rm -f /tmp/out").expect("nothing of the last one");
        let job =
            guest.start(&format!("{line} >/tmp/said 2>&1 & echo $! >/tmp/pid; wait $!")).expect("started");
        let begun =
            format!("for i in $(seq 600); do {begun} && exit; sleep 0.1; done; cat /tmp/said >&2; exit 1");
        guest.check_within(&format!("({begun})"), LONG).expect("it has begun");
        guest.check(&format!("kill -{signal} $(cat /tmp/pid)")).expect("told to end");
        guest.wait(job, LONG).expect("it ends");
        let said = guest.check("cat /tmp/said").expect("what it said");
        assert!(line.contains("serve") || said.contains("interrupted"), "{line}: {said}");
        assert_eq!(guest.console().matches(SHUT_DOWN).count(), notified + 1, "{line}: {said}");
    }
}

/// Starts a server of the drive, whose output is in `/tmp/served` and its process' number in `/tmp/serve.pid`.
fn serve(guest: &Guest, address: &str) -> Job {
    let serve = format!(
        "ringpair serve --socket /tmp/drive.sock --stats /tmp/stats nvme://{address}/1 >/tmp/served 2>&1"
    );
    let job = guest.start(&format!("{serve} & echo $! >/tmp/serve.pid; wait $!")).expect("started");
    is_said(guest, "/tmp/served", "^ready");
    job
}

/// Waits until a file has a line of this kind.
fn is_said(guest: &Guest, file: &str, line: &str) {
    let wait = format!(
        "for i in $(seq 300); do grep -qs '{line}' {file} && exit 0; sleep 0.1; done; cat {file} >&2; exit 1"
    );
    guest.check_within(&format!("({wait})"), LONG).expect("it is said");
}

/// The drive as a disk of a server, and what others hear of it meanwhile.
fn is_served(guest: &Guest, address: &str) {
    let job = serve(guest, address);
    let said = complaint(guest, &format!("ringpair identify nvme://{address}"));
    assert!(said.contains("in use by another process"), "{said}");
    let said = complaint(guest, &format!("ringpair nvme unbind {address}"));
    assert!(said.contains("in use by process"), "{said}");
    let row = listed(guest, address);
    assert!(row["reason"].as_str().expect("text").contains("in use by process"), "{row}");

    let io = "ringpair io vfio-user:/tmp/drive.sock";
    guest.check_within(&format!("{io} write --length 1M --pattern 9 && {io} flush"), LONG).expect("written");
    guest.check_within(&format!("{io} verify --length 1M --pattern 9"), LONG).expect("read back");
    let bench = "ringpair bench vfio-user:/tmp/drive.sock --rw randread --iodepth 16 --runtime 200ms --json";
    let said = guest.check_within(bench, LONG).expect("a bench");
    assert!(said.contains("randread"), "{said}");
    guest.check("kill $(cat /tmp/serve.pid)").expect("told to end");
    let output = guest.wait(job, LONG).expect("it ends");
    assert!(output.success(), "{output:?}");
    let said = guest.check("cat /tmp/stats").expect("counters");
    let stats: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let counters = &stats["controllers"][0]["disks"]["1"];
    assert_eq!(counters["bytes_bounced"], 0, "nothing is copied on the way: {said}");
    assert!(counters["bytes_direct"].as_u64() >= Some(2 << 20), "{said}");
}

/// A critical warning of the drive's is logged by who has it, as it comes.
fn tells_of_its_health_while_it_is_served(guest: &Guest, address: &str) {
    let job = serve(guest, address);
    let (degraded, fine) = (0x4, 0);
    guest.set_property("first", "smart_critical_warning", degraded).expect("a warning");
    is_said(guest, "/tmp/served", "SMART critical warning: reliability is degraded");
    guest.set_property("first", "smart_critical_warning", fine).expect("no warning");
    let io = "ringpair io vfio-user:/tmp/drive.sock verify --length 1M --pattern 9";
    guest.check_within(io, LONG).expect("its data is as it was");
    guest.check("kill $(cat /tmp/serve.pid)").expect("told to end");
    assert!(guest.wait(job, LONG).expect("it ends").success());
}

/// The server lets go of it at once and says why, and its disk fails; the kernel has the drive.
fn goes_back_to_the_kernel_from_a_server_by_force(guest: &Guest, address: &str) {
    let job = serve(guest, address);
    let said = guest.check(&format!("ringpair nvme unbind {address} --force")).expect("given back");
    assert!(said.contains("driver nvme"), "{said}");
    is_said(guest, "/tmp/served", "was taken back");
    let said = complaint(guest, "ringpair io vfio-user:/tmp/drive.sock read --length 4k");
    assert!(!said.contains("crc32"), "{said}");
    guest.check("kill $(cat /tmp/serve.pid)").expect("told to end");
    guest.wait(job, LONG).expect("it ends");
    assert_eq!(listed(guest, address)["driver"], "nvme");
    guest.check(&format!("ringpair nvme bind {address}")).expect("bound again");
}
