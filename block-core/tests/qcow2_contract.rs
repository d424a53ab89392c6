//! qcow2 images of every shape, under the shared contract; `qemu-img check` finds nothing wrong with them afterwards.

mod images;

use block_core::{Disk, DiskInfo, Queue};
use images::Images;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A disk in an image that is checked when it is closed.
struct Checked {
    disk: Option<Arc<dyn Disk>>,
    images: Images,
    path: PathBuf,
}

impl Checked {
    fn disk(&self) -> &dyn Disk {
        &**self.disk.as_ref().unwrap()
    }
}

impl Disk for Checked {
    fn info(&self) -> DiskInfo {
        self.disk().info()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn Queue>> {
        self.disk().open_queue(depth)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk().flush()
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.disk = None;
        if !std::thread::panicking() {
            self.images.check(&self.path);
        }
    }
}

/// A disk in a new image, on a backing file if `backing` says how that one is made.
fn image(create: &str, backing: Option<&str>, options: &str, read_only: bool) -> Option<Arc<dyn Disk>> {
    let images = Images::new()?;
    let mut create = create.to_owned();
    match backing {
        None => {}
        Some("raw") => {
            std::fs::write(images.path("base.img"), vec![0xb5; 5 << 20]).unwrap();
            create += ",backing_file=base.img,backing_fmt=raw";
        }
        Some(options) => {
            let base = images.create("base.qcow2", options, "8M");
            images.fill(&base, 0xb5);
            create += ",backing_file=base.qcow2,backing_fmt=qcow2";
        }
    }
    let path = images.create("disk.qcow2", create.trim_start_matches(','), "8M");
    let switch = if read_only { "on" } else { "off" };
    let disk = images.open(&path, &format!(",{options},readonly={switch}"))?;
    Some(Arc::new(Checked { disk: Some(disk), images, path }))
}

macro_rules! shapes {
    ($($name:ident: $create:literal, $backing:expr, $options:literal;)*) => {
        $(block_core::contract_suite!($name, |read_only| image($create, $backing, $options, read_only));)*
    };
}

shapes! {
    uring_writeback: "", None, "aio=io_uring,cache=writeback";
    uring_none: "", None, "aio=io_uring,cache=none";
    threads_writethrough: "", None, "aio=threads,cache=writethrough";
    threads_directsync: "", None, "aio=threads,cache=directsync";
    uring_unsafe: "", None, "aio=io_uring,cache=unsafe";
    smallest_clusters: "cluster_size=512", None, "cache=none";
    small_clusters_on_raw: "cluster_size=4096", Some("raw"), "cache=writeback";
    largest_clusters: "cluster_size=2M", None, "cache=writeback";
    on_raw: "", Some("raw"), "cache=none";
    on_qcow2: "", Some(""), "cache=writeback";
    on_larger_clusters: "cluster_size=4096", Some("cluster_size=1M"), "cache=writeback";
    on_smaller_clusters: "cluster_size=128K", Some("cluster_size=4096"), "cache=none";
    version_2: "compat=0.10", None, "cache=writeback";
    version_2_on_raw: "compat=0.10", Some("raw"), "cache=writeback";
    external_data: "data_file=data.img", None, "cache=none";
    external_raw_data: "data_file=data.img,data_file_raw=on", None, "cache=writeback";
    narrow_refcounts: "refcount_bits=1", None, "cache=writeback";
    wide_refcounts: "refcount_bits=64,cluster_size=512", None, "cache=writeback";
    preallocated: "preallocation=metadata", None, "cache=none";
    no_discard: "", None, "discard=ignore";
}
