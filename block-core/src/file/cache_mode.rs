//! The five cache modes, which are three flags, as in QEMU.

/// What `cache=` says: where a completed write is, and what a flush still has to do.
///
/// | `cache=` | O_DIRECT | volatile cache | a write completes | flush |
/// |---|---|---|---|---|
/// | `writeback` (default) | – | yes | in the page cache | fdatasync |
/// | `none` | yes | yes | in the device | fdatasync |
/// | `writethrough` | – | no | durable (each write is FUA) | nothing left to do |
/// | `directsync` | yes | no | durable (each write is FUA) | nothing left to do |
/// | `unsafe` | – | yes | in the page cache | ignored, and FUA too |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Page cache, flushed when asked.
    #[default]
    Writeback,
    /// Past the page cache; the device's own cache is flushed when asked.
    None,
    /// Page cache for reads; every write is durable at its completion.
    Writethrough,
    /// Past the page cache; every write is durable at its completion.
    Directsync,
    /// Page cache, never flushed: for data that a crash may take.
    Unsafe,
}

impl CacheMode {
    /// The modes by the names that `cache=` takes.
    pub const WORDS: &[(&str, Self)] = &[
        ("writeback", Self::Writeback),
        ("none", Self::None),
        ("writethrough", Self::Writethrough),
        ("directsync", Self::Directsync),
        ("unsafe", Self::Unsafe),
    ];

    /// Whether the file is opened with `O_DIRECT`.
    pub const fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether a completed write may still be lost until a flush, as far as the guest is told.
    pub const fn volatile_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::Directsync)
    }

    /// Whether a flush has to reach the medium.
    pub const fn flushes(self) -> bool {
        matches!(self, Self::Writeback | Self::None)
    }

    /// Whether a write must be durable when it completes.
    pub const fn durable(self, fua: bool) -> bool {
        match self {
            Self::Writeback | Self::None => fua,
            Self::Writethrough | Self::Directsync => true,
            Self::Unsafe => false,
        }
    }
}
