//! A drive of a machine that has no IOMMU: only for who asks for it by name, and with a warning. On a kernel that has the
//! mode for it.

use fixtures::{Guest, Kernel, guest_with_or_skip};
use std::path::Path;
use std::time::Duration;

/// For what takes its time in a guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(180);

/// What it has to say.
const WARNING: &str = "nothing keeps this device from reading and writing all memory of this machine";

/// Runs a line that has to fail with one line of error, which is returned.
fn complaint(guest: &Guest, line: &str) -> String {
    let output = guest.run(line).expect("it ends");
    assert!(!output.success(), "{line}: {}", output.stdout);
    assert_eq!(output.stderr.trim().lines().count(), 1, "{line}: {}", output.stderr);
    output.stderr
}

#[test]
fn without_an_iommu_a_drive_is_used_only_by_who_insists() {
    let Some(builder) = guest_with_or_skip(Kernel::Iommufd) else { return };
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    disk.as_file().set_len(64 << 20).expect("a size");
    let guest = builder
        .kernel_arguments("hugepages=32")
        .memory_mib(768)
        .program(Path::new(env!("CARGO_BIN_EXE_ringpair")))
        .qemu_nvme(disk.path())
        .boot()
        .expect("the guest boots");
    let address = guest.nvme_addresses().expect("addresses").remove(0);

    let said = complaint(&guest, &format!("ringpair nvme bind {address}"));
    assert!(said.contains("behind no IOMMU") && said.contains("--force"), "{said}");
    let bind = format!("ringpair nvme bind {address} --force");
    let said = complaint(&guest, &bind);
    let mode = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    assert!(said.contains(mode), "{said}");
    guest.check(&format!("echo Y >{mode}")).expect("the mode");
    let said = guest.check(&bind).expect("bound");
    assert!(said.contains("/dev/vfio/noiommu-") && said.contains("vfio=unsafe-no-iommu"), "{said}");
    let said = guest.check("ringpair nvme list").expect("a list");
    assert!(said.contains("vfio=unsafe-no-iommu"), "{said}");

    let said = complaint(&guest, &format!("ringpair identify nvme://{address}"));
    assert!(said.contains("behind no IOMMU"), "{said}");
    let target = format!("nvme://{address}/1,vfio=unsafe-no-iommu");
    let output = guest.run(&format!("ringpair identify {target}")).expect("it ends");
    assert!(output.success() && output.stdout.contains("QEMU NVMe Ctrl"), "{output:?}");
    assert!(output.stderr.contains(WARNING), "{output:?}");

    // More than a huge page in one go.
    let io = |rest: &str| format!("ringpair io {target} {rest} --length 9M --pattern 3");
    guest.check_within(&io("write"), LONG).expect("written");
    guest.check_within(&io("verify"), LONG).expect("verified");
    let bench = format!("ringpair bench {target} --rw randread --bs 64k --iodepth 64 --runtime 200ms");
    guest.check_within(&bench, LONG).expect("a bench out of 4 MiB");

    guest.check(&format!("ringpair nvme unbind {address}")).expect("given back");
    let kernel = format!(
        "for i in $(seq 100); do n=$(ls -d /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1) && break; sleep 0.1; done
        sleep 0.5; ringpair io /dev/$(basename $n) verify --length 9M --pattern 3"
    );
    guest.check_within(&kernel, LONG).expect("the kernel reads what ringpair wrote");
}
