//! Instructions per I/O, counted by Valgrind's callgrind, and compared with a file for each architecture.
//!
//! ```sh
//! cargo bench -p benches --bench instructions                # count and compare: what CI runs
//! cargo bench -p benches --bench instructions -- --refresh   # count and write the file anew
//! ```
//!
//! A time depends on the machine and its neighbours, a count of instructions on the program and its compiler alone. It
//! says nothing about cache misses, but notices when a command's way through the code has become longer. More than
//! [`TOLERANCE`] over the file is a failure: whoever has a reason for it refreshes the file in the same commit.
//!
//! Driver and controller run in one thread, one after the other, as in [`nvme_emu::bench`]: a batch of commands is
//! submitted, the reactor's rounds take it from the doorbell to the completions, the driver takes those. Callgrind
//! collects inside of one of two functions only, [`counted_controller`] or [`counted_driver`], so setting up costs
//! nothing, and each side has a count of its own. What the C library chooses by CPU (`memcpy`) is told to choose what
//! every CPU has.

use anyhow::{Context, Result, bail, ensure};
use block_core::Registry;
use nvme_emu::ControllerOptions;
use nvme_emu::bench::SteppedReactor;
use nvme_emu::namespace::{Identity, Namespace as Served, NamespaceOptions};
use nvme_emu::pci::PciFunction;
use nvme_emu::subsystem::{Subsystem, SubsystemOptions};
use nvme_loopback::Loopback;
use nvme_vfio::{Controller, DmaBuffer, Namespace, Options, QueuePair};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// How much more than in the file is too much: 3 %.
const TOLERANCE: f64 = 1.03;

/// Batches that are counted, and those before them that are not.
const BATCHES: u32 = 64;
const WARM_UP: u32 = 8;

/// Commands that a queue pair holds.
const DEPTH: u16 = 128;

/// What is counted.
struct Case {
    name: &'static str,
    /// `FILE` stands for a file of [`FILE_LEN`] bytes, of which the page cache holds all.
    disk: &'static str,
    write: bool,
    block_size: u32,
    /// Commands in a batch; 0: the round of a reactor that finds none.
    iodepth: u16,
    /// Controllers of the reactor, each of which gets such a batch.
    controllers: u16,
}

const FILE: &str = "FILE";
const FILE_LEN: usize = 8 << 20;

const fn case(name: &'static str, disk: &'static str, write: bool, block_size: u32, iodepth: u16) -> Case {
    Case { name, disk, write, block_size, iodepth, controllers: 1 }
}

/// `mem:` with short blocks: the copy itself is the machine's, not ours.
const CASES: [Case; 9] = [
    case("idle round", "null:1T", false, 4096, 0),
    case("null: 4 KiB reads, QD1", "null:1T", false, 4096, 1),
    case("null: 4 KiB reads, QD32", "null:1T", false, 4096, 32),
    case("null: 4 KiB writes, QD32", "null:1T", true, 4096, 32),
    case("null: 128 KiB reads, QD32", "null:1T", false, 128 << 10, 32),
    case("mem: 512 B reads, QD1", "mem:64M", false, 512, 1),
    case("mem: 512 B reads, QD32", "mem:64M", false, 512, 32),
    case("file: 4 KiB reads, QD32", FILE, false, 4096, 32),
    Case { controllers: 64, ..case("null: 4 KiB reads, QD32 on each of 64", "null:1T", false, 4096, 32) },
];

/// Instructions of one case, per I/O.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Count {
    controller: f64,
    driver: f64,
}

/// `instructions-ARCH.toml`.
#[derive(Debug, Deserialize, Serialize)]
struct Counts {
    /// What it was counted with; others make other instructions of the same program.
    rustc: String,
    /// By the cases' names.
    instructions_per_io: BTreeMap<String, Count>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] => compare(),
        ["--refresh"] => refresh(),
        ["--run", name] => run(name).map(|()| true),
        _ => Err(anyhow::anyhow!("nothing, or --refresh, is all that can be said here")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("instructions-{}.toml", std::env::consts::ARCH))
}

fn refresh() -> Result<bool> {
    let text =
        "# Instructions per I/O, written by `cargo bench -p benches --bench instructions -- --refresh`.\n\n";
    let text = format!("{text}{}", toml::to_string(&count_all()?)?);
    std::fs::write(path(), text).with_context(|| format!("writing {}", path().display()))?;
    println!("written to {}", path().display());
    Ok(true)
}

