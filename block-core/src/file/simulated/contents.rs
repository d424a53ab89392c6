//! What a simulated file holds, or its medium.

use super::SECTOR;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The bytes of a file. Zeroes at its end take no memory: images grow in steps of many MiB.
#[derive(Clone, Default)]
pub struct Contents {
    /// What is not there, up to `len`, is zero.
    stored: Vec<u8>,
    len: usize,
}

impl From<Vec<u8>> for Contents {
    fn from(stored: Vec<u8>) -> Self {
        Self { len: stored.len(), stored }
    }
}

impl Contents {
    /// The file's length.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the file has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn to_vec(&self) -> Vec<u8> {
        self.get(0, self.len as u64).into_owned()
    }

    /// Writes it into an empty file, with a hole at the end.
    ///
    /// # Errors
    ///
    /// What the host said.
    pub fn write_to(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.stored, 0)?;
        file.set_len(self.len as u64)
    }

    /// As much of a range as the file has.
    pub(super) fn get(&self, offset: u64, len: u64) -> Cow<'_, [u8]> {
        let range = within(self.len, offset, len);
        if let Some(bytes) = self.stored.get(range.clone()) {
            return Cow::Borrowed(bytes);
        }
        let mut bytes = self.stored[within(self.stored.len(), offset, len)].to_vec();
        bytes.resize(range.len(), 0);
        Cow::Owned(bytes)
    }

    /// A sector, with zeroes beyond the end.
    pub(super) fn sector(&self, sector: usize) -> [u8; SECTOR] {
        let mut copy = [0; SECTOR];
        let bytes = self.get((sector * SECTOR) as u64, SECTOR as u64);
        copy[..bytes.len()].copy_from_slice(&bytes);
        copy
    }

    /// Behind this byte, nothing but zeroes has been.
    pub(super) fn stored_end(&self) -> usize {
        self.stored.len()
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.stored.truncate(len);
        self.len = len;
    }

    /// A write, which may make the file longer.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let range = offset as usize..offset as usize + data.len();
        if self.stored.len() < range.end {
            self.stored.resize(range.end, 0);
        }
        self.len = self.len.max(range.end);
        self.stored[range].copy_from_slice(data);
    }

    /// Zeroes, as far as the file goes.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let range = within(self.stored.len(), offset, len);
        self.stored[range].fill(0);
    }

    /// As much of a sector as the file is long.
    pub(super) fn put(&mut self, sector: usize, data: &[u8; SECTOR]) {
        let offset = sector * SECTOR;
        let len = within(self.len, offset as u64, SECTOR as u64).len();
        if offset >= self.stored.len() && data[..len].iter().all(|byte| *byte == 0) {
            return;
        }
        self.write(offset as u64, &data[..len]);
    }
}

/// A range of a file that may end first.
fn within(len: usize, offset: u64, n: u64) -> Range<usize> {
    let end = offset.saturating_add(n).min(len as u64) as usize;
    (offset as usize).min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_reads_as_zeroes_there_and_what_was_cut_off_does_not_come_back() {
        let mut contents = Contents::from(vec![7; 1000]);
        contents.set_len(1 << 40);
        assert_eq!(contents.stored_end(), 1000);
        assert_eq!(contents.get(998, 4).as_ref(), [7, 7, 0, 0]);
        assert_eq!(contents.get((1 << 40) - 2, 4).as_ref(), [0, 0]);
        contents.set_len(600);
        contents.set_len(1000);
        assert_eq!(contents.get(598, 4).as_ref(), [7, 7, 0, 0]);
        contents.write(2000, &[1]);
        assert_eq!((contents.len(), contents.get(1999, 9).as_ref()), (2001, &[0, 1][..]));
    }
}
