//! Checks and snapshots against qemu-img's, on images that qemu-img and qemu-io made.

use super::*;
use fixtures::{QemuImg, qemu_img_or_skip};
use proptest::prelude::*;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Options of images that can all be made, with data in them.
const SHAPES: &[&str] = &[
    "cluster_size=65536",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=4096,refcount_bits=2",
    "cluster_size=2M,refcount_bits=8",
    "compat=0.10",
    "lazy_refcounts=on",
    "extended_l2=on,cluster_size=65536",
    "preallocation=metadata",
    "compression_type=zstd",
];

/// Whether refcounts are of one or two bits.
fn narrow(shape: &str) -> bool {
    shape.ends_with("refcount_bits=1") || shape.ends_with("refcount_bits=2")
}

struct Folder {
    folder: TempDir,
    qemu: &'static QemuImg,
}

impl Folder {
    fn new() -> Option<Self> {
        let qemu = qemu_img_or_skip()?;
        Some(Self { folder: TempDir::new().unwrap(), qemu })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An image of 8 MiB with data, zeroes, holes, and a compressed cluster.
    fn image(&self, options: &str) -> String {
        let path = self.text("image.qcow2");
        self.qemu.ok(&["create", "-q", "-f", "qcow2", "-o", options, &path, "8M"]);
        self.qemu.io(&path, "qcow2", &["write -P 1 0 300k", "write -P 2 5M 64k", "write -z 1M 256k"]);
        // Compressed clusters share a cluster of the file, more of them than narrow refcounts count.
        // Nor does QEMU compress over what is allocated.
        if !narrow(options) && !options.contains("preallocation") {
            self.qemu.io(&path, "qcow2", &["write -c -P 3 6M 2M"]);
        }
        self.qemu.io(&path, "qcow2", &["write -P 4 128k 1000"]);
        path
    }

    /// What qemu-img and ours say about an image.
    fn both(&self, path: &str) -> (Value, CheckReport) {
        let theirs = self.qemu.json("check", &["-f", "qcow2", path]);
        (theirs, look(path))
    }

    fn snapshots(&self, path: &str) -> Vec<String> {
        let info = self.qemu.json("info", &["-f", "qcow2", path]);
        let names = info["snapshots"].as_array().cloned().unwrap_or_default();
        names.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
    }

    /// All of the disk, or of a snapshot.
    fn contents(&self, path: &str, snapshot: Option<&str>) -> Vec<u8> {
        let raw = self.text("contents.raw");
        let _ = fs::remove_file(&raw);
        let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
        let name = snapshot.map(|snapshot| format!("snapshot.name={snapshot}"));
        if let Some(name) = &name {
            arguments.extend(["-l", name]);
        }
        self.qemu.ok(&[&arguments[..], &[path, &raw]].concat());
        fs::read(raw).unwrap()
    }

    fn clean(&self, path: &str) {
        let output = self.qemu.run(&["check", "-q", "-f", "qcow2", path]);
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn open(path: impl AsRef<Path>) -> Image {
    Image::open(OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
}

fn look(path: impl AsRef<Path>) -> CheckReport {
    mend(path, Repair::Nothing)
}

fn mend(path: impl AsRef<Path>, repair: Repair) -> CheckReport {
    check(&mut open(path), repair, &mut |_, _| {}).unwrap()
}

fn number(json: &Value, key: &str) -> u64 {
    json[key].as_u64().unwrap_or(0)
}

fn agree(theirs: &Value, ours: &CheckReport, context: &str) {
    assert_eq!(number(theirs, "corruptions"), ours.corruptions, "{context}: {:?}", ours.findings);
    assert_eq!(number(theirs, "leaks"), ours.leaks, "{context}: {:?}", ours.findings);
    for (key, value) in [
        ("image-end-offset", ours.image_end_offset),
        ("total-clusters", ours.total_clusters),
        ("allocated-clusters", ours.allocated_clusters),
        ("fragmented-clusters", ours.fragmented_clusters),
        ("compressed-clusters", ours.compressed_clusters),
    ] {
        assert_eq!(number(theirs, key), value, "{context}: {key}");
    }
}

#[test]
fn check_says_what_qemu_img_says_of_images_in_every_shape() {
    for shape in SHAPES {
        let Some(folder) = Folder::new() else { return };
        let path = folder.image(shape);
        let (theirs, ours) = folder.both(&path);
        agree(&theirs, &ours, shape);
        assert!(ours.is_clean(), "{shape}: {:?}", ours.findings);
    }
}

#[test]
fn check_follows_snapshots_and_bitmaps() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("cluster_size=4096");
    folder.qemu.ok(&["snapshot", "-c", "one", &path]);
    folder.qemu.io(&path, "qcow2", &["write -P 9 0 1M"]);
    folder.qemu.ok(&["snapshot", "-c", "two", &path]);
    folder.qemu.ok(&["bitmap", "--add", "-g", "512", &path, "changes"]);
    folder.qemu.io(&path, "qcow2", &["write -P 8 2M 1M"]);
    let (theirs, ours) = folder.both(&path);
    agree(&theirs, &ours, "snapshots and a bitmap");
    assert!(ours.is_clean() && ours.allocated_clusters > 0, "{:?}", ours.findings);
    assert_eq!(open(&path).bitmaps().unwrap()[0].name, "changes");
}

#[test]
fn a_leak_is_freed_by_r_leaks_and_nothing_else_is() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("cluster_size=65536");
    let before = folder.contents(&path, None);
    // The file ends with leaked clusters: refcounts of one for clusters that nobody refers to.
    let image = open(&path);
    let end = image.file_clusters();
    let mut refcounts = refcounts::Refcounts::load(&image).unwrap();
    for cluster in end..end + 3 {
        image.write(cluster << 16, &[0xaa; 1 << 16]).unwrap();
        refcounts.change(&image, cluster, 1).unwrap();
    }
    refcounts.flush(&image).unwrap();
    let (theirs, ours) = folder.both(&path);
    agree(&theirs, &ours, "leaks");
    assert_eq!((ours.leaks, ours.corruptions), (3, 0));
    let mended = mend(&path, Repair::Leaks);
    assert_eq!((mended.leaks, mended.leaks_fixed), (0, 3));
    folder.clean(&path);
    assert_eq!(folder.contents(&path, None), before);
}

#[test]
fn refcounts_that_are_too_low_are_raised_by_r_all_and_not_by_r_leaks() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("cluster_size=65536");
    let before = folder.contents(&path, None);
    let image = open(&path);
    let mut refcounts = refcounts::Refcounts::load(&image).unwrap();
    for cluster in 5..8 {
        refcounts.change(&image, cluster, -1).unwrap();
    }
    refcounts.flush(&image).unwrap();
    let (theirs, ours) = folder.both(&path);
    agree(&theirs, &ours, "refcounts too low");
    assert!(ours.corruptions >= 3);
    assert_eq!(mend(&path, Repair::Leaks).corruptions, ours.corruptions);
    let mended = mend(&path, Repair::All);
    assert_eq!((mended.corruptions, mended.corruptions_fixed), (0, ours.corruptions));
    folder.clean(&path);
    assert_eq!(folder.contents(&path, None), before);
}

#[test]
fn lost_refcount_blocks_are_rebuilt() {
    for shape in SHAPES {
        let Some(folder) = Folder::new() else { return };
        let path = folder.image(shape);
        let before = folder.contents(&path, None);
        let table = open(&path).header().refcount_table_offset;
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 512], table).unwrap();
        assert!(look(&path).corruptions > 0, "{shape}");
        let mended = mend(&path, Repair::All);
        assert!(mended.is_clean() && mended.corruptions_fixed > 0, "{shape}: {mended:?}");
        folder.clean(&path);
        assert_eq!(folder.contents(&path, None), before, "{shape}");
    }
}

