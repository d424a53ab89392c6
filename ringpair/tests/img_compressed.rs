//! `ringpair img convert -c`: what qemu-img makes of its images, and how it compares with `qemu-img convert -c`.

mod program;
use fixtures::{QemuImg, qemu_img_or_skip, qemu_imgs_or_skip};
use program::{Folder, contents, fail, img_json as json, kill_after, succeed};
use std::fs;
use std::time::Duration;

/// Of each kind so much, one after the other; the last of it is shorter.
const KIND: usize = 300 << 10;

/// Text, bytes that nothing makes shorter, zeroes, and words that come again at a distance of 20 KiB, which is beyond the
/// window of qcow2's deflate.
fn data() -> Vec<u8> {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut data: Vec<u8> = (0..KIND).map(|n| b"all work and no play "[n % 21]).collect();
    data.extend((0..KIND).map(|_| random()));
    data.extend([0; KIND]);
    let words: Vec<u8> = (0..20 << 10).map(|_| random()).collect();
    data.extend((0..KIND).map(|n| words[n % words.len()]));
    data.extend((0..KIND / 2 + 1536).map(|n| (n / 1000) as u8));
    data.resize(data.len().next_multiple_of(512), 7);
    data
}

/// How many clusters are compressed, and how many there are.
fn clusters(qemu: &QemuImg, image: &str) -> (u64, u64) {
    let check = qemu.json("check", &["-f", "qcow2", image]);
    let number = |key: &str| check[key].as_u64().unwrap_or(0);
    assert_eq!((number("corruptions"), number("leaks"), number("check-errors")), (0, 0, 0), "{check}");
    (number("compressed-clusters"), number("allocated-clusters"))
}

#[test]
fn what_it_makes_is_clean_in_qemu_img_and_as_small_as_what_that_makes() {
    let folder = Folder::new();
    fs::write(folder.path("source.img"), data()).expect("a file");
    let source = folder.text("source.img");
    let (ours, theirs, back) =
        (folder.text("ours.qcow2"), folder.text("theirs.qcow2"), folder.text("back.img"));
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M",
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=2,cluster_size=4k",
        "refcount_bits=64",
    ] {
        succeed(&["img", "convert", "-c", "-O", "qcow2", "-o", options, &source, &ours]);
        for qemu in qemu_imgs_or_skip() {
            let context = format!("{options:?} in qemu-img {}", qemu.major());
            let compared = qemu.ok(&["compare", "-f", "raw", "-F", "qcow2", &source, &ours]);
            assert!(compared.contains("identical"), "{context}: {compared}");
            // Where clusters can be counted once only, QEMU makes no compressed ones.
            let of_theirs = if options.starts_with("refcount_bits=1") { "cluster_size=64k" } else { options };
            qemu.ok(&["convert", "-c", "-O", "qcow2", "-o", of_theirs, &source, &theirs]);
            let (here, there) = (clusters(qemu, &ours), clusters(qemu, &theirs));
            assert_eq!(here, there, "{context}: compressed clusters, and all");
            assert!(here.0 > 0, "{context}");
            if of_theirs == options {
                let size =
                    json(&["info", "--output", "json", &ours])["cluster-size"].as_u64().expect("a size");
                let length = |path: &str| fs::metadata(path).expect("a file").len().next_multiple_of(size);
                let (here, there) = (length(&ours), length(&theirs));
                assert!(here <= there * 21 / 20, "{context}: {here} bytes, and theirs {there}");
            }
            for command in ["info", "map"] {
                // What may differ is where things are.
                let theirs = qemu.json(command, &["-f", "qcow2", &ours]);
                let ours = json(&[command, "--output", "json", &ours]);
                let (keys, list) = (["virtual-size", "cluster-size", "format-specific"], theirs.is_array());
                assert!(if list { theirs == ours } else { keys.iter().all(|key| theirs[key] == ours[key]) });
            }
            // It can be written to like any other.
            qemu.io(&ours, "qcow2", &["write -P 9 100k 200k", "read -P 9 100k 200k"]);
            clusters(qemu, &ours);
            succeed(&["img", "convert", "-c", "-O", "qcow2", "-o", options, &source, &ours]);
        }
        succeed(&["img", "convert", &ours, &back]);
        assert!(contents(back.as_ref()) == data(), "{options:?}");
        assert_eq!(succeed(&["img", "check", &ours]).lines().next(), Some("no errors"), "{options:?}");
    }
}

#[test]
fn zeroes_are_left_out_unless_all_is_to_be_written() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let (base, source, target) =
        (folder.text("base.img"), folder.text("source.qcow2"), folder.text("target.qcow2"));
    qemu.ok(&["create", "-q", "-f", "raw", &base, "4M"]);
    qemu.io(&base, "raw", &["write -P 1 0 1M", "write -P 0 1M 64k"]);
    qemu.ok(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &source, "5000k"]);
    qemu.io(&source, "qcow2", &["write -P 2 128k 64k", "write -z 0 64k", "write -P 3 4936k 64k"]);
    for (size, count) in [("4k", 17), ("0", 79)] {
        succeed(&["img", "convert", "-c", "-S", size, "-O", "qcow2", &source, &target]);
        assert_eq!(clusters(qemu, &target), (count, count), "-S {size}");
        assert!(qemu.ok(&["compare", "-f", "qcow2", "-F", "qcow2", &source, &target]).contains("identical"));
    }
}

#[test]
fn what_cannot_be_compressed_is_refused() {
    let folder = Folder::new();
    let (source, target) = (folder.file("source.img", 1 << 20), folder.text("target"));
    for (arguments, says) in [
        (&["-O", "raw"][..], "-O qcow2"),
        (&["-O", "qcow2", "-o", "preallocation=metadata"], "preallocation"),
        (&["-O", "qcow2", "-o", "data_file=data.img"], "data file"),
    ] {
        let error = fail(2, &[&["img", "convert", "-c"], arguments, &[&source, &target]].concat());
        assert!(error.contains(says), "{error}");
        assert!(!folder.path("target").exists() && !folder.path("data.img").exists());
    }
}

#[test]
fn one_that_is_killed_leaves_an_image_that_nobody_takes_for_a_whole_one_and_check_makes_good() {
    let Some(qemu) = qemu_img_or_skip() else { return };
    let folder = Folder::new();
    let source = folder.write("source.img", &"all work and no play".repeat(8 << 20));
    let mut half = 0;
    for delay in (0..400).step_by(40) {
        let target = folder.text(&format!("{delay}.qcow2"));
        let killed = kill_after(
            Duration::from_millis(delay),
            &["img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", &source, &target],
        );
        // Killed before there was anything.
        if fs::metadata(&target).map_or(0, |file| file.len()) < 4096 * 8 {
            continue;
        }
        if json(&["info", "--output", "json", &target])["dirty-flag"] == true {
            half += u32::from(killed);
            assert!(fail(1, &["img", "convert", &target, &folder.text("x.img")]).contains("dirty"));
        }
        succeed(&["img", "check", "-r", "all", &target]);
        clusters(qemu, &target);
    }
    assert!(half > 0, "none was killed in the middle");
}
