//! A machine's own drive, from `ringpair nvme list` to a program that uses it and back to the kernel: on kernel VFIO, in
//! a stock Debian guest with an emulated IOMMU and two of QEMU's NVMe controllers.

use fixtures::{Guest, Kernel, guest_with_or_skip};
use std::path::Path;
use std::time::Duration;

/// For what takes its time in a guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(180);

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
        .qemu_nvme(disks[0].path())
        .qemu_nvme(disks[1].path())
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
    is_served(&guest, address);

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

/// The drive as a disk of a server, and what others hear of it meanwhile.
fn is_served(guest: &Guest, address: &str) {
    let serve = format!(
        "ringpair serve --socket /tmp/drive.sock --stats /tmp/stats nvme://{address}/1 >/tmp/served 2>&1"
    );
    let job = guest.start(&format!("{serve} & echo $! >/tmp/serve.pid; wait $!")).expect("started");
    let ready = "for i in $(seq 300); do grep -qs '^ready' /tmp/served && exit 0; sleep 0.1; done; cat /tmp/served >&2; exit 1";
    guest.check_within(&format!("({ready})"), LONG).expect("it is served");

    let said = complaint(guest, &format!("ringpair identify nvme://{address}"));
    assert!(said.contains("in use by another process"), "{said}");
    let said = complaint(guest, &format!("ringpair nvme unbind {address}"));
    assert!(said.contains("in use by process"), "{said}");
    let row = listed(guest, address);
    assert!(row["reason"].as_str().expect("text").contains("in use by process"), "{row}");

    let io = "ringpair io vfio-user:/tmp/drive.sock";
    guest.check_within(&format!("{io} write --length 1M --pattern 9 && {io} flush"), LONG).expect("written");
    guest.check_within(&format!("{io} verify --length 1M --pattern 9"), LONG).expect("read back");
    guest.check("kill $(cat /tmp/serve.pid)").expect("told to end");
    let output = guest.wait(job, LONG).expect("it ends");
    assert!(output.success(), "{output:?}");
    let said = guest.check("cat /tmp/stats").expect("counters");
    let stats: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let counters = &stats["controllers"][0]["disks"]["1"];
    assert_eq!(counters["bytes_bounced"], 0, "nothing is copied on the way: {said}");
    assert!(counters["bytes_direct"].as_u64() >= Some(2 << 20), "{said}");
}
