//! Images on a simulated medium, and what must be left of them whatever that does.

use super::Images;
use block_core::contract::durability::{History, Promise, Workload};
use block_core::contract::{Client, Random};
use block_core::file::simulated::{Asked, Contents, SimulatedFile, Verdict};
use block_core::format::Format;
use block_core::image::create::{CreateOptions, create};
use block_core::qcow2::layout::Header;
use block_core::qcow2::layout::feature::Autoclear;
use block_core::qcow2::offline::{Image, Repair, check, create_snapshot};
use block_core::qcow2::{Fault, Qcow2Disk};
use std::io::{Read, Seek};
use std::iter;
use std::ops::Range;
use std::sync::Arc;

/// How images are made, and how large they are: small clusters, so that much is allocated, and the usual ones.
const SHAPES: [(&str, u64); 7] = [
    ("cluster_size=4k", 1 << 20),
    ("cluster_size=512,refcount_bits=64", 256 << 10),
    ("cluster_size=64k,lazy_refcounts=on", 2 << 20),
    ("cluster_size=512,refcount_bits=64,preallocation=metadata", 1900 << 10),
    ("cluster_size=4k,data_file=data", 1 << 20),
    ("cluster_size=512,data_file=data,data_file_raw=on", 256 << 10),
    ("cluster_size=4k,data_file=data,data_file_raw=on,preallocation=metadata", 1 << 20),
];

/// The number of the one that is full, and all of it is a snapshot's too, so that each cluster and each L2 table is copied
/// when it is first written to; and soon its refcount table is too small.
pub const SHARED: u64 = 3;

/// The number of the one whose data is in another file. Where no cluster has a place, that holds what nobody has written:
/// whoever sees that sees too much.
pub const EXTERNAL: u64 = 4;

/// The number of the one that is full, in a data file that is a raw image by itself.
const RAW: u64 = 6;

/// The name of data files.
const DATA: &str = "data";

/// Images of every shape.
pub struct Shapes(Vec<Vec<u8>>);

/// An image, and what is to be done to it.
pub struct Case {
    /// How it was made.
    pub shape: &'static str,
    pub file: SimulatedFile,
    /// Its data file, if it has one, on the same medium.
    pub data: Option<SimulatedFile>,
    pub workload: Workload,
    /// The data file is a raw image by itself.
    raw: bool,
    /// Where its header, refcount table and L1 table are, at first.
    tables: [Range<u64>; 3],
}

/// What is left of an image.
pub struct Remains {
    image: Contents,
    data: Option<Contents>,
}

impl Shapes {
    /// `None`, and says so, without qemu-img.
    pub fn new() -> Option<Self> {
        let images = Images::new()?;
        let shape = |(options, size): (&'static str, u64)| {
            // qemu-img allocates all of an image whose data file is to be a raw one.
            let path = if options.contains("raw") && !options.contains("preallocation") {
                let path = images.path("image.qcow2");
                let mut how = CreateOptions::default();
                how.set_all(options, Format::Qcow2).unwrap();
                create(&path, Format::Qcow2, Some(size), &how, false).unwrap();
                path
            } else {
                images.create("image.qcow2", options, &size.to_string())
            };
            std::fs::read(path).unwrap()
        };
        Some(Self(SHAPES.into_iter().map(shape).collect()))
    }

    /// One of them, whose number is taken modulo theirs.
    pub fn case(&self, shape: u64, seed: u64) -> Case {
        let number = shape % SHAPES.len() as u64;
        let (shape, capacity) = SHAPES[number as usize];
        let full = [SHARED, RAW].contains(&number);
        let workload = Workload { blank: !full, requests: 90, ..Workload::new(seed) };
        let mut contents = Contents::from(self.0[number as usize].clone());
        if number == SHARED {
            contents = shared(contents, &workload.initial(capacity));
        }
        let header = Header::parse(&contents.to_vec()).unwrap();
        let range = |offset, clusters: u64| offset..offset + clusters * header.cluster_size();
        let tables = [
            range(0, 1),
            range(header.refcount_table_offset, header.refcount_table_clusters.into()),
            range(header.l1_table_offset, (8 * u64::from(header.l1_size)).div_ceil(header.cluster_size())),
        ];
        let file = SimulatedFile::new(contents, seed);
        let data = header.data_file().map(|name| {
            assert_eq!(name, DATA);
            let data = match number {
                EXTERNAL => vec![0xa5; capacity as usize],
                RAW => workload.initial(capacity),
                _ => vec![0; capacity as usize],
            };
            file.beside(name, data, !seed)
        });
        let raw = header.autoclear_features.contains(Autoclear::RAW_EXTERNAL_DATA);
        Case { shape, file, data, workload, raw, tables }
    }
}

