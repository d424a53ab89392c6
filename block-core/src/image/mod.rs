//! What is done to images as files: what qemu-img does, over raw and qcow2, with its words and defaults.
//!
//! A [`Chain`] is an image and its backing files, opened and locked; [`map`] says where each range of it comes from, and
//! reads it; [`Data`] writes it. The rest is one file for each thing that is done: [`create`], [`info`], [`resize`],
//! [`convert`], [`commit`], [`rebase`]. Checking and internal snapshots are qcow2's own: [`crate::qcow2::offline`].
//!
//! What it does not do: serve an image as a disk. Nothing here is on a data path; it blocks.

pub mod chain;
pub mod commit;
pub mod convert;
pub mod create;
pub mod data;
pub mod info;
pub mod map;
pub mod rebase;
pub mod resize;

pub use crate::format::Format;
pub use chain::{Access, Chain, Layer};
pub use data::Data;

use std::fmt;
use std::io;
use std::path::Path;

/// Called now and then with what is done, and of how much.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why something could not be done to an image. Each is one line for the person who named it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host refused something, or the image is not what it should be.
    #[error("{path}: {action}: {source}")]
    Failed {
        /// The image.
        path: String,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It cannot be done to this image.
    #[error("{path}: {reason}")]
    Refused {
        /// The image.
        path: String,
        /// Why, and what would be right.
        reason: String,
    },
    /// What was asked for contradicts itself.
    #[error("{0}")]
    Usage(String),
}

impl ImageError {
    /// For `map_err`: what was being done to which image.
    pub fn doing(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| match source.kind() {
            // These are about the image, and say what would be right.
            io::ErrorKind::InvalidInput | io::ErrorKind::NotFound if source.raw_os_error().is_none() => {
                Self::Refused { path, reason: source.to_string() }
            }
            _ => Self::Failed { path, action, source },
        }
    }

    /// A refusal.
    pub fn refused(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Refused { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// A result of doing something to an image.
pub type Result<T> = std::result::Result<T, ImageError>;
