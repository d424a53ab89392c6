//! `ringpair img` against `qemu-img`: what is said of images that qemu-img made in every way it can, and what qemu-img
//! says of ours.

mod program;
use fixtures::{QemuImg, qemu_img_or_skip, qemu_imgs_or_skip};
use program::{Folder, contents, fail, img_json as json, kill_after, ringpair, succeed};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Options of `qemu-img create`.
const IMAGES: &[&str] = &[
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=64k,refcount_bits=2",
    "cluster_size=64k,refcount_bits=4",
    "cluster_size=64k,refcount_bits=8",
    "cluster_size=64k,refcount_bits=32",
    "cluster_size=2M,refcount_bits=64",
    "compat=0.10",
    "lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "data_file=DATA",
    "data_file=DATA,data_file_raw=on",
    "data_file=DATA,preallocation=metadata",
    "compression_type=zlib",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,compression_type=zstd",
];

/// Both say the same about an image.
fn agree(qemu: &QemuImg, image: &str, context: &str) {
    for command in ["info", "check", "map"] {
        let mut theirs = qemu.json(command, &["-f", "qcow2", image]);
        let mut ours = json(&[command, "--output", "json", "-f", "qcow2", image]);
        // The data file is a child as well; encryption has parameters, which we do not know.
        for json in [&mut theirs, &mut ours] {
            if let Some(object) = json.as_object_mut() {
                object.remove("children");
            }
        }
        assert_eq!(theirs, ours, "{context}: {command}");
    }
}

fn make(qemu: &QemuImg, folder: &Folder, options: &str, size: &str) -> String {
    let image = folder.text("image.qcow2");
    let options = options.replace("DATA", &folder.text("data.raw"));
    qemu.ok(&["create", "-q", "-f", "qcow2", "-o", &options, &image, size]);
    image
}

#[test]
fn info_check_and_map_say_what_qemu_img_says_of_images_of_every_kind() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    for options in IMAGES {
        let folder = Folder::new();
        let image = make(qemu, &folder, options, "9M");
        agree(qemu, &image, options);
        qemu.io(
            &image,
            "qcow2",
            &["write -P 1 0 300k", "write -P 2 3M 1M", "write -z 5M 192k", "write -P 3 5M 4k"],
        );
        let compressible = !options.contains("data_file") && !options.contains("preallocation");
        if compressible && !options.contains("refcount_bits=1") && !options.contains("refcount_bits=2") {
            qemu.io(&image, "qcow2", &["write -c -P 4 6M 2M"]);
        }
        agree(qemu, &image, options);

        let (theirs, ours) = (folder.text("theirs.raw"), folder.text("ours.raw"));
        qemu.ok(&["convert", "-O", "raw", &image, &theirs]);
        succeed(&["img", "convert", &image, &ours]);
        assert!(contents(theirs.as_ref()) == contents(ours.as_ref()), "{options}: other data");
    }
}

#[test]
fn holes_in_the_metadata_of_an_image_with_a_data_file_say_nothing_of_its_data() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let image = make(qemu, &folder, "data_file=DATA", "9M");
    qemu.io(&image, "qcow2", &["write -P 1 0 1M", "write -P 2 3M 64k"]);
    // Then it looks as if it had been preallocated.
    let (sparse, ours) = (folder.text("sparse.qcow2"), folder.text("ours.raw"));
    let copied = Command::new("cp").args(["--sparse=always", &image, &sparse]).status();
    assert!(copied.expect("cp").success());
    agree(qemu, &sparse, "a sparse copy");
    succeed(&["img", "convert", &sparse, &ours]);
    assert!(qemu.ok(&["compare", "-F", "raw", "-f", "qcow2", &sparse, &ours]).contains("identical"));
}

