//! Power cuts on a simulated medium under a qcow2 image: whatever the moment, the image has no corruption (leaks are
//! allowed), and holds what its cache mode has promised to keep.
//!
//! And the other way round: media that lie about fdatasync, which is what a disk looks like that orders its metadata
//! wrongly, are found out. Seeds as in `power_cuts.rs`.

mod images;

use block_core::contract::durability::{Workload, seeds};
use block_core::file::simulated::{Asked, Verdict, moody};
use images::simulated::{ENGINES, Shapes, keeps, open, promise};

/// Of every test: runs, and power cuts in each.
const RUNS: u64 = 30;
const CUTS: u64 = 10;

/// Runs a seed and cuts the power at random moments of it.
fn run<H>(shapes: &Shapes, seed: u64, cache: &str, engine: &str, hook: H) -> Result<(), String>
where
    H: FnMut(&Asked) -> Verdict + Send + 'static,
{
    let (shape, file) = shapes.file(seed);
    file.hook(hook);
    let workload = Workload { blank: true, requests: 90, ..Workload::new(seed) };
    let disk = open(&file, &format!("cache={cache},aio={engine}"))?;
    let history = workload.run(&disk, &|| file.now());
    drop(disk);
    if let Some(failure) = history.failures().next() {
        return Err(format!("{shape}: {failure}"));
    }
    keeps(&file, &history, promise(cache), seed, CUTS).map_err(|error| format!("{shape}, {error}"))
}

/// Every second seed on a medium that does what is allowed.
fn keeps_its_promise(cache: &str, engine: &str) {
    let Some(shapes) = Shapes::new() else { return };
    for seed in seeds(RUNS) {
        let mut moods = moody(seed);
        let hook = move |asked: &Asked| if seed % 2 == 0 { Verdict::Done } else { moods(asked) };
        if let Err(error) = run(&shapes, seed, cache, engine, hook) {
            panic!("cache={cache},aio={engine}, RINGPAIR_SEED={seed}: {error}");
        }
    }
}

macro_rules! modes {
    ($($test:ident: $cache:literal on $engine:literal;)*) => {
        mod a_power_cut_corrupts_nothing_and_takes_nothing_that_was_promised {
            $(#[test]
            fn $test() {
                super::keeps_its_promise($cache, $engine);
            })*
        }
    };
}

modes! {
    uring_writeback: "writeback" on "io_uring";
    uring_none: "none" on "io_uring";
    uring_writethrough: "writethrough" on "io_uring";
    uring_directsync: "directsync" on "io_uring";
    threads_writeback: "writeback" on "threads";
    threads_none: "none" on "threads";
    threads_writethrough: "writethrough" on "threads";
    threads_directsync: "directsync" on "threads";
}

/// Without its syncs nothing orders the metadata, nor what it refers to.
#[test]
fn a_disk_that_orders_nothing_is_found_out() {
    let Some(shapes) = Shapes::new() else { return };
    for (cache, engine) in ["writeback", "directsync"].into_iter().flat_map(|c| ENGINES.map(|e| (c, e))) {
        let liar = |asked: &Asked| match asked {
            Asked::Sync | Asked::Write { dsync: true, .. } => Verdict::Lie,
            _ => Verdict::Done,
        };
        let found = (0..20).find(|&seed| run(&shapes, seed, cache, engine, liar).is_err());
        assert!(found.is_some(), "cache={cache},aio={engine}");
    }
}
