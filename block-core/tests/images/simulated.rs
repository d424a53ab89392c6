//! Images on a simulated medium, and what must be left of them whatever that does.

use super::Images;
use block_core::contract::durability::{History, Promise, Workload};
use block_core::contract::{Client, Random};
use block_core::file::simulated::{Asked, Contents, SimulatedFile};
use block_core::qcow2::layout::Header;
use block_core::qcow2::offline::{Image, Repair, check, create_snapshot};
use block_core::qcow2::{Fault, Qcow2Disk};
use std::io::{Read, Seek};
use std::ops::Range;
use std::sync::Arc;

/// How images are made, and how large they are: small clusters, so that much is allocated, and the usual ones.
const SHAPES: [(&str, u64); 4] = [
    ("cluster_size=4k", 1 << 20),
    ("cluster_size=512,refcount_bits=64", 256 << 10),
    ("cluster_size=64k,lazy_refcounts=on", 2 << 20),
    ("cluster_size=512,refcount_bits=64,preallocation=metadata", 1900 << 10),
];

/// The number of the last of them. It is full, and all of it is a snapshot's too, so that each cluster and each L2 table is
/// copied when it is first written to; and soon its refcount table is too small.
pub const SHARED: u64 = 3;

/// Images of every shape.
pub struct Shapes(Vec<Vec<u8>>);

/// An image, and what is to be done to it.
pub struct Case {
    /// How it was made.
    pub shape: &'static str,
    pub file: SimulatedFile,
    pub workload: Workload,
    /// Where its header, refcount table and L1 table are, at first.
    tables: [Range<u64>; 3],
}

impl Shapes {
    /// `None`, and says so, without qemu-img.
    pub fn new() -> Option<Self> {
        let images = Images::new()?;
        let shape = |(options, size): (&'static str, u64)| {
            std::fs::read(images.create("image.qcow2", options, &size.to_string())).unwrap()
        };
        Some(Self(SHAPES.into_iter().map(shape).collect()))
    }

    /// One of them, whose number is taken modulo theirs.
    pub fn case(&self, shape: u64, seed: u64) -> Case {
        let number = shape % SHAPES.len() as u64;
        let (shape, capacity) = SHAPES[number as usize];
        let blank = number != SHARED;
        let workload = Workload { blank, requests: 90, ..Workload::new(seed) };
        let mut contents = Contents::from(self.0[number as usize].clone());
        if !blank {
            let file = SimulatedFile::new(contents, 0);
            let disk = open(&file, "cache=unsafe").unwrap();
            Client::new(&disk, 1).write(0, &workload.initial(capacity));
            drop(disk);
            let mut host = tempfile::tempfile().unwrap();
            file.contents().write_to(&host).unwrap();
            let mut image = Image::open(host.try_clone().unwrap()).unwrap();
            create_snapshot(&mut image, "first", &mut |_, _| {}).unwrap();
            host.rewind().unwrap();
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).unwrap();
            contents = bytes.into();
        }
        let header = Header::parse(&contents.to_vec()).unwrap();
        let range = |offset, clusters: u64| offset..offset + clusters * header.cluster_size();
        let tables = [
            range(0, 1),
            range(header.refcount_table_offset, header.refcount_table_clusters.into()),
            range(header.l1_table_offset, (8 * u64::from(header.l1_size)).div_ceil(header.cluster_size())),
        ];
        Case { shape, file: SimulatedFile::new(contents, seed), workload, tables }
    }
}

/// A disk in a simulated image, with or without a fault.
pub fn open_with(file: &SimulatedFile, options: &str, fault: Option<Fault>) -> Result<Qcow2Disk, String> {
    let disk = open(file, options)?;
    Ok(match fault {
        Some(fault) => disk.with_fault(fault),
        None => disk,
    })
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

impl Case {
    /// Examines what is left of the image when its process ends, with everything that the page cache has, and when the power
    /// goes at this many random moments: no corruption, and nothing is gone that was promised. Some of the moments are at the
    /// end of an fdatasync, and of one that what is seldom written waits for.
    pub fn keeps(&self, history: &History, promise: Promise, cuts: u64) -> Result<(), String> {
        let held = |contents, clock| {
            let held = examine(contents)?;
            history.check(clock, promise, &held).map_err(|loss| loss.to_string())
        };
        held(self.file.contents(), u64::MAX).map_err(|error| format!("when the process ends: {error}"))?;
        let mut cut = self.file.power_cut();
        let mut random = Random::new(!self.workload.seed);
        let seldom = self.tables.iter().map(|table| {
            cut.syncs(|asked| matches!(asked, Asked::Write { offset, .. } if table.contains(offset)))
        });
        let syncs: Vec<Vec<u64>> = seldom.chain([cut.syncs(|_| true)]).collect();
        let mut moment = |number: usize| match syncs.get(number % (2 * syncs.len())) {
            Some(syncs) if !syncs.is_empty() => random.one_of(syncs),
            _ => random.below(cut.end() + 1),
        };
        let mut moments: Vec<u64> = (0..cuts).map(|number| moment(number as usize)).collect();
        moments.sort_unstable();
        for moment in moments {
            cut.advance(moment);
            held(cut.contents(&mut random), moment)
                .map_err(|error| format!("power cut at {moment}: {error}"))?;
        }
        Ok(())
    }
}
