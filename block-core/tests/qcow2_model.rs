//! Random requests to qcow2 images of every shape, against an array that does the same; in between the image is closed,
//! resized, given a snapshot, or left as a process leaves it that is killed. qemu-img checks the image and compares it with
//! the array.
//!
//! `RINGPAIR_SEEDS=N` runs N of them instead of three hundred, `RINGPAIR_SEED=S` only that one.

mod images;

use block_core::contract::{Client, Memory, pattern};
use block_core::image::create::Preallocation;
use block_core::image::info::ImageInfo;
use block_core::image::map::{Extent, Mapper};
use block_core::image::resize::{NewSize, resize};
use block_core::image::{Access, Chain, Format, ImageError, Layer};
use block_core::{Disk, Operation, RequestFlags, Submission, Unmapped};
use images::Images;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What images have at first, in bytes.
const SIZE: usize = (3 << 20) + 1536;

/// What changes whole or not at all, as far as the tests look at it.
const SECTOR: usize = 512;

/// A small random number generator (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn one_of<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// The image, and what it should read as.
struct Case {
    images: Images,
    path: PathBuf,
    options: String,
    disk: Option<Arc<dyn Disk>>,
    model: Vec<u8>,
    /// What sectors held since they were last made durable: a process that is killed may leave that.
    older: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Whether every write is durable, and whether one with FUA is.
    durable: (bool, bool),
    /// Internal snapshots, and what each should read as.
    snapshots: Vec<(String, Vec<u8>)>,
    can_snapshot: bool,
    /// Snapshots know their size.
    resizes_with_snapshots: bool,
    random: Random,
    step: u64,
}

/// An extent as `qemu-img map` has it.
fn extent(json: &Value) -> Extent {
    let (number, word) = (|name| json[name].as_u64(), |name| json[name].as_bool().unwrap());
    Extent {
        start: number("start").unwrap(),
        length: number("length").unwrap(),
        depth: number("depth").unwrap() as usize,
        present: word("present"),
        zero: word("zero"),
        data: word("data"),
        compressed: word("compressed"),
        offset: number("offset"),
    }
}

/// Makes `base.qcow2` over `base.img`, which has some data of its own, in pieces smaller than the clusters above it.
fn write_over_base(images: &Images, random: &mut Random, model: &mut [u8]) {
    let shape = random.one_of(&[
        "cluster_size=512",
        "cluster_size=4k",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=256k",
    ]);
    let options = format!("{shape},backing_file=base.img,backing_fmt=raw");
    let path = images.create("base.qcow2", &options, &SIZE.to_string());
    let commands: Vec<String> = (1..=20u8)
        .map(|byte| {
            let sectors = SIZE / SECTOR;
            let first = random.below(sectors);
            let len = (1 + random.below(64)).min(sectors - first);
            model[first * SECTOR..][..len * SECTOR].fill(byte);
            format!("write -P {byte} {} {}", first * SECTOR, len * SECTOR)
        })
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    images.qemu_io(&path, &commands);
}