#[test]
fn a_dirty_image_is_clean_after_r_all() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("lazy_refcounts=on");
    let before = folder.contents(&path, None);
    // Killed with lazy refcounts: the data is there, the refcounts are not.
    open(&path).set_dirty(true).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let table = open(&path).header().refcount_table_offset;
    file.write_all_at(&[0; 512], table).unwrap();
    assert!(open(&path).header().unsupported().unwrap().to_string().contains("check -r all"));
    assert!(mend(&path, Repair::All).is_clean());
    assert_eq!(open(&path).header().unsupported(), None);
    folder.clean(&path);
    assert_eq!(folder.contents(&path, None), before);
}

#[test]
fn snapshots_are_taken_gone_back_to_and_deleted() {
    let usable = |shape: &&&str| !narrow(shape) && !shape.contains("extended");
    for shape in SHAPES.iter().filter(usable) {
        let Some(folder) = Folder::new() else { return };
        let path = folder.image(shape);
        let first = folder.contents(&path, None);
        create_snapshot(&mut open(&path), "first", &mut |_, _| {}).unwrap();
        folder.clean(&path);
        folder.qemu.io(&path, "qcow2", &["write -P 7 0 4M"]);
        let second = folder.contents(&path, None);
        create_snapshot(&mut open(&path), "second", &mut |_, _| {}).unwrap();
        folder.qemu.io(&path, "qcow2", &["write -P 6 2M 4M"]);
        assert_eq!(folder.snapshots(&path), ["first", "second"], "{shape}");
        assert_eq!(folder.contents(&path, Some("first")), first, "{shape}");
        assert_eq!(folder.contents(&path, Some("second")), second, "{shape}");

        apply_snapshot(&mut open(&path), "first", &mut |_, _| {}).unwrap();
        folder.clean(&path);
        assert_eq!(folder.contents(&path, None), first, "{shape}");
        // What is written then is not the snapshot's.
        folder.qemu.io(&path, "qcow2", &["write -P 5 0 8M"]);
        assert_eq!(folder.contents(&path, Some("first")), first, "{shape}");

        apply_snapshot(&mut open(&path), "2", &mut |_, _| {}).unwrap();
        delete_snapshot(&mut open(&path), "first", &mut |_, _| {}).unwrap();
        delete_snapshot(&mut open(&path), "second", &mut |_, _| {}).unwrap();
        folder.clean(&path);
        assert_eq!(folder.snapshots(&path), [""; 0], "{shape}");
        assert_eq!(folder.contents(&path, None), second, "{shape}");
        let error = find_snapshot(&open(&path), "first").unwrap_err().to_string();
        assert!(error.contains("`first`") && error.contains("none"), "{error}");
    }
}

