//! Power cuts on a simulated medium under a qcow2 image: whatever the moment, the image has no corruption (leaks are
//! allowed), and holds what its cache mode has promised to keep.
//!
//! And the other way round: disks that order their metadata wrongly, or forget some of it, are found out. Seeds as in
//! `power_cuts.rs`.

mod images;

use block_core::contract::durability::{Mode, seeds};
use block_core::file::simulated::{Asked, Verdict, moody};
use block_core::qcow2::{Fault, Step};
use images::simulated::{Case, EXTERNAL, SHARED, Shapes, open_with};

/// Of every test: runs, and power cuts in each.
const RUNS: u64 = 28;
const CUTS: u64 = 12;

/// Runs a seed and cuts the power at random moments of it.
fn run<H>(
    shapes: &Shapes,
    shape: u64,
    seed: u64,
    mode: Mode,
    fault: Option<Fault>,
    hook: impl Fn() -> H,
) -> Result<(), String>
where
    H: FnMut(&Asked) -> Verdict + Send + 'static,
{
    let case = shapes.case(shape, seed);
    let Case { shape, file, workload, .. } = &case;
    case.hook(hook);
    let disk = open_with(file, &mode.to_string(), fault)?;
    let history = workload.run(&disk, &|| file.now());
    drop(disk);
    if let Some(failure) = history.failures().next() {
        return Err(format!("{shape}: {failure}"));
    }
    case.keeps(&history, mode.promise(), CUTS).map_err(|error| format!("{shape}, {error}"))
}

/// Every second seed on a medium that does what is allowed.
fn keeps_its_promise(mode: Mode) {
    let Some(shapes) = Shapes::new() else { return };
    for seed in seeds(RUNS) {
        let hook = || {
            let mut moods = moody(seed);
            move |asked: &Asked| if seed % 2 == 0 { Verdict::Done } else { moods(asked) }
        };
        if let Err(error) = run(&shapes, seed, seed, mode, None, hook) {
            panic!("{mode}, RINGPAIR_SEED={seed}: {error}");
        }
    }
}

block_core::every_mode!(
    a_power_cut_corrupts_nothing_and_takes_nothing_that_was_promised,
    safe,
    keeps_its_promise
);

/// Most of the faults below are found within ten seeds. Those that few moments show take longer, and the threads have a say
/// in it too.
const MOST: u64 = 150;

/// In one shape of image, or in all of them.
fn is_found_out(fault: Fault, shape: Option<u64>, caches: &[&'static str]) {
    let Some(shapes) = Shapes::new() else { return };
    for mode in Mode::each(caches) {
        let fails = |&seed: &u64| {
            let shape = shape.unwrap_or(seed);
            run(&shapes, shape, seed, mode, Some(fault), || |_: &Asked| Verdict::Done).is_err()
        };
        let seed = (0..MOST).find(fails);
        eprintln!("{fault:?}, {mode}: {seed:?}");
        assert!(seed.is_some(), "{fault:?} is not found out, {mode}");
    }
}

macro_rules! faults {
    ($($test:ident: $fault:expr, $shape:expr, $caches:expr;)*) => {
        mod a_disk_is_found_out {
            use super::{EXTERNAL, Fault, SHARED, Step};
            $(#[test]
            fn $test() {
                super::is_found_out($fault, $shape, &$caches);
            })*
        }
    };
}

// Pages of other tables lie in the same block of O_DIRECT as entries of the first tables do: what those wait for is hit
// seldom with it, and the order does not depend on it.
faults! {
    that_ignores_flushes: Fault::FlushIgnored, None, ["writeback", "none"];
    that_ignores_fua: Fault::FuaIgnored, None, ["writeback", "none", "writethrough", "directsync"];
    that_makes_the_file_durable_before_its_metadata:
        Fault::MetadataAfterFile, None, ["writeback", "none", "writethrough", "directsync"];
    that_makes_metadata_durable_before_the_data_file:
        Fault::MetadataBeforeDataFile, Some(EXTERNAL), ["writeback", "none", "writethrough", "directsync"];
    that_forgets_the_data_file:
        Fault::DataFileForgotten, Some(EXTERNAL), ["writeback", "none", "writethrough", "directsync"];
    that_writes_refcount_table_entries_too_early:
        Fault::NoBarrierBefore(Step::RefcountTable), None, ["writeback", "writethrough"];
    that_moves_the_refcount_table_too_early:
        Fault::NoBarrierBefore(Step::Header), Some(SHARED), ["writeback", "writethrough"];
    that_writes_l2_tables_too_early: Fault::NoBarrierBefore(Step::L2Tables), None, ["writeback", "directsync"];
    that_writes_l1_entries_too_early:
        Fault::NoBarrierBefore(Step::L1Table), Some(SHARED), ["writeback", "writethrough"];
    that_lowers_refcounts_too_early:
        Fault::NoBarrierBefore(Step::LoweredRefcounts), None, ["writeback", "directsync"];
    that_lowers_refcounts_first: Fault::RefcountsLoweredFirst, None, ["writeback", "directsync"];
    that_orders_its_metadata_the_wrong_way_round: Fault::StepsReversed, None, ["writeback", "directsync"];
    that_takes_freed_clusters_at_once: Fault::FreedTakenAtOnce, None, ["writeback", "none"];
}

/// Without its syncs nothing orders the metadata, nor what it refers to.
#[test]
fn a_disk_that_orders_nothing_is_found_out() {
    let Some(shapes) = Shapes::new() else { return };
    for mode in Mode::each(&["writeback", "directsync"]) {
        let liar = |asked: &Asked| match asked {
            Asked::Sync | Asked::Write { dsync: true, .. } => Verdict::Lie,
            _ => Verdict::Done,
        };
        let found = (0..20).find(|&seed| run(&shapes, seed, seed, mode, None, || liar).is_err());
        assert!(found.is_some(), "{mode}");
    }
}
