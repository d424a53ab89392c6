//! Random requests to qcow2 images of every shape, against an array that does the same; qemu-img checks the image and
//! compares it with the array.
//!
//! `RINGPAIR_SEEDS=N` runs N of them instead of three hundred, `RINGPAIR_SEED=S` only that one.

mod images;

use block_core::contract::{Client, Memory, pattern};
use block_core::{Disk, Operation, RequestFlags, Submission, Unmapped};
use images::Images;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SIZE: usize = (3 << 20) + 1536;

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
    /// Internal snapshots, and what each should read as.
    snapshots: Vec<(String, Vec<u8>)>,
    can_snapshot: bool,
    random: Random,
    step: u64,
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
                // A raw base that is shorter, or a qcow2 one with clusters of another size, some of them compressed.
                let len = [SIZE, SIZE - 70_000, 1 << 20][random.below(3)];
                let base = pattern(seed, 0, len);
                model[..len].copy_from_slice(&base);
                std::fs::write(images.path("base.img"), &base).unwrap();
                if n == 5 {
                    create += ",backing_file=base.img,backing_fmt=raw";
                } else {
                    let clusters =
                        random.one_of(&["cluster_size=512", "cluster_size=64k", "cluster_size=2M"]);
                    let mut convert = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", clusters];
                    if n == 6 {
                        convert.push("-c");
                    }
                    convert.extend(["base.img", "base.qcow2"]);
                    images.qemu_img(&convert);
                    create += ",backing_file=base.qcow2,backing_fmt=qcow2";
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
        Some(Self { images, path, options, disk, model, snapshots: vec![], can_snapshot, random, step: 0 })
    }

    fn disk(&self) -> &dyn Disk {
        &**self.disk.as_ref().unwrap()
    }

    fn range(&mut self) -> (usize, usize) {
        let len = match self.random.below(4) {
            0 => 1 + self.random.below(600),
            1 => 512 * (1 + self.random.below(20)),
            2 => 4096 * (1 + self.random.below(40)),
            _ => 1 + self.random.below(400_000),
        };
        let at = match self.random.below(3) {
            0 => self.random.below(SIZE),
            1 => self.random.below(SIZE / 4096) * 4096,
            _ => SIZE.saturating_sub(len),
        };
        (at, len.min(SIZE - at))
    }

    /// Writes that are under way together on two queues, to stretches of their own that share clusters.
    fn write_together(&mut self) {
        let stretch = 512 * (1 + self.random.below(30));
        let count = 2 + self.random.below(30);
        let start = self.random.below(SIZE - stretch) / 512 * 512;
        let count = count.min((SIZE - start) / stretch);
        let flags = [RequestFlags::NONE, RequestFlags::FUA][self.random.below(2)];
        let (mut model, step) = (std::mem::take(&mut self.model), self.step);
        let mut clients = [Client::new(self.disk(), 32), Client::new(self.disk(), 32)];
        let mut memory: Vec<Memory> = (0..count)
            .map(|n| Memory::holding(&pattern(step, (start + n * stretch) as u64, stretch), 0))
            .collect();
        let mut pending = vec![0, 0];
        for (n, memory) in memory.iter_mut().enumerate() {
            let at = start + n * stretch;
            model[at..at + stretch].copy_from_slice(memory.bytes());
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
        self.model = model;
    }

    fn close(&mut self) {
        self.disk = None;
    }

    fn reopen(&mut self) {
        self.close();
        if self.can_snapshot && self.snapshots.len() < 2 && self.random.below(2) == 0 {
            let name = format!("s{}", self.snapshots.len());
            self.images.qemu_img(&["snapshot", "-c", &name, self.path.to_str().unwrap()]);
            self.snapshots.push((name, self.model.clone()));
        }
        self.disk = self.images.open(&self.path, &self.options);
    }

    fn step(&mut self) {
        self.step += 1;
        let (at, len) = self.range();
        let range = (at as u64, len as u64);
        let flags = [RequestFlags::NONE, RequestFlags::FUA][self.random.below(2)];
        let mut client = Client::new(self.disk(), 8);
        match self.random.below(12) {
            0..4 => {
                let data = pattern(self.step, at as u64, len);
                self.model[at..at + len].copy_from_slice(&data);
                let mut memory = Memory::holding(&data, [0, 1, 512][self.random.below(3)]);
                let cut = [1 + self.random.below(70_000)];
                assert_eq!(client.write_from(range.0, &mut memory, &cut, flags), Ok(()));
            }
            4..6 => {
                let unmap = [RequestFlags::NONE, RequestFlags::MAY_UNMAP][self.random.below(2)];
                assert_eq!(client.run(Operation::WriteZeroes, range, flags.with(unmap)), Ok(()));
                self.model[at..at + len].fill(0);
            }
            6..8 => {
                assert_eq!(client.run(Operation::Discard, range, RequestFlags::NONE), Ok(()));
                assert_eq!(self.disk().info().unmapped, Unmapped::Zeroes);
                self.model[at..at + len].fill(0);
            }
            8 => assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(())),
            9..11 => {
                drop(client);
                self.write_together();
            }
            _ => {
                drop(client);
                if self.random.below(3) == 0 {
                    self.reopen();
                }
            }
        }
        let (at, len) = self.range();
        let found = Client::new(self.disk(), 8).read(at as u64, len);
        assert!(found == self.model[at..at + len], "step {}, read {at}+{len}", self.step);
    }

    fn compare(&self, model: &[u8]) {
        let raw = self.images.path("model.img");
        std::fs::write(&raw, model).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        self.images.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &text(&raw), &text(&self.path)]);
    }

    fn finish(mut self) {
        let whole = Client::new(self.disk(), 8).read(0, SIZE);
        assert!(whole == self.model, "the whole, in the end");
        self.close();
        self.images.check(&self.path);
        self.compare(&self.model);
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
