//! An NVM subsystem: its namespaces, each a disk, and its identity. Controllers attach namespaces.

use block_core::Disk;
use std::sync::Arc;
use uuid::Uuid;

/// A namespace: a disk with an identity and a format.
#[derive(Clone)]
pub struct Namespace {
    /// Namespace identifier, from 1.
    pub nsid: u32,
    /// Where its data lives.
    pub disk: Arc<dyn Disk>,
    /// Size of a logical block: 512 or 4096 bytes.
    pub block_size: u32,
    /// Capacity in logical blocks.
    pub capacity_lbas: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Stable, unique identifier, from which EUI-64 and NGUID derive too.
    pub uuid: Uuid,
}

/// An NVM subsystem.
pub struct Subsystem {
    /// NVM Subsystem Qualified Name.
    pub nqn: String,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Namespaces in order of their NSIDs.
    pub namespaces: Vec<Namespace>,
}
