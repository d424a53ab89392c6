//! Which files an image needs, and which it must not have: the same for the disk and for what is done to images as files.

use block_core::contract::Client;
use block_core::image::create::{CreateOptions, create};
use block_core::image::map::Mapper;
use block_core::image::{Access, Chain, Format, Layer};
use block_core::qcow2::layout::{Crypt, Extension};
use block_core::qcow2::offline::Image;
use block_core::{OpenError, Registry};
use std::fs::File;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: u64 = 64 << 10;

/// A directory of images and raw files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A raw file of this byte.
    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, vec![byte; SIZE as usize]).unwrap();
        path
    }

    /// An empty image without a backing file.
    fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        create(&path, Format::Qcow2, Some(SIZE), &CreateOptions::default(), true).unwrap();
        path
    }

    /// An empty image whose header says this of its backing file.
    fn overlay(&self, name: &str, backing: &str, format: Option<&str>) -> PathBuf {
        let path = self.image(name);
        set_backing(&path, backing, format);
        path
    }
}

fn change_header(image: &Path, change: impl FnOnce(&mut block_core::qcow2::layout::Header)) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    Image::open(file).unwrap().update_header(change).unwrap();
}

fn set_backing(image: &Path, backing: &str, format: Option<&str>) {
    change_header(image, |header| {
        header.backing_file = Some(backing.to_owned());
        header.extensions.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        header.extensions.extend(format.map(|format| Extension::BackingFormat(format.to_owned())));
    });
}

/// The first byte that a guest would see.
type Seen = Result<u8, String>;

fn disk(image: &Path, options: &str) -> Seen {
    let spec = format!("{}{options}", image.display()).parse().map_err(OpenError::from);
    let disk = spec.and_then(|spec| Registry::default().open(spec)).map_err(|error| error.to_string())?;
    Ok(Client::new(&*disk, 1).read(0, 1)[0])
}

fn as_file(image: &Path, access: Access) -> Seen {
    let chain = Chain::open(image, Some(Format::Qcow2), access);
    let mut byte = [0];
    let read = chain.and_then(|chain| {
        chain.layers().iter().try_for_each(Layer::readable)?;
        Mapper::new(&chain)?.read(0, &mut byte)
    });
    read.map(|()| byte[0]).map_err(|error| error.to_string())
}

/// What both of them see, whether to read or to write.
fn seen(image: &Path) -> Seen {
    let seen = disk(image, "");
    assert_eq!(disk(image, ",readonly=on"), seen);
    for access in [Access::Read, Access::Share, Access::Write] {
        assert_eq!(as_file(image, access), seen, "{access:?}");
    }
    seen
}

