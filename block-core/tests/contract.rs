//! Every disk of this crate, under the shared contract.

use block_core::{Disk, DiskSpec, Registry};
use std::fs::File;
use std::sync::Arc;

fn open(name: &str) -> Arc<dyn Disk> {
    let spec: DiskSpec = name.parse().unwrap();
    Registry::default().open(spec).unwrap_or_else(|error| panic!("{error}"))
}

fn switch(read_only: bool) -> &'static str {
    if read_only { "on" } else { "off" }
}

block_core::contract_suite!(mem, |read_only| Some(open(&format!("mem:8M,readonly={}", switch(read_only)))));

// Written past the caches.
block_core::contract_suite!(large_mem, |read_only| Some(open(&format!(
    "mem:65M,readonly={}",
    switch(read_only)
))));

block_core::contract_suite!(null, without_data, |read_only| Some(open(&format!(
    "null:1T,readonly={}",
    switch(read_only)
))));

block_core::contract_suite!(null_zeroes, without_data, |read_only| Some(open(&format!(
    "null:8M,read-zeroes=on,readonly={}",
    switch(read_only)
))));

/// A file of `size` bytes, which goes when its disk is closed. `None`, and says so, where the file system that the
/// tests run on has no O_DIRECT.
fn file(options: &str, size: u64, read_only: bool) -> Option<Arc<dyn Disk>> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    let name = format!("{},{options},readonly={}", path.display(), switch(read_only));
    match Registry::default().open(name.parse().unwrap()) {
        Ok(disk) => Some(disk),
        Err(error) if error.to_string().contains("no O_DIRECT") => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

macro_rules! files {
    ($($name:ident: $options:literal, $size:expr;)*) => {
        $(block_core::contract_suite!($name, |read_only| file($options, $size, read_only));)*
    };
}

files! {
    uring_writeback: "aio=io_uring,cache=writeback", 8 << 20;
    uring_none: "aio=io_uring,cache=none", 8 << 20;
    uring_writethrough: "aio=io_uring,cache=writethrough", 8 << 20;
    uring_directsync: "aio=io_uring,cache=directsync", 8 << 20;
    uring_unsafe: "aio=io_uring,cache=unsafe", 8 << 20;
    threads_writeback: "aio=threads,cache=writeback", 8 << 20;
    threads_none: "aio=threads,cache=none", 8 << 20;
    threads_writethrough: "aio=threads,cache=writethrough", 8 << 20;
    threads_directsync: "aio=threads,cache=directsync", 8 << 20;
    threads_unsafe: "aio=threads,cache=unsafe", 8 << 20;
    // A size that no alignment divides: the last bytes go another way.
    uring_none_odd_size: "aio=io_uring,cache=none", (8 << 20) + 1001;
    threads_none_odd_size: "aio=threads,cache=none", (8 << 20) + 1001;
    uring_writeback_odd_size: "aio=io_uring,cache=writeback", (8 << 20) + 1001;
    // Discards that the person has switched off.
    uring_no_discard: "aio=io_uring,discard=ignore", 8 << 20;
}
