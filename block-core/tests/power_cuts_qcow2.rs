//! Power cuts on a simulated medium under a qcow2 image: whatever the moment, the image has no corruption (leaks are
//! allowed), and holds what its cache mode has promised to keep.
//!
//! And the other way round: media that lie about fdatasync, which is what a disk looks like that orders its metadata
//! wrongly, are found out. Seeds as in `power_cuts.rs`.

mod images;

use block_core::contract::durability::{History, Promise, Workload, seeds};
use block_core::contract::{Client, Random};
use block_core::file::CacheMode;
use block_core::file::simulated::{Asked, Contents, SimulatedFile, Verdict};
use block_core::qcow2::Qcow2Disk;
use block_core::qcow2::offline::{Image, Repair, check};
use images::Images;
use std::sync::Arc;

/// Of every test: runs, and power cuts in each.
const RUNS: u64 = 30;
const CUTS: u64 = 10;

const ENGINES: [&str; 2] = ["io_uring", "threads"];

/// Shapes of images, and how large they are: small clusters, so that much is allocated, and the usual ones.
const SHAPES: [(&str, u64); 3] = [
    ("cluster_size=4k", 1 << 20),
    ("cluster_size=512,refcount_bits=64", 256 << 10),
    ("cluster_size=64k,lazy_refcounts=on", 2 << 20),
];

/// A disk in a simulated image.
fn open(file: &SimulatedFile, options: &str) -> Result<Qcow2Disk, String> {
    let file = file.open_image(options).expect("options of a file");
    Qcow2Disk::on_file(Arc::new(file)).map_err(|error| error.to_string())
}

/// Holds what a medium has kept against what was promised.
fn examine(contents: Contents, history: &History, clock: u64, promise: Promise) -> Result<(), String> {
    let copy = tempfile::tempfile().map_err(|error| error.to_string())?;
    contents.write_to(&copy).map_err(|error| error.to_string())?;
    let mut image = Image::open(copy).map_err(|error| format!("does not open for a check: {error}"))?;
    let report = check(&mut image, Repair::Nothing, &mut |_, _| {})
        .map_err(|error| format!("cannot be checked: {error}"))?;
    if report.corruptions > 0 {
        return Err(format!("corrupt: {:?}", report.findings));
    }
    let disk = open(&SimulatedFile::new(contents, 0), "readonly=on")?;
    let capacity = block_core::Disk::info(&disk).capacity as usize;
    let held = Client::new(&disk, 1).read(0, capacity);
    history.check(clock, promise, &held).map_err(|loss| loss.to_string())
}

/// Runs a seed and cuts the power at random moments of it.
fn run<H>(images: &Images, seed: u64, cache: &str, engine: &str, hook: H) -> Result<(), String>
where
    H: FnMut(&Asked) -> Verdict + Send + 'static,
{
    let mode = CacheMode::WORDS.iter().find(|(word, _)| *word == cache).expect("a mode").1;
    let (create, size) = SHAPES[(seed % SHAPES.len() as u64) as usize];
    let name = format!("{cache}-{engine}-{seed}.qcow2");
    let path = images.create(&name, create, &size.to_string());
    let file = SimulatedFile::new(std::fs::read(path).expect("the image"), seed);
    file.hook(hook);
    let workload = Workload { blank: true, requests: 90, ..Workload::new(seed) };
    let options = format!("cache={cache},aio={engine}");
    let disk = open(&file, &options)?;
    let history = workload.run(&disk, &|| file.now());
    drop(disk);
    // The process may end as well, with everything that the page cache has.
    let promise = Promise::of(mode);
    examine(file.contents(), &history, u64::MAX, promise).map_err(|e| format!("{create}, closed: {e}"))?;
    let mut cut = file.power_cut();
    let mut random = Random::new(!seed);
    let mut moments: Vec<u64> = (0..CUTS).map(|_| random.below(cut.end() + 1)).collect();
    moments.sort_unstable();
    for moment in moments {
        cut.advance(moment);
        examine(cut.contents(&mut random), &history, moment, promise)
            .map_err(|error| format!("{create}, power cut at {moment}: {error}"))?;
    }
    Ok(())
}

fn keeps_its_promise(cache: &str, engine: &str) {
    let Some(images) = Images::new() else { return };
    for seed in seeds(RUNS) {
        if let Err(error) = run(&images, seed, cache, engine, |_| Verdict::Done) {
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
    let Some(images) = Images::new() else { return };
    for (cache, engine) in ["writeback", "directsync"].into_iter().flat_map(|c| ENGINES.map(|e| (c, e))) {
        let liar = |asked: &Asked| match asked {
            Asked::Sync | Asked::Write { dsync: true, .. } => Verdict::Lie,
            _ => Verdict::Done,
        };
        let found = (0..20).find(|&seed| run(&images, seed, cache, engine, liar).is_err());
        assert!(found.is_some(), "cache={cache},aio={engine}");
    }
}