#[test]
fn chains_snapshots_and_bitmaps_are_seen_as_qemu_img_sees_them() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let (base, middle, top) =
        (folder.text("base.img"), folder.text("middle.qcow2"), folder.text("top.qcow2"));
    qemu.ok(&["create", "-q", "-f", "raw", &base, "4M"]);
    qemu.io(&base, "raw", &["write -P 1 0 1M"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", &middle, "6M"]);
    qemu.io(&middle, "qcow2", &["write -P 2 512k 64k", "write -z 0 64k", "write -P 3 5M 64k"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", "-b", &middle, "-F", "qcow2", &top, "8M"]);
    qemu.io(&top, "qcow2", &["write -P 4 1M 64k", "write -P 4 7M 1M"]);
    qemu.ok(&["snapshot", "-c", "one", &top]);
    qemu.ok(&["bitmap", "--add", &top, "changes"]);
    agree(qemu, &top, "a chain");
    agree(qemu, &middle, "the middle of a chain");
    let mut theirs = qemu.json("info", &["--backing-chain", &top]);
    let mut ours = json(&["info", "--backing-chain", "--output", "json", &top]);
    for json in [&mut theirs, &mut ours] {
        let images = json.as_array_mut().expect("a chain");
        assert_eq!(images.len(), 3);
        images.iter_mut().for_each(|image| drop(image.as_object_mut().expect("an image").remove("children")));
    }
    assert_eq!(theirs, ours);
    let text = succeed(&["img", "info", &top]);
    for wanted in
        ["file format: qcow2", "8.00 MiB (8388608 bytes)", "backing file format: qcow2", "changes", "one"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let map = succeed(&["img", "map", &top]);
    assert!(map.contains("base.img") && map.contains("middle.qcow2") && map.contains("0x700000"), "{map}");
    let flat = folder.text("flat.raw");
    succeed(&["img", "convert", &top, &flat]);
    assert!(qemu.ok(&["compare", "-F", "raw", "-f", "qcow2", &top, &flat]).contains("identical"));
}

#[test]
fn encrypted_images_are_shown_and_refused_as_disks() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let image = folder.text("secret.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    qemu.ok(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=key,data=abc",
        "-o",
        options,
        &image,
        "1M",
    ]);
    assert_eq!(json(&["info", "--output", "json", &image])["encrypted"], true);
    succeed(&["img", "check", &image]);
    let error = fail(1, &["img", "convert", &image, &folder.text("x.raw")]);
    assert!(
        error.contains("secret.qcow2: image uses LUKS encryption, which ringpair does not support"),
        "{error}"
    );
}

#[test]
fn images_that_create_makes_are_clean_in_every_qemu_img() {
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=2M,refcount_bits=64",
        "refcount_bits=1",
        "compat=0.10",
        "compat=1.1,lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "data_file=DATA",
        "data_file=DATA,data_file_raw=on",
    ] {
        let folder = Folder::new();
        let image = folder.text("image.qcow2");
        let with_data = options.replace("DATA", &folder.text("data.raw"));
        succeed(&["img", "create", "-f", "qcow2", "-o", &with_data, &image, "9M"]);
        for qemu in qemu_imgs_or_skip() {
            eprintln!("{options:?} in qemu-img {}", qemu.major());
            let info = qemu.json("info", &["-f", "qcow2", &image]);
            let data = &info["format-specific"]["data"];
            assert_eq!(info["virtual-size"], 9 << 20, "{options}");
            for option in with_data.split(',').filter_map(|option| option.split_once('=')) {
                let (found, wanted) = match option.0 {
                    "cluster_size" => {
                        (&info["cluster-size"], if option.1 == "512" { "512" } else { "2097152" })
                    }
                    "refcount_bits" => (&data["refcount-bits"], option.1),
                    "compat" => (&data["compat"], option.1),
                    "lazy_refcounts" => (&data["lazy-refcounts"], "true"),
                    "data_file" => (&data["data-file"], option.1),
                    "data_file_raw" => (&data["data-file-raw"], "true"),
                    _ => continue,
                };
                assert_eq!(found.to_string().trim_matches('"'), wanted, "{options}");
            }
            qemu.ok(&["check", "-q", "-f", "qcow2", &image]);
            qemu.io(
                &image,
                "qcow2",
                &["read -P 0 0 9M", "write -P 7 1M 1M", "read -P 7 1M 1M", "write -z 1M 1M"],
            );
            qemu.ok(&["check", "-q", "-f", "qcow2", &image]);
        }
    }
}

#[test]
fn preallocation_sets_aside_what_it_says() {
    let folder = Folder::new();
    let made = |mode: &str, format: &str| {
        let image = folder.text(&format!("{mode}.{format}"));
        succeed(&["img", "create", "-f", format, "-o", &format!("preallocation={mode}"), &image, "8M"]);
        let info = json(&["info", "--output", "json", &image]);
        let check = json(&["check", "--output", "json", &image]);
        (info["actual-size"].as_u64().expect("a size"), check["allocated-clusters"].as_u64().unwrap_or(0))
    };
    let raw = |mode: &str| {
        let image = folder.text(&format!("{mode}.img"));
        succeed(&["img", "create", "-o", &format!("preallocation={mode}"), &image, "8M"]);
        json(&["info", "--output", "json", &image])["actual-size"].as_u64().expect("a size")
    };
    let (off, metadata, falloc) = (made("off", "qcow2"), made("metadata", "qcow2"), made("falloc", "qcow2"));
    assert_eq!((off.1, metadata.1, falloc.1), (0, 128, 128));
    assert!(metadata.0 < 8 << 20 && falloc.0 >= 8 << 20, "{metadata:?} {falloc:?}");
    assert!(made("full", "qcow2").0 >= 8 << 20);
    assert!(raw("off") < 8 << 20 && raw("falloc") >= 8 << 20 && raw("full") >= 8 << 20);
    assert!(
        fail(2, &["img", "create", "-o", "preallocation=metadata", &folder.text("x"), "1M"])
            .contains("falloc")
    );
}

#[test]
fn an_overlay_is_as_large_as_its_backing_file_which_has_to_be_there() {
    let folder = Folder::new();
    let (base, overlay) = (folder.file("base.img", 5 << 20), folder.text("overlay.qcow2"));
    succeed(&["img", "create", "-f", "qcow2", "-b", "base.img", "-F", "raw", &overlay]);
    let info = json(&["info", "--output", "json", &overlay]);
    assert_eq!(info["virtual-size"], 5 << 20);
    assert_eq!(info["backing-filename"], "base.img");
    assert_eq!(info["full-backing-filename"], base.as_str());
    assert_eq!(info["backing-filename-format"], "raw");
    let create = ["img", "create", "-f", "qcow2", &overlay, "1M"];
    let error = fail(1, &[&create[..], &["-b", "none.img", "-F", "raw"]].concat());
    assert!(error.contains("none.img"), "{error}");
    succeed(&[&create[..], &["-b", "none.img", "-F", "raw", "-u"]].concat());
    let error = fail(2, &[&create[..], &["-b", "base.img"]].concat());
    assert!(error.contains("-F raw"), "{error}");
    succeed(&[&create[..], &["-o", "backing_file=base.img,backing_fmt=raw"]].concat());
    assert_eq!(json(&["info", "--output", "json", &overlay])["virtual-size"], 1 << 20);
}

#[test]
fn convert_copies_data_and_leaves_zeroes_out() {
    let folder = Folder::new();
    let mut data = vec![0u8; 6 << 20];
    data[1 << 20..(1 << 20) + 5000].fill(7);
    data[(4 << 20) + 100] = 9;
    fs::write(folder.path("source.img"), &data).expect("a file");
    let (source, image, back) =
        (folder.text("source.img"), folder.text("image.qcow2"), folder.text("back.img"));
    succeed(&["img", "convert", "-O", "qcow2", "-o", "cluster_size=4k", &source, &image]);
    let check = json(&["check", "--output", "json", &image]);
    assert_eq!(check["allocated-clusters"], 3);
    succeed(&["img", "convert", "-f", "qcow2", "-O", "raw", &image, &back]);
    assert!(contents(back.as_ref()) == data);
    let size =
        |path: &str| json(&["info", "--output", "json", path])["actual-size"].as_u64().expect("a size");
    assert!(size(&back) < 1 << 20);
    // Written out, or only where so much together is zero.
    succeed(&["img", "convert", "-S", "0", &image, &back]);
    assert!(contents(back.as_ref()) == data && size(&back) >= 6 << 20);
    succeed(&["img", "convert", "-S", "1M", &source, &back]);
    assert!(contents(back.as_ref()) == data && (2 << 20..5 << 20).contains(&size(&back)), "{}", size(&back));
    // As another format, its bytes are data.
    succeed(&["img", "convert", "-f", "raw", &image, &back]);
    assert!(contents(back.as_ref()) == contents(image.as_ref()));
    let error = fail(1, &["img", "convert", &image, &image]);
    assert!(error.contains("is the source as well"), "{error}");
    // A raw data file is what a raw image would be, and the image says so.
    let options = format!("data_file={},data_file_raw=on", folder.text("data.img"));
    succeed(&["img", "convert", "-O", "qcow2", "-o", &options, &source, &image]);
    assert!(contents(&folder.path("data.img")) == data);
    let info = json(&["info", "--output", "json", &image]);
    assert_eq!(info["format-specific"]["data"]["data-file-raw"], true);
}

#[test]
fn long_work_shows_how_far_it_is_when_asked_to() {
    let folder = Folder::new();
    let (source, target) = (folder.write("source.img", &"x".repeat(64 << 20)), folder.text("target.qcow2"));
    let convert = |more: &[&str]| {
        let output = ringpair(&[&["img", "convert", "-O", "qcow2"], more, &[&source, &target]].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    assert!(convert(&["-p"]).ends_with("90 %\n100 %\n"));
    assert_eq!(convert(&[]), "");
}

#[test]
fn resize_grows_and_shrinks_only_when_told_to() {
    let folder = Folder::new();
    for format in ["raw", "qcow2"] {
        let image = folder.text(&format!("image.{format}"));
        succeed(&["img", "create", "-f", format, &image, "4M"]);
        let size = || json(&["info", "--output", "json", &image])["virtual-size"].as_u64().expect("a size");
        succeed(&["img", "resize", &image, "6M"]);
        assert_eq!(size(), 6 << 20);
        succeed(&["img", "resize", &image, "+2M"]);
        assert_eq!(size(), 8 << 20);
        let error = fail(1, &["img", "resize", &image, "-5M"]);
        assert!(error.contains("--shrink") && size() == 8 << 20, "{error}");
        succeed(&["img", "resize", "--shrink", &image, "-5M"]);
        assert_eq!(size(), 3 << 20);
        let error = fail(1, &["img", "resize", "--shrink", &image, "-5M"]);
        assert!(error.contains("3145728"), "{error}");
        succeed(&["img", "resize", "--preallocation", "falloc", &image, "16M"]);
        let info = json(&["info", "--output", "json", &image]);
        assert!(info["actual-size"].as_u64().expect("a size") >= 13 << 20, "{info}");
        assert!(fail(2, &["img", "resize", &image, "big"]).contains("10G"));
        if let Some(qemu) = qemu_img_or_skip().filter(|_| format == "qcow2") {
            qemu.ok(&["check", "-q", &image]);
        }
    }
}

#[test]
fn what_grows_over_a_longer_backing_file_reads_as_zeroes() {
    let folder = Folder::new();
    let base = folder.write("base.img", &"b".repeat(1 << 20));
    let (image, flat) = (folder.text("image.qcow2"), folder.text("flat.img"));
    succeed(&["img", "create", "-f", "qcow2", "-b", &base, "-F", "raw", &image, "512k"]);
    succeed(&["img", "resize", &image, "1M"]);
    succeed(&["img", "convert", &image, &flat]);
    let data = contents(flat.as_ref());
    assert!(data[..512 << 10].iter().all(|b| *b == b'b') && data[512 << 10..].iter().all(|b| *b == 0));
}

#[test]
fn commit_puts_changes_into_the_backing_file() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    for base_format in ["raw", "qcow2"] {
        let folder = Folder::new();
        let (base, top, flat) = (folder.text("base"), folder.text("top.qcow2"), folder.text("flat.img"));
        qemu.ok(&["create", "-q", "-f", base_format, &base, "4M"]);
        qemu.io(&base, base_format, &["write -P 1 0 2M"]);
        qemu.ok(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", base_format, &top, "6M"]);
        qemu.io(&top, "qcow2", &["write -P 2 1M 1M", "write -z 0 64k", "write -P 3 5M 64k"]);
        succeed(&["img", "convert", &top, &flat]);
        succeed(&["img", "commit", "-d", &top]);
        assert!(qemu.ok(&["compare", "-f", base_format, "-F", "raw", &base, &flat]).contains("identical"));
        assert!(json(&["check", "--output", "json", &top])["allocated-clusters"].as_u64() > Some(0));
        succeed(&["img", "commit", &top]);
        assert!(qemu.ok(&["compare", "-f", base_format, "-F", "raw", &base, &flat]).contains("identical"));
        assert_eq!(json(&["check", "--output", "json", &top])["allocated-clusters"], Value::Null);
        assert!(qemu.ok(&["compare", "-f", "qcow2", "-F", "raw", &top, &flat]).contains("identical"));
        qemu.ok(&["check", "-q", &top]);
        let error = fail(1, &["img", "commit", &base, "-f", base_format]);
        assert!(error.contains("has no backing file"), "{error}");
    }
}

#[test]
fn a_commit_that_is_killed_at_any_moment_loses_nothing_and_can_be_done_again() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let (base, top, flat) = (folder.text("base.qcow2"), folder.text("top.qcow2"), folder.text("flat.img"));
    qemu.ok(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", &base, "64M"]);
    qemu.io(&base, "qcow2", &["write -P 1 0 8M"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top]);
    qemu.io(&top, "qcow2", &["write -P 2 4M 40M", "write -z 50M 4M"]);
    succeed(&["img", "convert", &top, &flat]);
    let kept = folder.text("kept.qcow2");
    fs::copy(&base, &kept).expect("copied");
    let mut killed = 0;
    for delay in (0..60).step_by(5) {
        fs::copy(&kept, &base).expect("copied");
        let delay = Duration::from_millis(delay);
        killed += u32::from(kill_after(delay, &["img", "commit", "-d", &top]));
        succeed(&["img", "check", "-r", "all", &base]);
        qemu.ok(&["check", "-q", "-f", "qcow2", &base]);
        succeed(&["img", "commit", "-d", &top]);
        qemu.ok(&["check", "-q", "-f", "qcow2", &base]);
        assert!(
            qemu.ok(&["compare", "-f", "qcow2", "-F", "raw", &base, &flat]).contains("identical"),
            "{delay:?}"
        );
    }
    assert!(killed > 0, "it was over each time");
}

#[test]
fn rebase_keeps_contents_unless_only_the_name_is_to_change() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let (old, new) = (folder.text("old.img"), folder.text("new.qcow2"));
    let (top, flat) = (folder.text("top.qcow2"), folder.text("flat.img"));
    qemu.ok(&["create", "-q", "-f", "raw", &old, "4M"]);
    qemu.io(&old, "raw", &["write -P 1 0 2M"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", &new, "3M"]);
    qemu.io(&new, "qcow2", &["write -P 1 0 1M", "write -P 5 2M 1M"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", "-b", &old, "-F", "raw", &top]);
    qemu.io(&top, "qcow2", &["write -P 2 512k 64k"]);
    succeed(&["img", "convert", &top, &flat]);
    let same = || qemu.ok(&["compare", "-f", "qcow2", "-F", "raw", &top, &flat]).contains("identical");
    succeed(&["img", "rebase", "-b", "new.qcow2", "-F", "qcow2", &top]);
    let info = json(&["info", "--output", "json", &top]);
    assert_eq!(
        (&info["backing-filename"], &info["backing-filename-format"]),
        (&"new.qcow2".into(), &"qcow2".into())
    );
    assert!(same());
    // What both have alike was not copied.
    assert!(json(&["check", "--output", "json", &top])["allocated-clusters"].as_u64() < Some(64));
    succeed(&["img", "rebase", "-b", "", &top]);
    assert!(same() && json(&["info", "--output", "json", &top])["backing-filename"].is_null());
    qemu.ok(&["check", "-q", &top]);

    let overlay = folder.text("overlay.qcow2");
    succeed(&["img", "create", "-f", "qcow2", "-b", "moved.img", "-F", "raw", "-u", &overlay, "4M"]);
    let error = fail(1, &["img", "rebase", "-b", "old.img", "-F", "raw", &overlay]);
    assert!(error.contains("moved.img"), "{error}");
    succeed(&["img", "rebase", "-u", "-b", "old.img", "-F", "raw", &overlay]);
    assert!(qemu.ok(&["compare", "-f", "qcow2", "-F", "raw", &overlay, &old]).contains("identical"));
    assert!(fail(2, &["img", "rebase", "-b", "old.img", &overlay]).contains("-F raw"));
    assert!(fail(1, &["img", "rebase", "-b", "top.qcow2", "-F", "qcow2", &top]).contains("top.qcow2"));
    assert!(fail(1, &["img", "rebase", "-b", "x", "-F", "raw", &old]).contains("is raw"));
}

#[test]
fn snapshots_are_taken_listed_applied_and_deleted() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let (image, first) = (folder.text("image.qcow2"), folder.text("first.img"));
    succeed(&["img", "create", "-f", "qcow2", &image, "4M"]);
    qemu.io(&image, "qcow2", &["write -P 1 0 2M"]);
    succeed(&["img", "convert", &image, &first]);
    succeed(&["img", "snapshot", "-c", "first", &image]);
    qemu.io(&image, "qcow2", &["write -P 2 1M 2M"]);
    let list = succeed(&["img", "snapshot", "-l", &image]);
    assert!(list.contains("first") && list.contains("taken"), "{list}");
    let list = json(&["snapshot", "--output", "json", &image]);
    assert_eq!((&list[0]["name"], &list[0]["id"]), (&"first".into(), &"1".into()));
    assert_eq!(qemu.json("info", &[&image])["snapshots"], list);
    succeed(&["img", "snapshot", "-a", "first", &image]);
    assert!(qemu.ok(&["compare", "-F", "raw", &image, &first]).contains("identical"));
    succeed(&["img", "snapshot", "-d", "first", &image]);
    assert_eq!(json(&["snapshot", "--output", "json", &image]), Value::Array(Vec::new()));
    qemu.ok(&["check", "-q", &image]);
    let error = fail(1, &["img", "snapshot", "-a", "first", &image]);
    assert!(error.contains("image.qcow2") && error.contains("`first`"), "{error}");
    assert!(fail(1, &["img", "snapshot", "-l", &first]).contains("has no snapshots"));
    assert!(fail(2, &["img", "snapshot", "-l", "-d", "x", &image]).contains("cannot be used with"));
}

#[test]
fn check_ends_with_qemu_imgs_statuses_and_repairs_what_it_is_told_to() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let image = make(qemu, &folder, "cluster_size=64k", "4M");
    qemu.io(&image, "qcow2", &["write -P 1 0 1M"]);
    let status =
        |arguments: &[&str]| ringpair(&[&["img", "check"], arguments, &[&image]].concat()).status.code();
    let set_refcount = |cluster: usize, value: u8| {
        let mut bytes = fs::read(&image).expect("a file");
        // Of a new image, the first refcount block is the third cluster.
        bytes[(2 << 16) + cluster * 2 + 1] = value;
        fs::write(&image, bytes).expect("a file");
    };
    assert_eq!(status(&[]), Some(0));
    set_refcount(8, 2);
    assert_eq!(status(&[]), Some(2), "a COPIED flag no longer agrees");
    assert_eq!(status(&["-r", "all"]), Some(0));
    // The image ends with a cluster that nobody refers to.
    let end = fs::metadata(&image).expect("a file").len();
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(end + 65536))
        .expect("a file");
    set_refcount((end >> 16) as usize, 1);
    assert_eq!((status(&[]), qemu.run(&["check", &image]).status.code()), (Some(3), Some(3)));
    let repaired = json(&["check", "-r", "leaks", "--output", "json", &image]);
    assert_eq!((&repaired["leaks-fixed"], &repaired["leaks"]), (&1.into(), &Value::Null));
    set_refcount(8, 0);
    assert_eq!(status(&["-r", "leaks"]), Some(2));
    assert_eq!(status(&["-r", "all"]), Some(0));
    qemu.ok(&["check", "-q", &image]);
    assert_eq!(ringpair(&["img", "check", &folder.file("x.img", 512)]).status.code(), Some(63));
    assert!(fail(2, &["img", "check", "-r", "some", &image]).contains("leaks, all"));
}

#[test]
fn an_image_in_use_is_refused_unless_it_is_only_looked_at_and_that_was_asked_for() {
    let folder = Folder::new();
    let (image, socket) = (folder.file("image.img", 1 << 20), folder.text("socket"));
    let served = program::Served::start(&["--socket", &socket, &image]);
    for arguments in [
        &["info", &image][..],
        &["map", &image],
        &["convert", &image, &folder.text("copy.img")],
        &["snapshot", "-l", &image],
        &["resize", &image, "+1M"],
        &["create", &image, "1M"],
        &["check", &image],
    ] {
        let error = fail(1, &[&["img"], arguments].concat());
        assert!(error.contains("image.img") && error.contains("another process"), "{arguments:?}: {error}");
    }
    succeed(&["img", "info", "-U", &image]);
    succeed(&["img", "map", "--force-share", &image]);
    succeed(&["img", "convert", "-U", &image, &folder.text("copy.img")]);
    assert_eq!(ringpair(&["img", "check", "-U", &image]).status.code(), Some(63));
    assert_eq!(fs::metadata(&image).expect("a file").len(), 1 << 20, "nothing was cut off");
    drop(served);
}

#[test]
fn mistakes_name_the_thing_and_what_would_be_right() {
    let folder = Folder::new();
    let image = folder.text("x.qcow2");
    let create = |options: &str| fail(2, &["img", "create", "-f", "qcow2", "-o", options, &image, "1M"]);
    for (options, wanted) in [
        ("cluster_size=1000", "512 to 2M"),
        ("refcount_bits=3", "1 to 64"),
        ("compat=2", "0.10, 1.1"),
        ("preallocation=some", "off, metadata, falloc, full"),
        ("lazy_refcounts=maybe", "on, off"),
        ("clusters=3", "there is no option `clusters` (there are: backing_file"),
        ("cluster_size", "is not an option=value"),
        ("compat=0.10,refcount_bits=8", "need compat=1.1"),
        ("compat=0.10,lazy_refcounts=on", "needs compat=1.1"),
        ("data_file_raw=on", "needs data_file"),
        ("extended_l2=on", "ringpair does not support that"),
        ("compression_type=zstd", "ringpair does not support that"),
        ("encrypt.format=luks", "ringpair does not support that"),
        ("backing_fmt=raw", "needs a backing file"),
    ] {
        let error = create(options);
        assert!(error.contains(wanted), "{options}: {error}");
    }
    assert!(fail(2, &["img", "create", &image]).contains("needs a size"));
    assert!(fail(2, &["img", "create", "-f", "vmdk", &image, "1M"]).contains("raw, qcow2"));
    assert!(!folder.path("x.qcow2").exists(), "nothing was made");
    assert!(fail(1, &["img", "info", &image]).contains("x.qcow2: cannot open: No such file"));
    assert!(
        fail(1, &["img", "info", "-f", "qcow2", &folder.file("raw.img", 512)]).contains("not a qcow2 image")
    );
    assert!(
        fail(1, &["img", "info", &folder.text("")]).contains("neither a regular file nor a block device")
    );
}

#[test]
fn a_chain_that_loops_or_leads_nowhere_is_refused() {
    let folder = Folder::new();
    let (one, two) = (folder.text("one.qcow2"), folder.text("two.qcow2"));
    for (image, backing) in [(&one, "two.qcow2"), (&two, "one.qcow2")] {
        succeed(&["img", "create", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", image, "1M"]);
    }
    for command in ["map", "convert"] {
        let mut arguments = vec!["img", command, &one];
        let target = folder.text("flat.img");
        arguments.extend((command == "convert").then_some(target.as_str()));
        let error = fail(1, &arguments);
        assert!(error.contains("one.qcow2: is its own backing file"), "{error}");
    }
    succeed(&["img", "create", "-f", "qcow2", "-u", "-b", "nbd://host/disk", "-F", "raw", &one, "1M"]);
    let error = fail(1, &["img", "map", &one]);
    assert!(error.contains("`nbd://host/disk`: only files of this host"), "{error}");
}

#[test]
fn a_chain_of_64_and_an_image_of_64_tib_are_no_matter() {
    let folder = Folder::new();
    let mut backing = folder.write("0.img", &"z".repeat(1 << 20));
    for depth in 1..=64 {
        let image = folder.text(&format!("{depth}.qcow2"));
        let format = if depth == 1 { "raw" } else { "qcow2" };
        succeed(&["img", "create", "-f", "qcow2", "-b", &backing, "-F", format, &image]);
        backing = image;
    }
    let map = json(&["map", "--output", "json", &backing]);
    assert_eq!(map[0]["depth"], 64);
    succeed(&["img", "convert", &backing, &folder.text("flat.img")]);
    assert!(contents(&folder.path("flat.img")) == contents(&folder.path("0.img")));

    let large = folder.text("large.qcow2");
    succeed(&["img", "create", "-f", "qcow2", &large, "64T"]);
    assert_eq!(json(&["map", "--output", "json", &large])[0]["length"], 1u64 << 46);
    assert_eq!(json(&["check", "--output", "json", &large])["total-clusters"], 1u64 << 30);
}