/// An image that is filled with data, all of which is a snapshot's too.
pub fn shared(contents: Contents, data: &[u8]) -> Contents {
    let file = SimulatedFile::new(contents, 0);
    let disk = open(&file, "cache=unsafe").unwrap();
    Client::new(&disk, 1).write(0, data);
    drop(disk);
    let mut host = tempfile::tempfile().unwrap();
    file.contents().write_to(&host).unwrap();
    let mut image = Image::open(host.try_clone().unwrap()).unwrap();
    create_snapshot(&mut image, "first", &mut |_, _| {}).unwrap();
    host.rewind().unwrap();
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    bytes.into()
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

impl From<Contents> for Remains {
    fn from(image: Contents) -> Self {
        Self { image, data: None }
    }
}

/// An image has no corruption (leaks are allowed) and can be opened; gives what the guest sees.
pub fn examine(remains: impl Into<Remains>) -> Result<Vec<u8>, String> {
    let Remains { image: contents, data } = remains.into();
    let copy = tempfile::tempfile().map_err(|error| error.to_string())?;
    contents.write_to(&copy).map_err(|error| error.to_string())?;
    let mut image = Image::open(copy).map_err(|error| format!("does not open for a check: {error}"))?;
    let report = check(&mut image, Repair::Nothing, &mut |_, _| {})
        .map_err(|error| format!("cannot be checked: {error}"))?;
    if report.corruptions > 0 {
        return Err(format!("corrupt: {:?}", report.findings));
    }
    let file = SimulatedFile::new(contents, 0);
    if let Some(data) = data {
        file.beside(DATA, data, 0);
    }
    let disk = open(&file, "readonly=on")?;
    let capacity = block_core::Disk::info(&disk).capacity as usize;
    Ok(Client::new(&disk, 1).read(0, capacity))
}

impl Case {
    /// The image's file, and its data file.
    pub fn files(&self) -> impl Iterator<Item = &SimulatedFile> {
        iter::once(&self.file).chain(&self.data)
    }

    /// Asks a hook of each file what becomes of its operations from now on.
    pub fn hook<H>(&self, make: impl Fn() -> H)
    where
        H: FnMut(&Asked) -> Verdict + Send + 'static,
    {
        self.files().for_each(|file| file.hook(make()));
    }

    /// What the page cache holds.
    pub fn contents(&self) -> Remains {
        let data = self.data.as_ref().map(SimulatedFile::contents);
        Remains { image: self.file.contents(), data }
    }

    /// Examines what is left of the image when its process ends, with everything that the page cache has, and when the power
    /// goes at this many random moments: no corruption, and nothing is gone that was promised. Some of the moments are at the
    /// end of an fdatasync, and of one that what is seldom written waits for.
    ///
    /// A data file that is a raw image by itself has kept the same.
    pub fn keeps(&self, history: &History, promise: Promise, cuts: u64) -> Result<(), String> {
        let held = |remains: Remains, clock| {
            let raw = self.raw.then(|| remains.data.as_ref().map(Contents::to_vec)).flatten();
            let held = examine(remains)?;
            history.check(clock, promise, &held).map_err(|loss| loss.to_string())?;
            if let Some(mut raw) = raw {
                raw.resize(held.len(), 0);
                let kept = history.check(clock, promise, &raw);
                kept.map_err(|loss| format!("the data file by itself: {loss}"))?;
            }
            Ok::<_, String>(())
        };
        held(self.contents(), u64::MAX).map_err(|error| format!("when the process ends: {error}"))?;
        let mut cut = self.file.power_cut();
        let mut data = self.data.as_ref().map(SimulatedFile::power_cut);
        let mut random = Random::new(!self.workload.seed);
        let seldom = self.tables.iter().map(|table| {
            cut.syncs(|asked| matches!(asked, Asked::Write { offset, .. } if table.contains(offset)))
        });
        let of_data = data.as_ref().map(|cut| cut.syncs(|_| true));
        let syncs: Vec<Vec<u64>> = seldom.chain([cut.syncs(|_| true)]).chain(of_data).collect();
        let mut moment = |number: usize| match syncs.get(number % (2 * syncs.len())) {
            Some(syncs) if !syncs.is_empty() => random.one_of(syncs),
            _ => random.below(cut.end() + 1),
        };
        let mut moments: Vec<u64> = (0..cuts).map(|number| moment(number as usize)).collect();
        moments.sort_unstable();
        for moment in moments {
            cut.advance(moment);
            let image = cut.contents(&mut random);
            let data = data.as_mut().map(|cut| {
                cut.advance(moment);
                cut.contents(&mut random)
            });
            held(Remains { image, data }, moment)
                .map_err(|error| format!("power cut at {moment}: {error}"))?;
        }
        Ok(())
    }
}
