//! What images ringpair opens, and what it says of the others.

mod images;

use block_core::contract::{Client, Memory, pattern};
use block_core::image::Format;
use block_core::image::create::Preallocation;
use block_core::image::resize::{NewSize, resize};
use block_core::{Disk, Operation, Registry, RequestFlags};
use images::Images;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn open(path: &Path, options: &str) -> Result<Arc<dyn Disk>, String> {
    let name = format!("{}{options}", path.display());
    Registry::default().open(name.parse().unwrap()).map_err(|error| error.to_string())
}

/// The one line that refuses an image; it says each of these.
fn refused(path: &Path, options: &str, says: &[&str]) {
    let Err(error) = open(path, options) else { panic!("{} opened", path.display()) };
    assert!(!error.contains('\n'), "{error}");
    for word in says {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn bytes(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn counter(disk: &dyn Disk, name: &str) -> u64 {
    disk.counters().iter().find(|(counter, _)| *counter == name).unwrap().1
}

fn write_and_read(disk: &dyn Disk) {
    let data = pattern(1, 70_000, 200_000);
    Client::new(disk, 4).write(70_000, &data);
    assert!(Client::new(disk, 4).read(70_000, data.len()) == data);
}

#[test]
fn images_made_with_each_option_of_qemu_img_open_and_work() {
    let Some(images) = Images::new() else { return };
    std::fs::write(images.path("base.img"), vec![7; 4 << 20]).unwrap();
    let options = [
        "",
        "compat=0.10",
        "compat=1.1",
        "lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=2",
        "refcount_bits=4",
        "refcount_bits=8",
        "refcount_bits=32",
        "refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "nocow=on",
        "compression_type=zlib",
        "compression_type=zstd",
        "backing_file=base.img,backing_fmt=raw",
        "data_file=data1.img",
        "data_file=data2.img,data_file_raw=on",
    ];
    for (n, options) in options.iter().enumerate() {
        let path = images.create(&format!("{n}.qcow2"), options, "4M");
        let disk = open(&path, "").unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(disk.info().capacity, 4 << 20);
        write_and_read(&*disk);
        drop(disk);
        images.check(&path);
    }
}

#[test]
fn what_ringpair_does_not_support_is_refused_by_its_name() {
    let Some(images) = Images::new() else { return };
    let extended = images.create("extended.qcow2", "extended_l2=on", "1M");
    refused(&extended, "", &["extended L2", "does not write", "readonly=on"]);
    let plain = images.create("plain.qcow2", "", "1M");
    patch(&plain, 79, &[1 << 5]);
    refused(&plain, ",readonly=on", &["does not know", "feature 5"]);
    patch(&plain, 79, &[0]);
    // QEMU makes encrypted images only with a secret; the header is enough.
    for (method, name) in [(1u32, "AES encryption"), (2, "LUKS encryption")] {
        patch(&plain, 32, &method.to_be_bytes());
        refused(&plain, ",readonly=on", &[name, "ringpair does not support"]);
    }
}

#[test]
fn what_is_discarded_is_given_away_unless_discards_are_ignored() {
    let Some(images) = Images::new() else { return };
    for (options, given_away) in [(",discard=ignore", 0), (",discard=unmap", 16), ("", 16)] {
        let path = images.create("disk.qcow2", "", "2M");
        let disk = open(&path, options).unwrap();
        let data = pattern(1, 0, 2 << 20);
        let mut client = Client::new(&*disk, 4);
        client.write(0, &data);
        assert_eq!(client.run(Operation::Discard, (0, 1 << 20), RequestFlags::NONE), Ok(()));
        assert_eq!(client.run(Operation::Flush, (0, 0), RequestFlags::NONE), Ok(()));
        assert_eq!(counter(&*disk, "clusters given away"), given_away, "{options}");
        let held = client.read(0, 1 << 20);
        assert!(if given_away == 0 { held == data[..1 << 20] } else { held.iter().all(|byte| *byte == 0) });
    }
}

#[test]
fn l2_cache_size_bounds_the_table_of_mappings() {
    let Some(images) = Images::new() else { return };
    let path = images.create("disk.qcow2", "", "64G");
    let table = |options| counter(&*open(&path, options).unwrap(), "mapping table bytes");
    // 8 bytes a cluster of 64 KiB: as much as the disk needs, unless that is less; and less than a hundredth to find it by.
    for (options, most) in [("", 8 << 20), (",l2-cache-size=1M", 1 << 20), (",l2-cache-size=64K", 64 << 10)] {
        let bytes = table(options);
        assert!((most..most + most / 100).contains(&bytes), "{options}: {bytes}");
    }
    for wrong in ["63K", "0", "much"] {
        let says = [&*format!("`l2-cache-size={wrong}`"), "at least 64K"];
        refused(&path, &format!(",l2-cache-size={wrong}"), &says);
    }
}

/// Images with data, zeroes, holes and what only some images have, made by QEMU; and what QEMU reads of each.
fn packed(images: &Images, options: &str) -> (PathBuf, Vec<u8>) {
    std::fs::write(images.path("base.img"), pattern(9, 0, 8 << 20)).unwrap();
    let path = images.create("packed.qcow2", options, "8M");
    // Behind each other in one cluster, and alone; a part of a compressed one is written over.
    images.qemu_io(
        &path,
        &[
            "write -P 1 4k 2k",
            "write -P 2 70k 100k",
            "write -z 80k 4k",
            "write -P 3 3M 1M",
            "write -z 3100k 300k",
            "write -c -P 4 5M 2M",
            "write -P 5 5200k 1k",
            "discard 3M 64k",
        ],
    );
    images.qemu_img(&["convert", "-O", "raw", "packed.qcow2", "seen.img"]);
    (path, std::fs::read(images.path("seen.img")).unwrap())
}

const PACKED: [&str; 7] = [
    "compression_type=zlib",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=4k",
    "compression_type=zstd,backing_file=base.img,backing_fmt=raw",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,backing_file=base.img,backing_fmt=raw",
    "extended_l2=on,cluster_size=1M,compression_type=zstd,backing_file=base.img,backing_fmt=raw",
];

#[test]
fn compressed_clusters_and_subclusters_read_as_in_qemu() {
    for options in PACKED {
        let Some(images) = Images::new() else { return };
        let (path, seen) = packed(&images, options);
        let disk = open(&path, ",readonly=on").unwrap();
        let mut client = Client::new(&*disk, 8);
        assert!(client.read(0, seen.len()) == seen, "{options}");
        // In pieces that begin and end anywhere.
        for at in (0..seen.len() - 70_000).step_by(33_333) {
            let at = at / 512 * 512;
            assert!(client.read(at as u64, 69_632) == seen[at..at + 69_632], "{options}, {at}");
        }
    }
}

/// A few sectors at every multiple of `step`.
fn write_here_and_there(disk: &dyn Disk, step: usize, seen: &mut [u8]) {
    for at in (0..seen.len()).step_by(step) {
        let data = pattern(3, at as u64, 1536);
        Client::new(disk, 4).write(at as u64, &data);
        seen[at..at + data.len()].copy_from_slice(&data);
    }
}

/// To qemu-img an image is right, and this is what it holds.
fn holds(images: &Images, path: &Path, seen: &[u8]) {
    images.check(path);
    std::fs::write(images.path("seen.img"), seen).unwrap();
    images.qemu_img(&["compare", "-F", "raw", path.to_str().unwrap(), "seen.img"]);
}

#[test]
fn an_overlay_copies_from_compressed_clusters_and_subclusters() {
    for options in PACKED {
        let Some(images) = Images::new() else { return };
        let (_, mut seen) = packed(&images, options);
        let overlay = images.create(
            "overlay.qcow2",
            "cluster_size=64k,backing_file=packed.qcow2,backing_fmt=qcow2",
            "8M",
        );
        let disk = open(&overlay, "").unwrap();
        write_here_and_there(&*disk, 300 << 10, &mut seen);
        assert!(Client::new(&*disk, 8).read(0, seen.len()) == seen, "{options}");
        drop(disk);
        holds(&images, &overlay, &seen);
    }
}

#[test]
fn a_backing_file_of_smaller_clusters_is_seen_where_it_begins_in_the_middle_of_a_larger_one() {
    let Some(images) = Images::new() else { return };
    let mut seen = pattern(1, 0, 1 << 20);
    std::fs::write(images.path("base.img"), &seen).unwrap();
    let middle = images.create("middle.qcow2", "cluster_size=4k,backing_file=base.img,backing_fmt=raw", "1M");
    let data = pattern(2, 72 << 10, 4096);
    Client::new(&*open(&middle, "").unwrap(), 1).write(72 << 10, &data);
    seen[72 << 10..76 << 10].copy_from_slice(&data);
    let top = images.create("top.qcow2", "backing_file=middle.qcow2,backing_fmt=qcow2", "1M");
    let disk = open(&top, "").unwrap();
    let mut client = Client::new(&*disk, 1);
    for at in (0..1 << 20).step_by(64 << 10) {
        assert!(client.read(at as u64, 64 << 10) == seen[at..at + (64 << 10)], "{at:#x}");
    }
}

#[test]
fn what_is_written_over_zstd_is_not_compressed_and_the_rest_stays() {
    let Some(images) = Images::new() else { return };
    for options in PACKED.iter().filter(|options| !options.contains("extended")) {
        let (path, mut seen) = packed(&images, options);
        let disk = open(&path, "").unwrap();
        write_here_and_there(&*disk, 150 << 10, &mut seen);
        drop(disk);
        holds(&images, &path, &seen);
    }
}

#[test]
fn a_damaged_compressed_cluster_is_an_error_and_the_others_are_not() {
    let Some(images) = Images::new() else { return };
    for options in ["compression_type=zlib", "compression_type=zstd"] {
        let (path, seen) = packed(&images, options);
        // 64 KiB clusters: the entry of the one at 6M, in the only L2 table.
        let l1 = u64::from_be_bytes(bytes(&path, 40, 8).try_into().unwrap());
        let l2 = u64::from_be_bytes(bytes(&path, l1, 8).try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
        let entry = u64::from_be_bytes(bytes(&path, l2 + 96 * 8, 8).try_into().unwrap());
        assert_ne!(entry & 1 << 62, 0, "it is compressed");
        patch(&path, entry & 0x003f_ffff_ffff_ffff, &[0xff; 4]);
        let disk = open(&path, ",readonly=on").unwrap();
        let mut client = Client::new(&*disk, 1);
        let mut memory = Memory::new(4096, 0, 0);
        let read = client.read_into(6 << 20, &mut memory, &[4096]);
        assert_eq!(read.map_err(|error| error.errno), Err(libc::EIO), "{options}");
        assert!(client.read(5 << 20, 1 << 20) == seen[5 << 20..6 << 20], "{options}");
    }
}

#[test]
fn a_dirty_or_corrupt_image_may_be_read_and_not_written() {
    let Some(images) = Images::new() else { return };
    for (bit, word) in [(1, "dirty"), (2, "corrupt")] {
        let path = images.create("disk.qcow2", "", "1M");
        patch(&path, 79, &[bit]);
        refused(&path, "", &[word, "repair"]);
        let disk = open(&path, ",readonly=on").unwrap();
        assert_eq!(Client::new(&*disk, 1).read(0, 4096), vec![0; 4096]);
        drop(disk);
        assert_eq!(bytes(&path, 79, 1), [bit], "nobody has changed it");
    }
}

#[test]
fn bitmaps_are_out_of_date_once_an_image_is_open_for_writing() {
    let Some(images) = Images::new() else { return };
    let path = images.create("disk.qcow2", "", "1M");
    images.qemu_img(&["bitmap", "--add", "disk.qcow2", "b0"]);
    assert_eq!(bytes(&path, 95, 1), [1]);
    drop(open(&path, ",readonly=on").unwrap());
    assert_eq!(bytes(&path, 95, 1), [1], "nobody wrote");
    write_and_read(&*open(&path, "").unwrap());
    // What they take up is still counted; QEMU calls that leaks.
    assert_eq!(bytes(&path, 95, 1), [0]);
    images.qemu_img(&["check", "-q", "-r", "leaks", "disk.qcow2"]);
    images.check(&path);
}

#[test]
fn a_raw_external_data_file_stays_one() {
    let Some(images) = Images::new() else { return };
    let path = images.create("disk.qcow2", "data_file=data.img,data_file_raw=on", "4M");
    let disk = open(&path, "").unwrap();
    write_and_read(&*disk);
    drop(disk);
    assert_eq!(bytes(&path, 95, 1), [2]);
    images.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "data.img", "disk.qcow2"]);
}

#[test]
fn a_chain_of_64_backing_files_works() {
    let Some(images) = Images::new() else { return };
    let data = pattern(3, 0, 1 << 20);
    std::fs::write(images.path("base.img"), &data).unwrap();
    let mut backing = "backing_file=base.img,backing_fmt=raw".to_owned();
    let mut model = data;
    for n in 0..64 {
        let name = format!("{n}.qcow2");
        let path = images.create(&name, &format!("{backing},cluster_size=4k"), "1M");
        if n % 4 == 0 {
            let piece = pattern(n, 0, 4096);
            Client::new(&*open(&path, "").unwrap(), 1).write(n * 16384, &piece);
            model[n as usize * 16384..][..4096].copy_from_slice(&piece);
        }
        backing = format!("backing_file={name},backing_fmt=qcow2");
    }
    let disk = open(&images.path("63.qcow2"), "").unwrap();
    assert!(Client::new(&*disk, 8).read(0, 1 << 20) == model);
    write_and_read(&*disk);
    let in_memory = counter(&*disk, "metadata bytes in memory");
    assert!(in_memory < 4 << 20, "{in_memory} bytes of metadata");
}

#[test]
fn sixty_four_tebibytes_and_256_disks_take_bounded_memory_and_few_threads() {
    let Some(images) = Images::new() else { return };
    let path = images.create("huge.qcow2", "", "64T");
    let disk = open(&path, "").unwrap();
    let capacity = disk.info().capacity;
    assert_eq!(capacity, 64 << 40);
    let mut client = Client::new(&*disk, 4);
    for n in 0..400u64 {
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (capacity / 4096 - 1) * 4096;
        client.write(at, &pattern(n, at, 4096));
    }
    client.write(capacity - 4096, &[5; 4096]);
    assert!(counter(&*disk, "mapping table bytes") < 40 << 20);
    assert!(counter(&*disk, "metadata bytes in memory") < 100 << 20, "{:?}", disk.counters());
    drop(client);
    drop(disk);
    images.check(&path);

    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let disks: Vec<_> = (0..256)
        .map(|n| open(&images.create(&format!("{n}.qcow2"), "", "1M"), ",aio=io_uring").unwrap())
        .collect();
    for disk in &disks {
        write_and_read(&**disk);
    }
    // Other tests' threads come and go beside these.
    assert!(threads() < before + 128, "{} threads for 256 disks", threads() - before);
}

/// In the middle of a cluster, which stays; with versions of the format that can zero clusters and that cannot.
#[test]
fn what_was_cut_off_does_not_come_back_when_an_image_grows_again() {
    let Some(images) = Images::new() else { return };
    for options in ["", "compat=0.10", "data_file=data.img"] {
        let path = images.create("d.qcow2", options, "1M");
        Client::new(&*open(&path, "").unwrap(), 1).write(0, &pattern(1, 0, 1 << 20));
        for size in [100_352, 1 << 20] {
            resize(&path, Some(Format::Qcow2), NewSize::To(size), true, Preallocation::Off).unwrap();
        }
        let held = Client::new(&*open(&path, "").unwrap(), 1).read(0, 1 << 20);
        assert!(held[..100_352] == pattern(1, 0, 100_352), "{options}");
        assert!(held[100_352..].iter().all(|byte| *byte == 0), "{options}");
        images.check(&path);
    }
}

#[test]
fn hostile_entries_end_in_errors_and_never_touch_the_header() {
    let Some(images) = Images::new() else { return };
    let path = images.create("disk.qcow2", "", "1M");
    Client::new(&*open(&path, "").unwrap(), 1).write(0, &[1; 4096]);
    let at = |path: &Path, offset| u64::from_be_bytes(bytes(path, offset, 8).try_into().unwrap());
    let l1 = at(&path, 40);
    let l2 = at(&path, l1) & 0x00ff_ffff_ffff_fe00;
    let refcount_table = at(&path, 48);
    let block = at(&path, refcount_table);
    let header = bytes(&path, 0, 512);
    let copied = 1u64 << 63;
    let original = std::fs::read(&path).unwrap();
    // A cluster that is the header, the L1 table, the refcount block, the L2 table; far beyond the end; unaligned.
    for entry in
        [copied | 0x200, copied | l1, copied | block, copied | l2, copied | 1 << 50, copied | 0x12200]
    {
        std::fs::write(&path, &original).unwrap();
        patch(&path, l2, &entry.to_be_bytes());
        let disk = open(&path, "").unwrap();
        let mut client = Client::new(&*disk, 1);
        let mut memory = Memory::holding(&[0xee; 4096], 0);
        let written = client.write_from(0, &mut memory, &[4096], RequestFlags::NONE);
        assert!(written.is_err(), "{entry:#x}");
        drop(client);
        drop(disk);
        assert_eq!(bytes(&path, 0, 512), header, "{entry:#x}");
        assert_eq!(at(&path, l2), entry, "{entry:#x}");
    }
    // Nothing is counted: the first cluster that looks free is the header.
    std::fs::write(&path, &original).unwrap();
    patch(&path, block, &[0; 65536]);
    let disk = open(&path, "").unwrap();
    let mut client = Client::new(&*disk, 1);
    let mut memory = Memory::holding(&[0xee; 4096], 0);
    let written = client.write_from(512 << 10, &mut memory, &[4096], RequestFlags::NONE);
    assert!(written.is_err());
    drop(client);
    drop(disk);
    assert_eq!(bytes(&path, 0, 512), header);
}
