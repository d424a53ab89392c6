//! Options of `ringpair img` that several of its commands have, each seen to do something.

mod program;
use program::{Folder, Served, contents, fail, img_json as json, ringpair, succeed};
use std::fs;

/// A qcow2 image of 4 MiB with data in it, on a raw backing file of the same size.
fn overlay(folder: &Folder) -> String {
    let base = folder.write("base.img", &"b".repeat(4 << 20));
    let (full, image) = (folder.text("full.qcow2"), folder.text("image.qcow2"));
    succeed(&["img", "create", "-f", "qcow2", "-b", &base, "-F", "raw", &image]);
    // What differs from the new backing file is copied into the image.
    let data = folder.write("data.img", &"d".repeat(4 << 20));
    succeed(&["img", "convert", "-O", "qcow2", &data, &full]);
    succeed(&["img", "rebase", "-u", "-b", &full, "-F", "qcow2", &image]);
    succeed(&["img", "rebase", "-b", &base, "-F", "raw", &image]);
    image
}

#[test]
fn a_format_that_is_said_is_believed() {
    let folder = Folder::new();
    let image = overlay(&folder);
    let length = contents(image.as_ref()).len() as u64;
    let info = json(&["info", "-f", "raw", "--output", "json", &image]);
    assert_eq!(
        (&info["format"], &info["virtual-size"]),
        (&"raw".into(), &length.next_multiple_of(512).into())
    );
    assert_eq!(ringpair(&["img", "check", "-f", "raw", &image]).status.code(), Some(63));
    let map = json(&["map", "-f", "raw", "--output", "json", &image]);
    let mapped = |extent: &serde_json::Value| extent["length"].as_u64().expect("a length");
    let extents = map.as_array().expect("a map");
    assert!(extents.iter().all(|extent| extent["depth"] == 0), "{map}");
    assert_eq!(extents.iter().map(mapped).sum::<u64>(), length.next_multiple_of(512));
    let flat = folder.text("flat.img");
    succeed(&["img", "convert", "-f", "raw", &image, &flat]);
    assert!(contents(flat.as_ref())[..4] == *b"QFI\xfb");
    assert!(fail(1, &["img", "commit", "-f", "raw", &image]).contains("has no backing file"));
    assert!(fail(1, &["img", "rebase", "-f", "raw", "-b", "", &image]).contains("is raw"));
    succeed(&["img", "resize", "-f", "raw", &image, "+1M"]);
    assert_eq!(fs::metadata(&image).expect("a file").len(), length.next_multiple_of(512) + (1 << 20));
    assert_eq!(json(&["info", "--output", "json", &image])["virtual-size"], 4 << 20, "the disk is as it was");
}

#[test]
fn what_may_take_long_shows_how_far_it_is_when_asked_to_and_else_says_nothing() {
    let folder = Folder::new();
    let image = overlay(&folder);
    let run = |arguments: &[&str], progress: bool| {
        let (command, rest) = arguments.split_first().expect("a command");
        let asked: &[&str] = if progress { &["-p"] } else { &[] };
        let output = ringpair(&[&["img", *command], asked, rest].concat());
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{arguments:?}: {said}");
        if progress {
            assert!(said.ends_with("100 %\n"), "{arguments:?}: {said:?}");
        } else {
            assert_eq!(said, "", "{arguments:?}");
        }
    };
    let (target, base) = (folder.text("target.img"), folder.text("base.img"));
    for progress in [true, false] {
        run(&["check", &image], progress);
        run(&["convert", &image, &target], progress);
        run(&["snapshot", "-c", "one", &image], progress);
        run(&["snapshot", "-a", "one", &image], progress);
        run(&["snapshot", "-d", "one", &image], progress);
        run(&["rebase", "-b", &target, "-F", "raw", &image], progress);
        run(&["rebase", "-b", &base, "-F", "raw", &image], progress);
        run(&["commit", "-d", &image], progress);
    }
}

#[test]
fn resize_sets_aside_what_it_is_told_to() {
    let folder = Folder::new();
    let grown = |mode: &str| {
        let image = folder.text(&format!("{mode}.qcow2"));
        succeed(&["img", "create", "-f", "qcow2", &image, "1M"]);
        succeed(&["img", "resize", "--preallocation", mode, &image, "9M"]);
        let clusters = json(&["check", "--output", "json", &image])["allocated-clusters"].as_u64();
        let size = json(&["info", "--output", "json", &image])["actual-size"].as_u64().expect("a size");
        (clusters.unwrap_or(0), size)
    };
    let (off, metadata, falloc, full) = (grown("off"), grown("metadata"), grown("falloc"), grown("full"));
    assert_eq!((off.0, metadata.0, falloc.0, full.0), (0, 128, 128, 128));
    assert!(off.1 < 8 << 20 && metadata.1 < 8 << 20, "{off:?} {metadata:?}");
    assert!(falloc.1 >= 8 << 20 && full.1 >= 8 << 20, "{falloc:?} {full:?}");
    let raw = folder.file("disk.img", 1 << 20);
    for mode in ["metadata", "full"] {
        let error = fail(2, &["img", "resize", "--preallocation", mode, &raw, "9M"]);
        assert!(error.contains("off, falloc"), "{error}");
    }
    assert_eq!(fs::metadata(&raw).expect("a file").len(), 1 << 20);
}

#[test]
fn what_is_preallocated_in_full_is_written_out() {
    let folder = Folder::new();
    let data = |mode: &str| {
        let image = folder.text(&format!("{mode}.img"));
        succeed(&["img", "create", "-o", &format!("preallocation={mode}"), &image, "8M"]);
        let map = json(&["map", "--output", "json", &image]);
        let data = |extent: &&serde_json::Value| extent["data"] == true;
        let extents = map.as_array().expect("a map").iter().filter(data);
        extents.map(|extent| extent["length"].as_u64().expect("a length")).sum::<u64>()
    };
    // Of what is only set aside, a file system may write out a few blocks.
    assert!(data("off") == 0 && data("falloc") < 1 << 20 && data("full") == 8 << 20);
}

#[test]
fn an_image_in_use_can_be_looked_at_when_that_is_asked_for() {
    let folder = Folder::new();
    let (image, socket) = (overlay(&folder), folder.text("socket"));
    let served = Served::start(&["--socket", &socket, &image]);
    for command in ["info", "check", "map", "snapshot"] {
        let error = fail(1, &["img", command, &image]);
        assert!(error.contains("another process"), "{command}: {error}");
        for asked in ["-U", "--force-share"] {
            succeed(&["img", command, asked, &image]);
        }
    }
    let changes = fail(2, &["img", "check", "-U", "-r", "leaks", &image]);
    assert!(changes.contains("cannot be used with"), "{changes}");
    for change in ["-c", "-a", "-d"] {
        let changes = fail(2, &["img", "snapshot", "-U", change, "one", &image]);
        assert!(changes.contains("cannot be used with"), "{changes}");
    }
    drop(served);
}