impl Case {
    fn new(images: Images, seed: u64) -> Option<Self> {
        let mut random = Random::new(seed);
        let cluster =
            random.one_of(&["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=256k"]);
        let mut create = cluster.to_owned();
        let mut model = vec![0; SIZE];
        let size = SIZE.to_string();
        let mut can_snapshot = true;
        match random.below(8) {
            0 => {
                create += ",data_file=data.img";
                can_snapshot = false;
            }
            1 => {
                create += ",data_file=data.img,data_file_raw=on";
                can_snapshot = false;
            }
            2 => create += ",compat=0.10",
            3 => create += ",lazy_refcounts=on,refcount_bits=8",
            4 => create += ",preallocation=metadata",
            n => {
                // A raw base that is shorter, or a qcow2 one with clusters of another size, compressed ones, or a base of its own.
                let len = [SIZE, SIZE - 70_000, 1 << 20][random.below(3)];
                let base = pattern(seed, 0, len);
                model[..len].copy_from_slice(&base);
                std::fs::write(images.path("base.img"), &base).unwrap();
                if n == 5 {
                    create += ",backing_file=base.img,backing_fmt=raw";
                } else {
                    create += ",backing_file=base.qcow2,backing_fmt=qcow2";
                    if n == 6 {
                        let clusters =
                            random.one_of(&["cluster_size=512", "cluster_size=64k", "cluster_size=2M"]);
                        let packed: &[&str] =
                            random.one_of(&[&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"]]);
                        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", clusters];
                        images.qemu_img(&[&convert[..], packed, &["base.img", "base.qcow2"]].concat());
                    } else {
                        write_over_base(&images, &mut random, &mut model);
                    }
                }
            }
        }
        let path = images.create("disk.qcow2", &create, &size);
        let cache = random.one_of(&["writeback", "none", "writethrough", "directsync", "unsafe"]);
        let aio = random.one_of(&["io_uring", "threads"]);
        let table = random.one_of(&["", ",l2-cache-size=64K"]);
        let options = format!(",cache={cache},aio={aio}{table}");
        eprintln!("seed {seed}: {create}{options}");
        let disk = Some(images.open(&path, &options)?);
        let durable = (matches!(cache, "writethrough" | "directsync"), cache != "unsafe");
        let can_resize = !create.contains("compat=0.10");
        Some(Self {
            images,
            path,
            options,
            disk,
            model,
            older: BTreeMap::new(),
            durable,
            snapshots: vec![],
            can_snapshot,
            resizes_with_snapshots: can_resize,
            random,
            step: 0,
        })
    }

    fn disk(&self) -> &dyn Disk {
        &**self.disk.as_ref().unwrap()
    }

    fn range(&mut self) -> (usize, usize) {
        let size = self.model.len();
        let len = match self.random.below(4) {
            0 => 1 + self.random.below(600),
            1 => 512 * (1 + self.random.below(20)),
            2 => 4096 * (1 + self.random.below(40)),
            _ => 1 + self.random.below(400_000),
        };
        let at = match self.random.below(3) {
            0 => self.random.below(size),
            1 => self.random.below(size / 4096) * 4096,
            _ => size.saturating_sub(len),
        };
        (at, len.min(size - at))
    }

    /// A range of the model is about to change.
    fn change(&mut self, at: usize, len: usize, flags: RequestFlags) -> &mut [u8] {
        let (every, fua) = self.durable;
        for sector in at / SECTOR..(at + len).div_ceil(SECTOR) {
            if every || fua && flags.contains(RequestFlags::FUA) {
                self.older.remove(&sector);
            } else {
                let end = ((sector + 1) * SECTOR).min(self.model.len());
                self.older.entry(sector).or_default().push(self.model[sector * SECTOR..end].to_vec());
            }
        }
        &mut self.model[at..at + len]
    }

    /// Writes that are under way together on two queues, to stretches of their own that share clusters.
    fn write_together(&mut self) {
        let stretch = 512 * (1 + self.random.below(30));
        let count = 2 + self.random.below(30);
        let size = self.model.len();
        let start = self.random.below(size - stretch) / 512 * 512;
        let count = count.min((size - start) / stretch);
        let flags = [RequestFlags::NONE, RequestFlags::FUA][self.random.below(2)];
        let step = self.step;
        self.change(start, count * stretch, flags).copy_from_slice(&pattern(
            step,
            start as u64,
            count * stretch,
        ));
        let mut clients = [Client::new(self.disk(), 32), Client::new(self.disk(), 32)];
        let mut memory: Vec<Memory> = (0..count)
            .map(|n| Memory::holding(&pattern(step, (start + n * stretch) as u64, stretch), 0))
            .collect();
        let mut pending = vec![0, 0];
        for (n, memory) in memory.iter_mut().enumerate() {
            let at = start + n * stretch;
            let segments = [memory.segment()];
            let range = (at as u64, stretch as u64);
            // SAFETY: the memory outlives the requests, which are waited for below.
            match unsafe { clients[n % 2].submit(Operation::Write, range, &segments, flags).1 } {
                Submission::Done(result) => assert_eq!(result, Ok(())),
                Submission::Pending => pending[n % 2] += 1,
                Submission::Full => panic!("there is room"),
            }
        }
        clients.iter_mut().for_each(Client::kick);
        for completion in Client::wait_for_all_of(&mut clients, pending) {
            assert_eq!(completion.result, Ok(()));
        }
    }

    fn close(&mut self) {
        self.disk = None;
        self.older.clear();
    }

    fn open(&mut self) {
        self.disk = self.images.open(&self.path, &self.options);
    }

    fn reopen(&mut self) {
        self.close();
        if self.can_snapshot && self.snapshots.len() < 2 && self.random.below(2) == 0 {
            let name = format!("s{}", self.snapshots.len());
            self.images.qemu_img(&["snapshot", "-c", &name, self.path.to_str().unwrap()]);
            self.snapshots.push((name, self.model.clone()));
        }
        self.open();
    }

    /// Another size, as `ringpair img resize` gives it, or qemu-img where a backing file is one that `img` only reads.
    fn resize(&mut self) {
        if !self.snapshots.is_empty() && !self.resizes_with_snapshots {
            return;
        }
        self.close();
        let least = if self.snapshots.is_empty() { 1 << 20 } else { self.model.len() };
        let size = (least + self.random.below(2 << 20)) / SECTOR * SECTOR;
        let (to, qcow2) = (NewSize::To(size as u64), Some(Format::Qcow2));
        eprintln!("step {}: from {} to {size} bytes", self.step, self.model.len());
        let only_read = |layer: &Layer| layer.usable().is_err();
        if Chain::open(&self.path, qcow2, Access::Read).unwrap().layers().iter().any(only_read) {
            let path = self.path.to_str().unwrap();
            self.images.qemu_img(&["resize", "-q", "--shrink", "-f", "qcow2", path, &size.to_string()]);
        } else {
            assert_eq!(resize(&self.path, qcow2, to, true, Preallocation::Off).unwrap(), size as u64);
        }
        self.model.resize(size, 0);
        self.open();
        assert_eq!(self.disk().info().capacity, size as u64);
    }

    /// Goes on with what a process that is killed at this moment leaves: the files as they are, while nobody uses the disk.
    fn kill(&mut self) {
        let files: Vec<PathBuf> = ["disk.qcow2", "data.img"]
            .map(|name| self.images.path(name))
            .into_iter()
            .filter(|it| it.exists())
            .collect();
        let copy = |file: &Path| file.with_extension("killed");
        loop {
            let before = self.disk().counters();
            for file in &files {
                let copied = Command::new("cp").args([file, &copy(file)]).status().unwrap();
                assert!(copied.success());
            }
            // Clusters may have been given away meanwhile.
            if self.disk().counters() == before {
                break;
            }
        }
        self.disk = None;
        files.iter().for_each(|file| std::fs::rename(copy(file), file).unwrap());
        self.images.check_for_leaks(&self.path);
        self.open();
        let held = Client::new(self.disk(), 8).read(0, self.model.len());
        for (number, (held, sector)) in held.chunks(SECTOR).zip(self.model.chunks(SECTOR)).enumerate() {
            let older = self.older.get(&number);
            let right = held == sector || older.is_some_and(|older| older.iter().any(|older| older == held));
            assert!(right, "step {}, killed: sector {number} has lost what was durable", self.step);
        }
        self.older.clear();
        self.model = held;
    }

    fn step(&mut self) {
        self.step += 1;
        let (at, len) = self.range();
        let range = (at as u64, len as u64);
        let flags = [RequestFlags::NONE, RequestFlags::FUA][self.random.below(2)];
        let mut client = Client::new(self.disk(), 8);
        match self.random.below(13) {
            0..4 => {
                let data = pattern(self.step, at as u64, len);
                self.change(at, len, flags).copy_from_slice(&data);
                let mut memory = Memory::holding(&data, [0, 1, 512][self.random.below(3)]);
                let cut = [1 + self.random.below(70_000)];
                assert_eq!(client.write_from(range.0, &mut memory, &cut, flags), Ok(()));
            }
            4..6 => {
                let unmap = [RequestFlags::NONE, RequestFlags::MAY_UNMAP][self.random.below(2)];
                assert_eq!(client.run(Operation::WriteZeroes, range, flags.with(unmap)), Ok(()));
                self.change(at, len, flags).fill(0);
            }
            6..8 => {
                assert_eq!(client.run(Operation::Discard, range, RequestFlags::NONE), Ok(()));
                assert_eq!(self.disk().info().unmapped, Unmapped::Zeroes);
                self.change(at, len, RequestFlags::NONE).fill(0);
            }
            8 => {
                assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
                self.older.clear();
            }
            9..11 => {
                drop(client);
                self.write_together();
            }
            _ => {
                drop(client);
                match self.random.below(8) {
                    0..2 => self.reopen(),
                    2 => self.resize(),
                    3 => self.kill(),
                    _ => {}
                }
            }
        }
        let (at, len) = self.range();
        let found = Client::new(self.disk(), 8).read(at as u64, len);
        let wrong = found.iter().zip(&self.model[at..at + len]).position(|(found, model)| found != model);
        assert_eq!(wrong, None, "step {}, read {at}+{len}", self.step);
    }

    fn compare(&self, model: &[u8]) {
        let raw = self.images.path("model.img");
        std::fs::write(&raw, model).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        self.images.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &text(&raw), &text(&self.path)]);
    }

