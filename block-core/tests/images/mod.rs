//! Images made and checked by qemu-img.

// Each file of tests is a program of its own, and uses its own part of this.
#![allow(dead_code)]

pub mod simulated;

use block_core::{Disk, Registry};
use fixtures::{QemuImg, qemu_img_or_skip};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A directory with images in it.
pub struct Images {
    dir: TempDir,
    qemu_img: &'static QemuImg,
}

impl Images {
    /// `None`, and says so, without qemu-img.
    pub fn new() -> Option<Self> {
        let qemu_img = qemu_img_or_skip()?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Some(Self { dir, qemu_img })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs qemu-img in the directory; what it says.
    pub fn qemu_img(&self, arguments: &[&str]) -> String {
        let output = self.qemu_img.run_in(self.dir.path(), arguments);
        let says = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "qemu-img {arguments:?}: {says}");
        says
    }

    /// Runs commands of qemu-io on a qcow2 image.
    pub fn qemu_io(&self, path: &Path, commands: &[&str]) {
        self.qemu_img.io(path.to_str().unwrap(), "qcow2", commands);
    }

    /// A new image; `options` are those of `-o`.
    pub fn create(&self, name: &str, options: &str, size: &str) -> PathBuf {
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([name, size]);
        self.qemu_img(&arguments);
        self.path(name)
    }

    /// Fills a qcow2 image with a byte, without ringpair.
    pub fn fill(&self, path: &Path, byte: u8) {
        let size = std::fs::File::open(path).and_then(|file| virtual_size(&file)).unwrap();
        let raw = self.path("fill.img");
        std::fs::write(&raw, vec![byte; size as usize]).unwrap();
        let (raw, path) = (raw.to_str().unwrap(), path.to_str().unwrap());
        self.qemu_img(&["convert", "-n", "-f", "raw", "-O", "qcow2", raw, path]);
    }

    /// Nothing is wrong with an image, and nothing leaks.
    pub fn check(&self, path: &Path) {
        self.qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
    }

    /// Nothing is wrong with an image but that clusters leak, which they do not any more.
    pub fn check_for_leaks(&self, path: &Path) {
        let path = path.to_str().unwrap();
        let checked = self.qemu_img.run_in(self.dir.path(), &["check", "-f", "qcow2", path]);
        let says = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        match checked.status.code() {
            Some(0) => {}
            // As qemu-img(1) has it: leaks, and no corruption.
            Some(3) => drop(self.qemu_img(&["check", "-q", "-f", "qcow2", "-r", "leaks", path])),
            _ => panic!("{says}"),
        }
    }

    /// Opens an image; `None`, and says so, where the file system has no O_DIRECT.
    pub fn open(&self, path: &Path, options: &str) -> Option<Arc<dyn Disk>> {
        match Registry::default().open(format!("{}{options}", path.display()).parse().unwrap()) {
            Ok(disk) => Some(disk),
            Err(error) if error.to_string().contains("no O_DIRECT") => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// `size`, at byte 24 of the header.
fn virtual_size(file: &std::fs::File) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut size = [0; 8];
    file.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}
