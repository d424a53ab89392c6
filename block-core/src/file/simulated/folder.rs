//! The files on one medium, by their names, and their clock.

use super::log::Log;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

/// The files on a medium.
#[derive(Default)]
pub(super) struct Folder {
    /// The moments that there have been, in whichever file.
    clock: Arc<AtomicU64>,
    files: Mutex<Vec<(PathBuf, Arc<Mutex<Log>>)>>,
}

impl Folder {
    pub fn clock(&self) -> Arc<AtomicU64> {
        self.clock.clone()
    }

    pub fn add(&self, name: &str, log: Arc<Mutex<Log>>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push((name.into(), log));
    }

    pub fn find(&self, path: &Path) -> Option<Arc<Mutex<Log>>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().find(|(name, _)| name == path).map(|(_, log)| log.clone())
    }
}
