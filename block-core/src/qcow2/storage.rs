//! The image's file as imago sees it.
//!
//! imago does what it does to the metadata here, in [`Pages`]; the guest's data never comes this way. It is shown an image
//! without what ringpair looks after itself: feature bits that were dealt with at opening, and a size that is not a
//! whole number of clusters, so that imago never has a part of a cluster to copy.

use super::layout::Header;
use super::layout::feature::Incompatible;
use super::pages::Pages;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What imago opens.
pub(super) struct Storage {
    pages: Arc<Pages>,
    shown: Shown,
    helper: CommonStorageHelper,
}

/// What of the header imago sees otherwise than it is.
struct Shown {
    version_3: bool,
    /// `size`, at byte 24.
    size: u64,
    whole_size: u64,
    /// `incompatible_features`, at byte 72.
    incompatible: u64,
}

impl Storage {
    pub fn new(pages: Arc<Pages>, header: &Header) -> Self {
        let shown = Shown {
            version_3: header.version >= super::layout::Version::V3,
            size: header.size,
            whole_size: whole_size(header),
            incompatible: (header.incompatible_features & Incompatible::EXTERNAL_DATA_FILE).bits(),
        };
        Self { pages, shown, helper: CommonStorageHelper::default() }
    }
}

/// The size rounded up to whole clusters.
pub(super) fn whole_size(header: &Header) -> u64 {
    header.size.next_multiple_of(header.cluster_size())
}

impl Shown {
    /// Puts a field where a read of the header has it.
    fn put(into: &mut [u8], offset: u64, field: u64, value: u64) {
        for (at, byte) in (field..).zip(value.to_be_bytes()) {
            if let Some(place) = at.checked_sub(offset).and_then(|at| into.get_mut(at as usize)) {
                *place = byte;
            }
        }
    }

    fn show(&self, into: &mut [u8], offset: u64) {
        Self::put(into, offset, 24, self.whole_size);
        if self.version_3 {
            Self::put(into, offset, 72, self.incompatible);
            Self::put(into, offset, 88, 0);
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pages.file().path().display().fmt(f)
    }
}

impl imago::Storage for Storage {
    fn size(&self) -> io::Result<u64> {
        self.pages.file().size()
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; bufv.len() as usize];
        self.pages.read(offset, &mut bytes)?;
        if offset < 96 {
            self.shown.show(&mut bytes, offset);
        }
        bufv.copy_from_slice(&bytes);
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; bufv.len() as usize];
        bufv.copy_into_slice(&mut bytes);
        if offset == 0 {
            // The header's version 2 fields, because the refcount table has moved.
            Shown::put(&mut bytes, 0, 24, self.shown.size);
        }
        self.pages.write(offset, &bytes)
    }

    unsafe fn pure_write_zeroes(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    unsafe fn pure_write_allocated_zeroes(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// imago calls this before it frees clusters, and at no other time.
    fn settle_writes(&self) -> io::Result<()> {
        self.pages.freeing();
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
