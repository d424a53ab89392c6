//! The file disk of a `ringpair bench` without a target.

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, StatVfs, open, statvfs};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: u64 = 1 << 30;
const SMALLEST: u64 = 64 << 20;
const CHUNK: usize = 1 << 20;

/// A file full of data in a temporary folder.
pub struct TemporaryFile {
    path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Whether its file system does O_DIRECT.
    pub direct: bool,
    folder: TempDir,
}

impl TemporaryFile {
    /// Makes the file where `TMPDIR` says, or else in `/var/tmp`, which unlike `/tmp` is on a disk; smaller where
    /// there is little room. Every byte of it is written, so that reads reach the medium and writes allocate
    /// nothing. `progress` is told how many bytes there are and how many of them are written.
    ///
    /// # Errors
    ///
    /// There is no room, or the file system fails.
    pub fn create(progress: impl Fn(u64, u64)) -> Result<Self> {
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let parent = if parent.is_dir() { parent } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new()
            .prefix("ringpair-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("making a temporary folder in {}", parent.display()))?;
        let path = folder.path().join("disk.img");
        let size = size_for(&statvfs(folder.path()).context("asking for free space")?);
        ensure!(
            size >= SMALLEST,
            "no room for a temporary file in {}: set TMPDIR to a folder with at least {} MiB free",
            parent.display(),
            (4 * SMALLEST) >> 20
        );
        fill(&path, size, progress).with_context(|| format!("writing {}", path.display()))?;
        let direct = open(&path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok();
        Ok(Self { path, size, direct, folder })
    }

    /// The disk, as it is named on a command line.
    pub fn disk(&self) -> String {
        let path = self.path.to_string_lossy().replace(',', ",,");
        format!("file:{path},cache={}", if self.direct { "none" } else { "writeback" })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A quarter of what is free, a gigabyte at most, in whole chunks.
fn size_for(space: &StatVfs) -> u64 {
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    (free / 4).min(SIZE) / CHUNK as u64 * CHUNK as u64
}

fn fill(path: &Path, size: u64, progress: impl Fn(u64, u64)) -> Result<()> {
    let file = File::create_new(path)?;
    // Not zeroes, which some storage does not store.
    let mut chunk: Vec<u8> = (0..CHUNK).map(|at| (at * 31 + at / 251) as u8).collect();
    for start in (0..size).step_by(CHUNK) {
        chunk[..8].copy_from_slice(&start.to_le_bytes());
        file.write_all_at(&chunk, start)?;
        progress(start + CHUNK as u64, size);
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        fill(&path, 2 * CHUNK as u64, |_, _| ()).unwrap();
        let data = std::fs::read(&path).unwrap();
        assert_eq!(data.len(), 2 * CHUNK);
        assert_eq!(data[CHUNK..CHUNK + 8], (CHUNK as u64).to_le_bytes());
    }

    #[test]
    fn a_quarter_of_little_room_is_taken() {
        let mut space = statvfs("/").unwrap();
        (space.f_frsize, space.f_bavail) = (4096, 1 << 16);
        assert_eq!(size_for(&space), 64 << 20);
        space.f_bavail = u64::MAX;
        assert_eq!(size_for(&space), SIZE);
    }
}