#[test]
fn qemu_img_goes_back_to_our_snapshots_and_we_to_its() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("cluster_size=4096");
    let first = folder.contents(&path, None);
    folder.qemu.ok(&["snapshot", "-c", "theirs", &path]);
    create_snapshot(&mut open(&path), "ours", &mut |_, _| {}).unwrap();
    folder.qemu.ok(&["resize", "-q", &path, "16M"]);
    folder.qemu.io(&path, "qcow2", &["write -P 7 0 16M"]);
    let larger = folder.contents(&path, None);
    create_snapshot(&mut open(&path), "larger", &mut |_, _| {}).unwrap();
    apply_snapshot(&mut open(&path), "theirs", &mut |_, _| {}).unwrap();
    assert_eq!(folder.contents(&path, None), first, "the size is the snapshot's too");
    apply_snapshot(&mut open(&path), "larger", &mut |_, _| {}).unwrap();
    assert_eq!(folder.contents(&path, None), larger);
    folder.qemu.ok(&["snapshot", "-a", "ours", &path]);
    folder.qemu.ok(&["snapshot", "-d", "theirs", &path]);
    folder.clean(&path);
    assert_eq!(folder.contents(&path, None), first);
}

#[test]
fn a_refcount_table_that_is_full_grows() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.text("small.qcow2");
    folder.qemu.ok(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", &path, "4M"]);
    // A cluster of table and blocks of 64 refcounts: 2 MiB of file.
    folder.qemu.io(&path, "qcow2", &["write -P 1 0 1850k"]);
    let before = folder.contents(&path, None);
    let table = open(&path).header().refcount_table_offset;
    let mut taken = 0;
    while open(&path).header().refcount_table_offset == table {
        assert!(taken < 200, "it has room still");
        create_snapshot(&mut open(&path), &format!("number {taken}"), &mut |_, _| {}).unwrap();
        taken += 1;
    }
    assert!(taken > 1, "it had no room from the beginning");
    assert!(look(&path).is_clean());
    folder.clean(&path);
    folder.qemu.io(&path, "qcow2", &["write -P 2 0 2M"]);
    folder.clean(&path);
    assert_eq!(folder.contents(&path, Some(&format!("number {}", taken - 1))), before);
}