/// The one line with which both refuse an image; it says each of these.
fn refused(image: &Path, says: &[&str]) {
    let error = seen(image).expect_err("it opened");
    assert!(!error.contains('\n'), "{error}");
    for word in says {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn names_are_relative_to_the_image_that_they_are_in() {
    let files = Files::new();
    files.raw("base.img", 1);
    let absolute = files.raw("folder/base.img", 2);
    files.raw("folder/odd:name", 3);
    std::fs::create_dir(files.path("elsewhere")).unwrap();
    let absolute = absolute.to_str().unwrap();
    for (name, byte) in [
        ("../base.img", 1),
        ("base.img", 2),
        ("./base.img", 2),
        (absolute, 2),
        ("file:base.img", 2),
        (&format!("file:{absolute}"), 2),
        ("./odd:name", 3),
    ] {
        let image = files.overlay("folder/image.qcow2", name, Some("raw"));
        assert_eq!(seen(&image), Ok(byte), "{name}");
    }
    // In the image it says, and not in the one above that.
    files.overlay("folder/middle.qcow2", "base.img", Some("raw"));
    let top = files.overlay("elsewhere/top.qcow2", "../folder/middle.qcow2", Some("qcow2"));
    assert_eq!(seen(&top), Ok(2));
    std::fs::remove_file(absolute).unwrap();
    refused(&top, &["folder/base.img: cannot open: No such file"]);
}

#[test]
fn names_that_are_no_files_of_this_host_are_refused() {
    let files = Files::new();
    for name in [
        "json:{\"driver\":\"qcow2\"}",
        "nbd://example.org/disk",
        "nbd+unix:///disk?socket=x",
        "https:x",
        ":x",
    ] {
        let image = files.overlay("image.qcow2", name, Some("raw"));
        refused(&image, &["image.qcow2: its backing file", "only files of this host"]);
    }
    for name in ["file:", "a\0b"] {
        let image = files.overlay("image.qcow2", name, Some("raw"));
        refused(&image, &["image.qcow2: its backing file", "which no file can have"]);
    }
}

#[test]
fn a_format_that_the_overlay_says_holds_whatever_the_file_looks_like() {
    let files = Files::new();
    files.raw("raw.qcow2", 5);
    let magic = files.image("image.img");
    assert_eq!(std::fs::read(&magic).unwrap()[0], b'Q');
    for format in ["raw", "file", "host_device"] {
        assert_eq!(seen(&files.overlay("a.qcow2", "raw.qcow2", Some(format))), Ok(5), "{format}");
        assert_eq!(seen(&files.overlay("a.qcow2", "image.img", Some(format))), Ok(b'Q'), "{format}");
    }
    assert_eq!(seen(&files.overlay("a.qcow2", "image.img", Some("qcow2"))), Ok(0));
    let image = files.overlay("a.qcow2", "raw.qcow2", Some("qcow2"));
    for error in [disk(&image, ""), as_file(&image, Access::Read)] {
        assert!(error.unwrap_err().contains("raw.qcow2: is not a qcow2 image"));
    }
    refused(&files.overlay("a.qcow2", "image.img", Some("vmdk")), &["a.qcow2", "`vmdk`", "raw and qcow2"]);
}

#[test]
fn a_format_that_nobody_says_is_what_the_name_says_if_the_header_agrees() {
    let files = Files::new();
    files.raw("base.img", 5);
    files.image("image.QCOW2");
    // What whoever can write into a raw disk could make of it.
    files.image("turned.img");
    files.raw("raw.qcow2", 5);
    std::fs::write(files.path("short.img"), b"QF").unwrap();
    assert_eq!(seen(&files.overlay("a.qcow2", "base.img", None)), Ok(5));
    assert_eq!(seen(&files.overlay("a.qcow2", "image.QCOW2", None)), Ok(0));
    assert_eq!(seen(&files.overlay("a.qcow2", "short.img", None)), Ok(b'Q'));
    for (name, says) in
        [("turned.img", "name says raw, its header qcow2"), ("raw.qcow2", "name says qcow2, its header raw")]
    {
        let image = files.overlay("a.qcow2", name, None);
        refused(&image, &[name, says, "a.qcow2", "rebase -u", "backing-format="]);
    }
}

#[test]
fn no_file_is_in_a_chain_twice_by_whatever_name() {
    let files = Files::new();
    let itself = files.overlay("itself.qcow2", "itself.qcow2", Some("qcow2"));
    refused(&itself, &["itself.qcow2: is its own backing file"]);
    set_backing(&itself, "itself.qcow2", Some("raw"));
    refused(&itself, &["itself.qcow2: is its own backing file"]);
    let one = files.overlay("one.qcow2", "two.qcow2", Some("qcow2"));
    for (name, linked) in [("one.qcow2", false), ("link.qcow2", true), ("hard.qcow2", true)] {
        if linked {
            std::os::unix::fs::symlink(&one, files.path("link.qcow2")).ok();
            std::fs::hard_link(&one, files.path("hard.qcow2")).ok();
        }
        let two = files.overlay("two.qcow2", name, Some("qcow2"));
        refused(&one, &[name, "is its own backing file"]);
        refused(&two, &["two.qcow2: is its own backing file"]);
    }
}

#[test]
fn a_chain_has_256_images_at_most() {
    let files = Files::new();
    files.raw("0.img", 7);
    let (mut backing, mut format) = ("0.img".to_owned(), "raw");
    for n in 1..256 {
        let name = format!("{n}.qcow2");
        files.overlay(&name, &backing, Some(format));
        (backing, format) = (name, "qcow2");
    }
    assert_eq!(seen(&files.path("255.qcow2")), Ok(7));
    let image = files.overlay("256.qcow2", &backing, Some(format));
    refused(&image, &["0.img: is one too many", "256 images"]);
}

#[test]
fn a_data_file_is_found_by_the_same_rules_and_is_nothing_else() {
    let files = Files::new();
    let named = |name: &str| {
        let options = CreateOptions { data_file: Some("data".to_owned()), ..CreateOptions::default() };
        let path = files.path("image.qcow2");
        create(&path, Format::Qcow2, Some(SIZE), &options, true).unwrap();
        change_header(&path, |header| {
            header.extensions.retain(|extension| !matches!(extension, Extension::DataFile(_)));
            header.extensions.extend((!name.is_empty()).then(|| Extension::DataFile(name.to_owned())));
        });
        path
    };
    files.raw("data", 0);
    files.raw("folder/data", 0);
    assert_eq!(seen(&named("folder/data")), Ok(0));
    assert_eq!(seen(&named("file:data")), Ok(0));
    refused(&named("missing"), &["missing: cannot open: No such file"]);
    refused(&named("nbd://host"), &["image.qcow2: its data file is `nbd://host`", "only files"]);
    refused(&named(""), &["image.qcow2: its data is in another file, whose name it does not say"]);
    refused(&named("image.qcow2"), &["image.qcow2: its data file is", "its chain has already"]);

    // Nor may a backing file be somebody's data file, or the other way round.
    let image = named("data");
    set_backing(&image, "data", Some("raw"));
    refused(&image, &["data: is a data file of the same chain"]);
    set_backing(&image, "middle.qcow2", Some("qcow2"));
    let middle = files.overlay("middle.qcow2", "data", Some("raw"));
    assert_eq!(seen(&middle), Ok(0));
    refused(&image, &["data: is a data file of the same chain"]);
}

#[test]
fn a_chain_ends_at_the_first_raw_file_and_what_cannot_be_used_is_named_wherever_it_is() {
    let files = Files::new();
    let base = files.overlay("base.qcow2", "missing.img", Some("raw"));
    // As raw data, what it names is nobody's business.
    assert_eq!(seen(&files.overlay("top.qcow2", "base.qcow2", Some("raw"))), Ok(b'Q'));
    refused(&files.overlay("top.qcow2", "base.qcow2", Some("qcow2")), &["missing.img: cannot open"]);
    files.raw("missing.img", 8);
    assert_eq!(seen(&files.path("top.qcow2")), Ok(8));
    change_header(&base, |header| header.crypt_method = Crypt::Aes);
    refused(&files.path("top.qcow2"), &["base.qcow2", "ringpair does not support"]);
}

#[test]
fn another_backing_file_may_take_the_place_of_a_disks_own() {
    let files = Files::new();
    files.raw("own.img", 1);
    let other = files.raw("other.img", 2);
    let image = files.overlay("image.qcow2", "own.img", Some("raw"));
    let with = |options: &str| disk(&image, &format!(",backing={}{options}", other.display()));
    assert_eq!(disk(&image, ""), Ok(1));
    assert_eq!(with(""), Ok(2));
    assert_eq!(with(",backing-format=raw"), Ok(2));
    assert!(with(",backing-format=qcow2").unwrap_err().contains("other.img: is not a qcow2 image"));
    assert!(disk(&image, ",backing-format=raw").unwrap_err().contains("beside backing="));
    assert!(disk(&image, ",backing=missing.img").unwrap_err().contains("missing.img: cannot open"));
    // Of the topmost image only, and it is looked at in the same way.
    let top = files.overlay("top.qcow2", "image.qcow2", Some("qcow2"));
    assert_eq!(disk(&top, &format!(",backing={}", image.display())), Ok(1));
    let turned = files.image("turned.img");
    assert!(
        disk(&image, &format!(",backing={}", turned.display())).unwrap_err().contains("its header qcow2")
    );
    let itself = disk(&image, &format!(",backing={}", image.display()));
    assert!(itself.unwrap_err().contains("is its own backing file"));
    // Nobody looks for one that is not used.
    std::fs::remove_file(files.path("own.img")).unwrap();
    assert_eq!(with(""), Ok(2));
}