/// Whether nothing has become longer.
fn compare() -> Result<bool> {
    let path = path();
    let known = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: nobody has counted on this kind of CPU yet", path.display()))?;
    let known: Counts = toml::from_str(&known).with_context(|| format!("reading {}", path.display()))?;
    let now = count_all()?;
    let mut good = true;
    for (name, count) in &now.instructions_per_io {
        let Some(before) = known.instructions_per_io.get(name) else {
            println!("{name}: not in {}", path.display());
            good = false;
            continue;
        };
        for (side, before, count) in
            [("controller", before.controller, count.controller), ("driver", before.driver, count.driver)]
        {
            // Of very short ways, one instruction is more than the tolerance.
            if count > (before * TOLERANCE).max(before + 1.0) {
                println!("{name}: {side}: {before} instructions have become {count}");
                good = false;
            } else if count * TOLERANCE < before {
                println!(
                    "{name}: {side}: {before} instructions have become {count}, which can be kept: --refresh"
                );
            }
        }
    }
    if !good {
        println!(
            "For a good reason: cargo bench -p benches --bench instructions -- --refresh, in the same commit"
        );
        if now.rustc != known.rustc {
            println!("(they were counted with {}, now with {})", known.rustc, now.rustc);
        }
    }
    Ok(good)
}

fn count_all() -> Result<Counts> {
    let rustc = Command::new("rustc").arg("--version").output().context("asking rustc for its version")?;
    let rustc = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
    let mut instructions_per_io = BTreeMap::new();
    for case in &CASES {
        let controller = count(case, "counted_controller")?;
        let driver = if case.iodepth > 0 { count(case, "counted_driver")? } else { 0.0 };
        println!("{:32} controller {controller:7.1}  driver {driver:7.1}", case.name);
        instructions_per_io.insert(case.name.to_owned(), Count { controller, driver });
    }
    Ok(Counts { rustc, instructions_per_io })
}

/// Runs this program under callgrind, to collect in one function only; instructions per I/O, to a tenth.
fn count(case: &Case, function: &str) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--fair-sched=yes"])
        .arg(format!("--toggle-collect={function}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--run", case.name])
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM,-SSSE3,-Fast_Unaligned_Copy,\
             -AVX_Fast_Unaligned_Load,-Fast_Copy_Backward",
        )
        .stdin(Stdio::null())
        .output()
        .context("valgrind, which counts, cannot be run (apt-get install valgrind)")?;
    ensure!(
        output.status.success(),
        "{} under valgrind: {}\n{}",
        case.name,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let profile = std::fs::read_to_string(&out).context("reading what callgrind has counted")?;
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .context("callgrind counted nothing")?;
    let total: f64 = total.trim().parse().context("callgrind's total")?;
    ensure!(total > 0.0, "{}: {function} was not found by callgrind", case.name);
    let ios = BATCHES * u32::from(case.iodepth.max(1)) * u32::from(case.controllers);
    Ok((total / f64::from(ios) * 10.0).round() / 10.0)
}

/// What is run under callgrind.
fn run(name: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).context("there is no such case")?;
    let mut setup = Setup::new(case)?;
    for _ in 0..WARM_UP {
        setup.batch(&mut driver, &mut controller)?;
    }
    for _ in 0..BATCHES {
        setup.batch(&mut counted_driver, &mut counted_controller)?;
    }
    // The engine's shutdown would wait for a reactor that nobody runs any more.
    std::process::exit(0);
}

/// Where callgrind collects for the controller.
#[unsafe(no_mangle)]
#[inline(never)]
fn counted_controller(reactor: &mut SteppedReactor) {
    controller(reactor);
}

/// Where callgrind collects for the driver.
#[unsafe(no_mangle)]
#[inline(never)]
fn counted_driver(queue: &mut QueuePair, step: Step<'_>) -> Result<usize> {
    driver(queue, step)
}

#[inline(always)]
fn controller(reactor: &mut SteppedReactor) {
    reactor.round();
}

/// What the driver does between two rounds of the reactor.
enum Step<'a> {
    Submit(&'a Load),
    Poll,
}