#[test]
fn a_snapshot_that_refcounts_cannot_count_is_refused_and_changes_nothing() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("refcount_bits=1");
    let before = fs::read(&path).unwrap();
    let error = create_snapshot(&mut open(&path), "one", &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("1 bit"), "{error}");
    folder.clean(&path);
    assert!(look(&path).is_clean());
    let after = fs::read(&path).unwrap();
    // The header may have gained its compression type.
    assert!(before[512..] == after[512..before.len()], "nothing but the header was touched");
}

#[test]
fn images_that_have_no_snapshots_say_why() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.text("external.qcow2");
    let options = format!("data_file={},data_file_raw=on", folder.text("data.raw"));
    folder.qemu.ok(&["create", "-q", "-f", "qcow2", "-o", &options, &path, "1M"]);
    let error = create_snapshot(&mut open(&path), "one", &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("external data file"), "{error}");
    let path = folder.image("cluster_size=65536");
    create_snapshot(&mut open(&path), "one", &mut |_, _| {}).unwrap();
    let error = create_snapshot(&mut open(&path), "one", &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("there is a snapshot `one` already"), "{error}");
}

/// A process that dies between any two writes of a change leaves an image that `check -r all`, ours or QEMU's, makes
/// whole without touching data, and in which the change has happened as a whole or not at all.
#[test]
fn a_kill_between_any_two_writes_costs_no_data() {
    type Operation = fn(&mut Image) -> std::io::Result<()>;
    let operations: [(&str, Operation); 3] = [
        ("create", |image| create_snapshot(image, "new", &mut |_, _| {})),
        ("apply", |image| apply_snapshot(image, "old", &mut |_, _| {})),
        ("delete", |image| delete_snapshot(image, "old", &mut |_, _| {})),
    ];
    for (name, operation) in operations {
        let Some(folder) = Folder::new() else { return };
        let path = folder.image("cluster_size=4096");
        let old = folder.contents(&path, None);
        folder.qemu.ok(&["snapshot", "-c", "old", &path]);
        folder.qemu.io(&path, "qcow2", &["write -P 7 0 1M", "write -z 5M 1M"]);
        let now = folder.contents(&path, None);
        let before = fs::read(&path).unwrap();
        let mut image = open(&path);
        operation(&mut image).unwrap();
        let journal = image.journal.take();
        drop(image);
        folder.clean(&path);
        let mut switched = 0;
        for writes in 0..=journal.len() {
            fs::write(&path, &before).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            for (offset, data) in &journal[..writes] {
                file.write_all_at(data, *offset).unwrap();
            }
            let context = format!("{name}, after {writes} of {} writes", journal.len());
            let mended = mend(&path, Repair::All);
            assert!(mended.is_clean(), "{context}: {mended:?}");
            assert!(look(&path).is_clean(), "{context}");
            let contents = folder.contents(&path, None);
            let applied = name == "apply" && contents == old && contents != now;
            assert!(contents == now || applied, "{context}: the disk has changed");
            let snapshots = folder.snapshots(&path);
            if snapshots.iter().any(|snapshot| snapshot == "old") {
                assert_eq!(folder.contents(&path, Some("old")), old, "{context}");
            }
            if snapshots.iter().any(|snapshot| snapshot == "new") {
                assert_eq!(folder.contents(&path, Some("new")), now, "{context}");
            }
            let changed = applied || snapshots != ["old"];
            assert!(changed || switched == 0, "{context}: gone back");
            switched += usize::from(changed);
            if writes % 7 == 0 {
                folder.clean(&path);
            }
        }
        assert!(switched > 0 && switched < journal.len(), "{name}");
    }
}

