//! The driver against the kernel's own, on the same drive, in one run: a guest with an emulated IOMMU and QEMU's NVMe
//! controller before a disk that costs nothing (`null-co`). In turns, the guest's kernel drives it under fio (io_uring,
//! O_DIRECT), and ringpair through the kernel's VFIO; the same block size, depths, time, and one queue.
//!
//! ```text
//! cargo bench -p ringpair --bench guest_drive -- [--runtime SECONDS] [--turns N] [--cpus N]
//! ```
//!
//! Prints a line for each measurement, and then the table of README. The guest runs without KVM, unless
//! RINGPAIR_KVM=1: figures are those of a slow machine, and only their ratio says something.

use anyhow::{Context, Result};
use clap::Parser;
use fixtures::{Guest, Kernel};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// The driver against the kernel's own, on the same emulated drive, in one run.
#[derive(Parser)]
struct Arguments {
    /// How long each measurement runs
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    runtime: u32,
    /// How often each is run, in turns
    #[arg(long, value_name = "N", default_value_t = 2)]
    turns: u32,
    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// From cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const DEPTHS: [u32; 2] = [1, 32];

/// One measurement.
#[derive(Clone, Copy)]
struct Figures {
    depth: u32,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> Result<()> {
    let Arguments { runtime, turns, cpus, bench: _ } = Arguments::parse();
    let guest = boot(cpus)?;
    let address = guest.nvme_addresses()?.into_iter().next().context("the guest has no NVMe controller")?;
    let (mut kernel, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        for depth in DEPTHS {
            kernel.push(said("kernel", fio(&guest, &address, depth, runtime)?));
        }
        guest.bind_vfio(&address)?;
        for depth in DEPTHS {
            ours.push(said("ringpair", ringpair(&guest, &address, depth, runtime)?));
        }
        guest.unbind_vfio(&address)?;
    }
    println!("\n| in flight | driver | IOPS | p50 | p99 | ratio |\n|---|---|---|---|---|---|");
    for depth in DEPTHS {
        let (kernel, ours) = (mean(&kernel, depth), mean(&ours, depth));
        row("the guest's kernel, fio", kernel, "");
        row("ringpair", ours, &format!("{:.2}", ours.iops / kernel.iops));
    }
    guest.power_off()
}

fn boot(cpus: u32) -> Result<Guest> {
    let disk = "driver=null-co,node-name=null,size=1073741824,read-zeroes=off";
    Guest::builder()
        .kernel(Kernel::V6_12)
        .iommu(39)
        .cpus(cpus)
        .memory_mib(768)
        .program(Path::new(env!("CARGO_BIN_EXE_ringpair")))
        .qemu_arguments(["-blockdev", disk, "-device", "nvme,drive=null,serial=null"])
        .boot()
}

/// Runs a command in the guest, which prints JSON.
fn json(guest: &Guest, command: &str, runtime: u32) -> Result<Value> {
    let text = guest.check_within(command, Duration::from_secs(u64::from(runtime) * 20 + 60))?;
    let start = text.find('{').with_context(|| format!("{command}: no JSON: {text}"))?;
    serde_json::from_str(&text[start..]).with_context(|| format!("{command}: {text}"))
}

/// The guest's kernel with its nvme driver.
fn fio(guest: &Guest, address: &str, depth: u32, runtime: u32) -> Result<Figures> {
    let disk = guest.check(&format!(
        "for i in $(seq 100); do n=$(ls -d /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1) && break; sleep 0.1; done; \
         basename $n"
    ))?;
    let answer = json(
        guest,
        &format!(
            "fio --name=figures --filename=/dev/{} --ioengine=io_uring --direct=1 --rw=randread --bs=4k \
             --iodepth={depth} --time_based --runtime={runtime} --norandommap --output-format=json",
            disk.trim()
        ),
        runtime,
    )?;
    let read = &answer["jobs"][0]["read"];
    let microseconds = |percentile| Some(read["clat_ns"]["percentile"][percentile].as_f64()? / 1000.0);
    let figures = || {
        Some(Figures {
            depth,
            iops: read["iops"].as_f64()?,
            p50_us: microseconds("50.000000")?,
            p99_us: microseconds("99.000000")?,
        })
    };
    figures().with_context(|| format!("fio has not said how fast it was: {answer}"))
}

/// Ringpair, on the kernel's VFIO.
fn ringpair(guest: &Guest, address: &str, depth: u32, runtime: u32) -> Result<Figures> {
    let command = format!(
        "ringpair bench nvme://{address}/1 --rw randread --bs 4k --iodepth {depth} --runtime {runtime}s --json"
    );
    let answer = json(guest, &command, runtime)?;
    let latency = &answer["lat_ns"];
    let figures = || {
        Some(Figures {
            depth,
            iops: answer["iops"].as_f64()?,
            p50_us: latency["p50"].as_f64()? / 1000.0,
            p99_us: latency["p99"].as_f64()? / 1000.0,
        })
    };
    figures().with_context(|| format!("ringpair has not said how fast it was: {answer}"))
}

fn said(driver: &str, figures: Figures) -> Figures {
    let Figures { depth, iops, p50_us, p99_us } = figures;
    println!("{driver:>8}  iodepth {depth:>2}  {iops:>8.0} IOPS  p50 {p50_us:>7.1} µs  p99 {p99_us:>7.1} µs");
    figures
}

/// The mean of a driver's measurements at a depth.
fn mean(all: &[Figures], depth: u32) -> Figures {
    let of_depth: Vec<_> = all.iter().filter(|figures| figures.depth == depth).collect();
    let mean = |value: fn(&Figures) -> f64| {
        of_depth.iter().map(|figures| value(figures)).sum::<f64>() / of_depth.len() as f64
    };
    Figures { depth, iops: mean(|f| f.iops), p50_us: mean(|f| f.p50_us), p99_us: mean(|f| f.p99_us) }
}

fn row(driver: &str, figures: Figures, ratio: &str) {
    let Figures { depth, iops, p50_us, p99_us } = figures;
    println!("| {depth} | {driver} | {:.1} k | {p50_us:.0} µs | {p99_us:.0} µs | {ratio} |", iops / 1000.0);
}