#[inline(always)]
fn driver(queue: &mut QueuePair, step: Step<'_>) -> Result<usize> {
    let Step::Submit(load) = step else {
        let mut failed = None;
        let count = queue.poll(|_, result| failed = failed.or(result.err()))?;
        return failed.map_or(Ok(count), |status| bail!("a command ended with {status}"));
    };
    let Load { namespace, buffer, .. } = load;
    for token in 0..u64::from(load.iodepth) {
        let len = load.block_size as usize;
        let at = token as usize * len;
        let (data, blocks) = (buffer.range(at..at + len), load.block_size / namespace.block_size());
        let slba = token * u64::from(blocks);
        if load.write {
            queue.write(namespace, slba, blocks, data, false, token)?;
        } else {
            queue.read(namespace, slba, blocks, data, token)?;
        }
    }
    queue.kick();
    Ok(0)
}

/// What a batch consists of.
struct Load {
    namespace: Namespace,
    buffer: DmaBuffer,
    write: bool,
    block_size: u32,
    iodepth: u16,
}

struct Setup {
    reactor: SteppedReactor,
    driven: Vec<Driven>,
    _file: tempfile::NamedTempFile,
}

/// A driver's end of a controller.
struct Driven {
    queue: QueuePair,
    load: Load,
    // Outlives what is driven.
    _controller: Controller,
}

impl Driven {
    fn open(case: &Case, function: PciFunction) -> Result<Self> {
        let transport = Loopback::new("bench", function)?;
        // Without its own thread, which would look in now and then.
        let options = Options { depth: DEPTH, recovery: None, ..Options::default() };
        let controller = Controller::open(Box::new(transport), options)?;
        let (block_size, iodepth) = (case.block_size, case.iodepth);
        let load = Load {
            namespace: controller.namespace(1)?,
            buffer: controller.alloc_dma(block_size as usize * usize::from(iodepth.max(1)))?,
            write: case.write,
            block_size,
            iodepth,
        };
        Ok(Self { queue: controller.queue_pair()?, load, _controller: controller })
    }
}

impl Setup {
    fn new(case: &'static Case) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"))?;
        std::io::Write::write_all(&mut file, &vec![0xA5; FILE_LEN])?;
        let name = if case.disk == FILE { file.path().display().to_string() } else { case.disk.to_owned() };
        let (engine, mut reactor) = SteppedReactor::start()?;
        let functions: Vec<_> = (0..case.controllers)
            .map(|_| {
                let disk = Registry::default().open(name.parse()?)?;
                let options = NamespaceOptions { block_size: Some(512), identity: Identity::Fresh };
                let served = Served::new(1, disk, &options)?;
                let subsystem = Subsystem::new(SubsystemOptions::default(), vec![served])?;
                Ok(engine.add_controller(&subsystem, &ControllerOptions::default())?)
            })
            .collect::<Result<_>>()?;
        // It is never asked for anything again, and ends with the process.
        std::mem::forget(engine);
        let bring_up = std::thread::spawn(move || {
            functions.into_iter().map(|function| Driven::open(case, function)).collect::<Result<Vec<_>>>()
        });
        while !bring_up.is_finished() {
            reactor.round();
            std::thread::yield_now();
        }
        let driven = bring_up.join().map_err(|_| anyhow::anyhow!("bringing the controllers up failed"))??;
        Ok(Self { reactor, driven, _file: file })
    }

    /// Submits a batch to each and takes them to their end, by these two.
    fn batch(
        &mut self,
        driver: &mut dyn FnMut(&mut QueuePair, Step<'_>) -> Result<usize>,
        controller: &mut dyn FnMut(&mut SteppedReactor),
    ) -> Result<()> {
        for Driven { queue, load, .. } in &mut self.driven {
            if load.iodepth > 0 {
                driver(queue, Step::Submit(load))?;
            }
        }
        controller(&mut self.reactor);
        let mut looks = 0;
        for Driven { queue, .. } in &mut self.driven {
            while queue.in_flight() > 0 {
                if driver(queue, Step::Poll)? == 0 {
                    // The kernel did not do it in the system call. It is given time, which is not counted.
                    looks += 1;
                    ensure!(looks < 1000, "an I/O does not end");
                    std::thread::sleep(Duration::from_millis(1));
                    controller(&mut self.reactor);
                }
            }
        }
        Ok(())
    }
}
