//! Opening a qcow2 disk by its name.

use super::Qcow2Disk;
use super::backing_chain::Backing;
use super::chain;
use crate::file::FileDisk;
use crate::format::{self, Format};
use crate::image_file::ImageFile;
use crate::registry::OpenError;
use crate::spec::DiskSpec;
use std::sync::Arc;

/// The smallest `l2-cache-size` that is any use.
const MIN_TABLE: u64 = 64 << 10;

impl Qcow2Disk {
    /// The disk that `IMAGE[,option=value…]` names.
    ///
    /// # Errors
    ///
    /// An option that is wrong; a file of the chain that is not there, in use by somebody else, or not what somebody says
    /// it is; an image that is corrupt, or uses what ringpair does not support.
    pub fn open(mut spec: DiskSpec) -> Result<Self, OpenError> {
        // It is qcow2, or nobody would have come here; it is ours to take all the same.
        format::take(&mut spec)?;
        let backing_format = spec.take_word("backing-format", Format::WORDS)?;
        let backing = spec.take("backing").map(|path| Backing { path: path.into(), format: backing_format });
        let table = spec.take_parsed("l2-cache-size", "a size of at least 64K, such as 8M", |value| {
            crate::spec::parse_size(value).filter(|size| *size >= MIN_TABLE)
        })?;
        if let (Some(said), None) = (backing_format, &backing) {
            let (said, why) = (said.to_string(), "effect only beside backing=");
            return Err(spec.bad_value("backing-format", &said, why).into());
        }
        let file = FileDisk::open_image(spec)?;
        let discard = file.info_discards();
        Self::on(Arc::new(file), backing, table, discard)
    }

    /// The disk in an image that is open already.
    ///
    /// # Errors
    ///
    /// As [`Qcow2Disk::open`].
    pub fn on_file(file: Arc<dyn ImageFile>) -> Result<Self, OpenError> {
        Self::on(file, None, None, true)
    }

    fn on(
        file: Arc<dyn ImageFile>,
        backing: Option<Backing>,
        table: Option<u64>,
        discard: bool,
    ) -> Result<Self, OpenError> {
        let location = file.path().display().to_string();
        let layers = chain::open(file, backing)?;
        Self::new(layers, table, discard).map_err(|source| OpenError::Host {
            location,
            action: "cannot use its metadata",
            source,
        })
    }
}
