//! Power cuts on a simulated medium: what each cache mode has promised to keep is kept, on both engines, at any moment.
//!
//! And the other way round: media that lie, as a disk would look that forgets a flush or a FUA write, are found out.
//!
//! `RINGPAIR_SEEDS=100` runs a hundred times as many seeds, `RINGPAIR_SEED=n` begins with seed n. A ring's order is decided
//! by the seed; that of threads also by the host.

use block_core::Registry;
use block_core::contract::durability::{History, Loss, Mode, Promise, Workload, seeds};
use block_core::contract::{Client, Random};
use block_core::file::simulated::{Asked, SimulatedFile, Verdict, moody};

/// Of every test: runs, and power cuts in each.
const RUNS: u64 = 50;
const CUTS: u64 = 40;

/// Small, so that requests overlap; its end is not a multiple of what `O_DIRECT` asks for.
const CAPACITY: u64 = (128 << 10) + 1536;

/// Runs a workload on a file that holds what the workload begins with.
fn run(file: &SimulatedFile, workload: &Workload, mode: Mode) -> History {
    let disk = file.open(&mode.to_string()).expect("options of a file");
    workload.run(&disk, &|| file.now())
}

/// Cuts the power at random moments of what was run.
fn cut(file: &SimulatedFile, history: &History, promise: Promise, seed: u64) -> Result<(), Loss> {
    let mut cut = file.power_cut();
    let mut random = Random::new(!seed);
    let mut moments: Vec<u64> = (0..CUTS).map(|_| random.below(cut.end() + 1)).collect();
    moments.sort_unstable();
    moments.push(cut.end());
    for moment in moments {
        cut.advance(moment);
        history.check(moment, promise, &cut.contents(&mut random).to_vec())?;
    }
    Ok(())
}

/// Every seed of one mode on one engine.
fn keeps_its_promise(mode: Mode) {
    for seed in seeds(RUNS) {
        let workload = Workload { whole_pages: seed % 5 == 4, ..Workload::new(seed) };
        let file = SimulatedFile::new(workload.initial(CAPACITY), seed);
        file.hook(moody(seed));
        let history = run(&file, &workload, mode);
        assert_eq!(history.failures().next(), None, "{mode}, RINGPAIR_SEED={seed}");
        let say = |error: Loss| panic!("{mode}, RINGPAIR_SEED={seed}: {error}");
        // Of what the disk's users see, nothing is ever lost.
        history.check(u64::MAX, Promise::EveryWrite, &file.contents().to_vec()).unwrap_or_else(say);
        cut(&file, &history, mode.promise(), seed).unwrap_or_else(say);
    }
}

block_core::every_mode!(a_power_cut_takes_nothing_that_was_promised, keeps_its_promise);

/// How many seeds it takes until the checks above find a medium out.
fn seeds_to_find_out<H>(mode: Mode, liar: impl Fn() -> H) -> Option<u64>
where
    H: FnMut(&Asked) -> Verdict + Send + 'static,
{
    (0..RUNS).find(|&seed| {
        let workload = Workload::new(seed);
        let file = SimulatedFile::new(workload.initial(CAPACITY), seed);
        file.hook(liar());
        let history = run(&file, &workload, mode);
        cut(&file, &history, mode.promise(), seed).is_err()
    })
}

#[test]
fn a_disk_that_ignores_flushes_is_found_out() {
    for mode in Mode::each(&["writeback", "none"]) {
        let ignored = || |asked: &Asked| if *asked == Asked::Sync { Verdict::Lie } else { Verdict::Done };
        assert!(seeds_to_find_out(mode, ignored).is_some(), "{mode}");
    }
}

#[test]
fn a_disk_that_ignores_fua_is_found_out() {
    for mode in Mode::each(&["writeback", "none", "writethrough", "directsync"]) {
        let ignored = || {
            |asked: &Asked| match asked {
                Asked::Write { dsync: true, .. } => Verdict::Lie,
                _ => Verdict::Done,
            }
        };
        assert!(seeds_to_find_out(mode, ignored).is_some(), "{mode}");
    }
}

/// A known trap: a FUA write right after a flush takes for granted that there is nothing to make durable.
#[test]
fn a_disk_that_skips_the_first_fua_write_after_a_flush_is_found_out() {
    for mode in Mode::each(&["writeback", "none"]) {
        let skipped = || {
            let mut clean = false;
            move |asked: &Asked| match asked {
                Asked::Sync => {
                    clean = true;
                    Verdict::Done
                }
                Asked::Write { dsync, .. } => {
                    let lie = std::mem::take(&mut clean) && *dsync;
                    if lie { Verdict::Lie } else { Verdict::Done }
                }
                _ => Verdict::Done,
            }
        };
        assert!(seeds_to_find_out(mode, skipped).is_some(), "{mode}");
    }
}

/// Where there is nothing to flush, a discard or zeroes by `fallocate` must not come back either: a sync follows them.
#[test]
fn a_disk_that_does_not_make_zeroes_durable_is_found_out() {
    for mode in Mode::each(&["writethrough", "directsync"]) {
        let ignored = || |asked: &Asked| if *asked == Asked::Sync { Verdict::Lie } else { Verdict::Done };
        assert!(seeds_to_find_out(mode, ignored).is_some(), "{mode}");
    }
}

#[test]
fn unsafe_makes_nothing_durable() {
    for mode in Mode::each(&["unsafe"]) {
        let workload = Workload::new(1);
        let file = SimulatedFile::new(workload.initial(CAPACITY), 1);
        file.hook(|asked| match asked {
            Asked::Sync | Asked::Write { dsync: true, .. } => panic!("cache=unsafe asks for {asked:?}"),
            _ => Verdict::Done,
        });
        run(&file, &workload, mode);
    }
}

#[test]
fn a_disk_that_keeps_everything_passes() {
    let disk = Registry::default().open("mem:1M".parse().unwrap()).unwrap();
    let history = Workload { blank: true, requests: 1000, ..Workload::new(1) }.run(&*disk, &|| 0);
    assert!(history.succeeded() >= 980, "{} of {}", history.succeeded(), history.requests());
    let mut contents = vec![0; 1 << 20];
    contents.copy_from_slice(&Client::new(&*disk, 1).read(0, 1 << 20));
    history.check(0, Promise::EveryWrite, &contents).unwrap();
    contents[512 * 7] ^= 1;
    history.check(0, Promise::Nothing, &contents).expect_err("a byte that nobody wrote");
}

/// The simulation is a disk like any other: what it does to requests in flight stays inside the contract.
mod contract {
    use block_core::Disk;
    use block_core::contract::Random;
    use block_core::file::simulated::{SimulatedFile, Verdict};
    use std::sync::Arc;

    fn open(options: &str, size: usize, read_only: bool) -> Option<Arc<dyn Disk>> {
        let file = SimulatedFile::new(vec![0; size], 7);
        let mut random = Random::new(7);
        file.hook(move |_| if random.chance(5) { Verdict::Fail(libc::EINTR) } else { Verdict::Done });
        let switch = if read_only { "on" } else { "off" };
        Some(Arc::new(file.open(&format!("{options},readonly={switch}")).unwrap()))
    }

    block_core::contract_suite!(uring, |ro| open("aio=io_uring", 8 << 20, ro));
    block_core::contract_suite!(uring_direct, |ro| open("aio=io_uring,cache=none", (8 << 20) + 777, ro));
    block_core::contract_suite!(threads, |ro| open("aio=threads", 8 << 20, ro));
    block_core::contract_suite!(threads_direct, |ro| open("aio=threads,cache=none", (8 << 20) + 777, ro));
}
