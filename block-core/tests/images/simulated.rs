//! Images on a simulated medium, and what must be left of them whatever that does.

use super::Images;
use block_core::contract::durability::{History, Promise};
use block_core::contract::{Client, Random};
use block_core::file::CacheMode;
use block_core::file::simulated::{Contents, SimulatedFile};
use block_core::qcow2::Qcow2Disk;
use block_core::qcow2::offline::{Image, Repair, check};
use std::sync::Arc;

pub const ENGINES: [&str; 2] = ["io_uring", "threads"];

/// How images are made, and how large they are: small clusters, so that much is allocated, and the usual ones.
const SHAPES: [(&str, u64); 3] = [
    ("cluster_size=4k", 1 << 20),
    ("cluster_size=512,refcount_bits=64", 256 << 10),
    ("cluster_size=64k,lazy_refcounts=on", 2 << 20),
];

/// An empty image.
pub struct Shape {
    pub options: &'static str,
    pub contents: Vec<u8>,
}

/// Empty images of every shape.
pub struct Shapes(Vec<Shape>);

impl Shapes {
    /// `None`, and says so, without qemu-img.
    pub fn new() -> Option<Self> {
        let images = Images::new()?;
        let shape = |(options, size): (&'static str, u64)| {
            let path = images.create("image.qcow2", options, &size.to_string());
            Shape { options, contents: std::fs::read(path).unwrap() }
        };
        Some(Self(SHAPES.into_iter().map(shape).collect()))
    }

    /// The one of a seed, in a file of its own.
    pub fn file(&self, seed: u64) -> (&'static str, SimulatedFile) {
        let shape = &self.0[(seed % self.0.len() as u64) as usize];
        (shape.options, SimulatedFile::new(shape.contents.clone(), seed))
    }
}

/// What a cache mode promises.
pub fn promise(cache: &str) -> Promise {
    Promise::of(CacheMode::WORDS.iter().find(|(word, _)| *word == cache).expect("a mode").1)
}

/// A disk in a simulated image.
pub fn open(file: &SimulatedFile, options: &str) -> Result<Qcow2Disk, String> {
    let file = file.open_image(options).expect("options of a file");
    Qcow2Disk::on_file(Arc::new(file)).map_err(|error| error.to_string())
}

/// An image has no corruption (leaks are allowed) and can be opened; gives what the guest sees.
pub fn examine(contents: Contents) -> Result<Vec<u8>, String> {
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
    Ok(Client::new(&disk, 1).read(0, capacity))
}

/// Examines what is left of an image when its process ends, with everything that the page cache has, and when the power
/// goes at this many random moments: no corruption, and nothing is gone that was promised.
pub fn keeps(
    file: &SimulatedFile,
    history: &History,
    promise: Promise,
    seed: u64,
    cuts: u64,
) -> Result<(), String> {
    let held = |contents, clock| {
        let held = examine(contents)?;
        history.check(clock, promise, &held).map_err(|loss| loss.to_string())
    };
    held(file.contents(), u64::MAX).map_err(|error| format!("when the process ends: {error}"))?;
    let mut cut = file.power_cut();
    let mut random = Random::new(!seed);
    let mut moments: Vec<u64> = (0..cuts).map(|_| random.below(cut.end() + 1)).collect();
    moments.sort_unstable();
    for moment in moments {
        cut.advance(moment);
        held(cut.contents(&mut random), moment).map_err(|error| format!("power cut at {moment}: {error}"))?;
    }
    Ok(())
}