    /// `map` and `info` say what qemu-img says.
    fn compare_with_map(&self) {
        let path = self.path.to_str().unwrap();
        let asked = |command| {
            let json = self.images.qemu_img(&[command, "--output=json", "-f", "qcow2", path]);
            serde_json::from_str::<Value>(&json).unwrap()
        };
        let chain = Chain::open(&self.path, Some(Format::Qcow2), Access::Read).unwrap();
        let mut ours = Vec::new();
        let mapped = Mapper::new(&chain).unwrap().each(|extent| {
            ours.push(extent);
            Ok::<(), ImageError>(())
        });
        mapped.unwrap();
        assert_eq!(ours, asked("map").as_array().unwrap().iter().map(extent).collect::<Vec<_>>());
        let (theirs, ours) = (asked("info"), ImageInfo::of(chain.top()).unwrap());
        assert_eq!(theirs["virtual-size"], ours.virtual_size);
        assert_eq!(ours.virtual_size, self.model.len() as u64);
        assert_eq!(theirs["dirty-flag"], false);
    }

    fn finish(mut self) {
        let whole = Client::new(self.disk(), 8).read(0, self.model.len());
        assert!(whole == self.model, "the whole, in the end");
        self.close();
        self.images.check(&self.path);
        self.compare(&self.model);
        self.compare_with_map();
        for (name, model) in &self.snapshots {
            self.images.qemu_img(&["snapshot", "-a", name, self.path.to_str().unwrap()]);
            self.compare(model);
        }
    }
}

fn run(seed: u64) {
    let Some(images) = Images::new() else { return };
    let Some(mut case) = Case::new(images, seed) else { return };
    for _ in 0..40 {
        case.step();
    }
    case.finish();
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("RINGPAIR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGPAIR_SEEDS").unwrap_or(300),
    }
}

#[test]
fn any_sequence_of_requests_leaves_what_an_array_would_in_an_image_that_checks_clean() {
    for seed in seeds() {
        eprintln!("RINGPAIR_SEED={seed}");
        run(seed);
    }
}