#[test]
fn an_image_of_64_tib_takes_little_memory_and_time() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.text("large.qcow2");
    folder.qemu.ok(&["create", "-q", "-f", "qcow2", &path, "64T"]);
    folder.qemu.io(&path, "qcow2", &["write -P 1 0 64k", "write -P 2 32T 64k", "write -P 3 63T 128k"]);
    // And its file is as long as its disk, with nothing in it.
    File::options().write(true).open(&path).unwrap().set_len(1 << 43).unwrap();
    let (theirs, ours) = folder.both(&path);
    agree(&theirs, &ours, "64 TiB");
    assert_eq!(ours.allocated_clusters, 4);
}

/// Every byte of the metadata, one after another.
fn metadata(path: &str) -> Vec<u64> {
    let image = open(path);
    let header = image.header();
    let cluster = header.cluster_size();
    let mut offsets: Vec<u64> = (0..112).collect();
    offsets.extend((0..header.l1_size * 8).map(|at| header.l1_table_offset + u64::from(at)));
    offsets.extend((0..64).map(|at| header.refcount_table_offset + at));
    for entry in image.read_active_l1().unwrap() {
        offsets.extend(entry.l2_table_offset().into_iter().flat_map(|offset| offset..offset + cluster));
    }
    let refcounts = refcounts::Refcounts::load(&image).unwrap();
    let block = refcounts.block_offset(&image, 0).unwrap();
    offsets.extend(block..block + cluster);
    offsets.extend(header.snapshots_offset..header.snapshots_offset + 120);
    offsets
}

#[test]
fn hostile_metadata_is_clean_exactly_where_qemu_img_finds_it_clean() {
    let Some(folder) = Folder::new() else { return };
    let path = folder.image("cluster_size=512,refcount_bits=8");
    folder.qemu.ok(&["snapshot", "-c", "one", &path]);
    folder.qemu.io(&path, "qcow2", &["write -P 7 0 100k"]);
    let whole = fs::read(&path).unwrap();
    let offsets = metadata(&path);
    let changed = folder.text("changed.qcow2");
    let strategy = proptest::collection::vec((0..offsets.len(), any::<u8>()), 1..4);
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    // The failing case, which proptest prints, is its own seed.
    proptest!(config, |(changes in strategy)| {
        let mut bytes = whole.clone();
        for (at, value) in &changes {
            bytes[offsets[*at] as usize] = *value;
        }
        fs::write(&changed, &bytes).unwrap();
        let theirs = folder.qemu.run(&["check", "-f", "qcow2", "--output", "json", &changed]);
        let ours = Image::open(File::open(&changed).unwrap());
        let said = String::from_utf8_lossy(&theirs.stderr);
        let Ok(mut ours) = ours else {
            prop_assert!(!theirs.status.success(), "qemu-img finds it clean, we cannot open it: {:?}", ours.err());
            return Ok(());
        };
        let report = check(&mut ours, Repair::Nothing, &mut |_, _| {}).unwrap();
        match theirs.status.code() {
            Some(0) => prop_assert!(report.is_clean(), "{:?}", report.findings),
            Some(3) => prop_assert!(report.corruptions == 0 && report.leaks > 0, "{:?} {said}", report),
            Some(2) => prop_assert!(report.corruptions > 0, "{:?} {said}", report),
            // It did not open it, or its snapshots; we may still have looked at it.
            _ => {}
        }
        // What is repaired is whole, and what cannot be is said.
        drop(ours);
        let mended = mend(&changed, Repair::All);
        if mended.is_clean() {
            prop_assert!(look(&changed).is_clean());
        }
    });
}
