//! An image file: any bytes behind qcow2's magic.
//!
//! The header and all tables are parsed, the image is checked and repaired, mapped, and read as a disk, and its
//! snapshots are gone back to. Nothing may panic, hang, or take much memory (run it with `-rss_limit_mb=512`), and what a
//! repair calls clean has to be clean when it is looked at again.

#![no_main]

use block_core::Registry;
use block_core::contract::{Client, Memory};
use block_core::image::map::Mapper;
use block_core::image::{Access, Chain, Format};
use block_core::qcow2::layout::Header;
use block_core::qcow2::offline::{Image, Repair, apply_snapshot, check, create_snapshot, delete_snapshot};
use libfuzzer_sys::{Corpus, fuzz_target};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// Longer images only take longer.
const MAX_LEN: usize = 1 << 20;

/// How much of the disk is mapped and read, in extents.
const EXTENTS: usize = 64;

fuzz_target!(|data: &[u8]| -> Corpus {
    if data.len() > MAX_LEN || Header::parse(data).is_err() {
        return Corpus::Reject;
    }
    let path = folder().join("image.qcow2");
    std::fs::write(&path, data).expect("a file");
    look(&path);
    if check(&mut open(&path), Repair::Nothing, &mut |_, _| {}).is_ok_and(|report| report.is_clean()) {
        change(&path);
    }
    let Ok(report) = check(&mut open(&path), Repair::All, &mut |_, _| {}) else { return Corpus::Keep };
    if report.is_clean() {
        let again = check(&mut open(&path), Repair::Nothing, &mut |_, _| {}).expect("it was read before");
        assert!(again.is_clean(), "a repair that was none: {again:?}");
    }
    Corpus::Keep
});

/// Maps it and reads it, as far as it can be opened. Its header may name other files; here are none.
fn look(path: &Path) {
    let Ok(chain) = Chain::open(path, Some(Format::Qcow2), Access::Read) else { return };
    let Ok(mut mapper) = Mapper::new(&chain) else { return };
    let name = format!("{},format=qcow2,readonly=on,aio=threads", path.display());
    let disk = Registry::default().open(name.parse().expect("a disk's name")).ok();
    let mut client = disk.as_ref().map(|disk| Client::new(&**disk, 1));
    let mut memory = Memory::new(4096, 0, 0);
    let (mut at, size) = (0, mapper.size());
    let mut buffer = [0; 4096];
    for _ in 0..EXTENTS {
        if at >= size {
            return;
        }
        let Ok(extent) = mapper.at(at, size) else { return };
        assert!(extent.start == at && extent.length > 0 && extent.length <= size - at);
        let readable = mapper.read(at, &mut buffer).is_ok();
        if let Some(client) = client.as_mut().filter(|_| size - at >= 4096) {
            let read = client.read_into(at, &mut memory, &[4096]);
            // Two readers of the same image.
            assert!(read.is_err() || !readable || memory.bytes() == buffer, "{at:#x}");
        }
        at += extent.length;
    }
}

/// Changes snapshots of an image that was clean, which it has to stay.
fn change(path: &Path) {
    let mut image = open(path);
    let Ok((snapshots, _)) = image.snapshots() else { return };
    if let Some(first) = snapshots.first() {
        let _ = apply_snapshot(&mut image, &first.id, &mut |_, _| {});
        let _ = delete_snapshot(&mut image, &first.id, &mut |_, _| {});
    }
    let _ = create_snapshot(&mut image, "fuzz", &mut |_, _| {});
    let after = check(&mut open(path), Repair::Nothing, &mut |_, _| {}).expect("it was read before");
    assert!(after.corruptions == 0, "no longer clean: {after:?}");
}

fn open(path: &Path) -> Image {
    let file: File = OpenOptions::new().read(true).write(true).open(path).expect("the file");
    Image::open(file).expect("its header was parsed")
}

/// A folder for this process's image, in memory if there is such a one.
fn folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = parent.join(format!("ringpair-fuzz-image-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
