//! Cache modes and engines, in all combinations.

use super::Promise;
use crate::file::CacheMode;
use std::fmt;

/// The engines, as `aio=` names them.
pub const ENGINES: [&str; 2] = ["io_uring", "threads"];

/// A cache mode on an engine; its text is the options that ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// One of [`CacheMode::WORDS`].
    pub cache: &'static str,
    /// One of [`ENGINES`].
    pub engine: &'static str,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache={},aio={}", self.cache, self.engine)
    }
}

impl Mode {
    /// Each of these modes on each engine.
    pub fn each(caches: &[&'static str]) -> impl Iterator<Item = Self> {
        caches.iter().flat_map(|&cache| ENGINES.map(|engine| Self { cache, engine }))
    }

    /// What it promises to keep.
    ///
    /// # Panics
    ///
    /// There is no such mode.
    pub fn promise(self) -> Promise {
        Promise::of(CacheMode::WORDS.iter().find(|(word, _)| *word == self.cache).expect("a mode").1)
    }
}

/// Makes a module of tests, one for each cache mode on each engine: each calls the check with its [`Mode`]. `safe` leaves
/// `cache=unsafe` out.
///
/// ```text
/// block_core::every_mode!(what_was_promised_is_kept, check);
/// block_core::every_mode!(what_was_promised_is_kept, safe, check);
/// ```
#[macro_export]
macro_rules! every_mode {
    ($name:ident, safe, $check:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::every_mode!(@safe $check);
        }
    };
    ($name:ident, $check:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::every_mode!(@safe $check);
            $crate::every_mode!(@tests $check;
                uring_unsafe: "unsafe" on "io_uring";
                threads_unsafe: "unsafe" on "threads";
            );
        }
    };
    (@safe $check:expr) => {
        $crate::every_mode!(@tests $check;
            uring_writeback: "writeback" on "io_uring";
            uring_none: "none" on "io_uring";
            uring_writethrough: "writethrough" on "io_uring";
            uring_directsync: "directsync" on "io_uring";
            threads_writeback: "writeback" on "threads";
            threads_none: "none" on "threads";
            threads_writethrough: "writethrough" on "threads";
            threads_directsync: "directsync" on "threads";
        );
    };
    (@tests $check:expr; $($test:ident: $cache:literal on $engine:literal;)*) => {
        $(#[test]
        fn $test() {
            $check($crate::contract::durability::Mode { cache: $cache, engine: $engine });
        })*
    };
}
