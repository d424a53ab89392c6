//! `ringpair img info`.

use super::{Output, format, looking, print, print_json, told};
use anyhow::Result;
use block_core::image::info::{ImageInfo, Qcow2Info};
use block_core::image::{Chain, Format, Layer};
use block_core::qcow2::layout::{Crypt, Snapshot, Version};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::BinaryBytes;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Options of `ringpair img info`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Show its backing files too
    #[arg(long)]
    backing_chain: bool,
    /// Look at it even while somebody writes to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
}

/// Carries it out.
///
/// # Errors
///
/// The image cannot be read.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { format, output, backing_chain, force_share, image } = arguments;
    let access = looking(*force_share);
    let infos: Vec<ImageInfo> = if *backing_chain {
        let chain = Chain::open(image, *format, access).map_err(told)?;
        chain.layers().iter().map(ImageInfo::of).collect::<Result<_, _>>().map_err(told)?
    } else {
        let layer = Layer::open(image, *format, access).map_err(told)?;
        vec![ImageInfo::of(&layer).map_err(told)?]
    };
    match output {
        Output::Json if *backing_chain => print_json(&infos.iter().map(to_json).collect()),
        Output::Json => infos.iter().try_for_each(|info| print_json(&to_json(info))),
        Output::Human => {
            let texts: Vec<_> = infos.iter().map(to_text).collect();
            print(&texts.join("\n\n"))
        }
    }
}

/// As qemu-img has it.
fn to_json(info: &ImageInfo) -> Value {
    let path = info.path.display().to_string();
    let mut json = json!({
        "virtual-size": info.virtual_size,
        "filename": path,
        "format": info.format.to_string(),
        "actual-size": info.actual_size,
        "dirty-flag": info.qcow2.as_ref().is_some_and(|qcow2| qcow2.dirty),
        "children": [{
            "name": "file",
            "info": {
                "children": [],
                "virtual-size": info.file_size,
                "filename": path,
                "format": "file",
                "actual-size": info.actual_size,
                "format-specific": { "type": "file", "data": {} },
                "dirty-flag": false,
            },
        }],
    });
    let Some(qcow2) = &info.qcow2 else { return json };
    json["cluster-size"] = json!(qcow2.cluster_size);
    json["format-specific"] = json!({ "type": "qcow2", "data": qcow2_data(qcow2) });
    if qcow2.encryption != Crypt::None {
        json["encrypted"] = json!(true);
    }
    if let Some((name, path)) = &qcow2.backing_file {
        json["backing-filename"] = json!(name);
        if let Some(path) = path {
            json["full-backing-filename"] = json!(path.display().to_string());
        }
    }
    if let Some(format) = &qcow2.backing_format {
        json["backing-filename-format"] = json!(format);
    }
    if !qcow2.snapshots.is_empty() {
        json["snapshots"] = qcow2.snapshots.iter().map(snapshot_json).collect();
    }
    json
}

fn qcow2_data(qcow2: &Qcow2Info) -> Value {
    let mut data = json!({
        "compat": compat(qcow2.version),
        "compression-type": qcow2.compression_type,
        "refcount-bits": qcow2.refcount_bits,
    });
    if qcow2.version >= Version::V3 {
        data["lazy-refcounts"] = json!(qcow2.lazy_refcounts);
        data["corrupt"] = json!(qcow2.corrupt);
        data["extended-l2"] = json!(qcow2.extended_l2);
    }
    if let Some((name, raw)) = &qcow2.data_file {
        data["data-file"] = json!(name);
        data["data-file-raw"] = json!(raw);
    }
    if !qcow2.bitmaps.is_empty() {
        let bitmap = |bitmap: &block_core::qcow2::layout::Bitmap| {
            json!({
                "name": bitmap.name,
                "granularity": 1u64 << bitmap.granularity_bits,
                "flags": bitmap.flag_names(),
            })
        };
        data["bitmaps"] = qcow2.bitmaps.iter().map(bitmap).collect();
    }
    data
}

/// A snapshot, as qemu-img has it.
pub fn snapshot_json(snapshot: &Snapshot) -> Value {
    let mut json = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date.0,
        "date-nsec": snapshot.date.1,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        json["icount"] = json!(icount);
    }
    json
}

/// Snapshots, as a table.
pub fn snapshot_table(snapshots: &[Snapshot]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["id", "name", "vm state", "taken", "vm clock"]);
    for snapshot in snapshots {
        let taken = std::time::UNIX_EPOCH + std::time::Duration::from_secs(snapshot.date.0.into());
        table.add_row([
            snapshot.id.escape_debug().to_string(),
            snapshot.name.escape_debug().to_string(),
            BinaryBytes(snapshot.vm_state_size).to_string(),
            humantime::format_rfc3339_seconds(taken).to_string(),
            humantime::format_duration(std::time::Duration::from_nanos(snapshot.vm_clock_nsec)).to_string(),
        ]);
    }
    table.to_string()
}

fn compat(version: Version) -> &'static str {
    if version < Version::V3 { "0.10" } else { "1.1" }
}

fn to_text(info: &ImageInfo) -> String {
    let size = |bytes: u64| format!("{} ({bytes} bytes)", BinaryBytes(bytes));
    let mut lines = vec![
        format!("image: {}", info.path.display()),
        format!("file format: {}", info.format),
        format!("virtual size: {}", size(info.virtual_size)),
        format!("disk size: {}", BinaryBytes(info.actual_size)),
    ];
    let Some(qcow2) = &info.qcow2 else { return lines.join("\n") };
    let mut line = |name: &str, value: &dyn std::fmt::Display| lines.push(format!("{name}: {value}"));
    line("cluster size", &qcow2.cluster_size);
    if let Some((name, path)) = &qcow2.backing_file {
        line("backing file", &name.escape_debug());
        if let Some(path) = path.as_ref().filter(|path| path.as_os_str() != name.as_str()) {
            line("backing file path", &path.display());
        }
    }
    if let Some(format) = &qcow2.backing_format {
        line("backing file format", &format.escape_debug());
    }
    if qcow2.encryption != Crypt::None {
        line("encrypted", &"yes");
    }
    line("compat", &compat(qcow2.version));
    line("compression type", &qcow2.compression_type);
    line("refcount bits", &qcow2.refcount_bits);
    if qcow2.version >= Version::V3 {
        line("lazy refcounts", &qcow2.lazy_refcounts);
        line("extended l2", &qcow2.extended_l2);
        line("corrupt", &qcow2.corrupt);
        line("dirty", &qcow2.dirty);
    }
    if let Some((name, raw)) = &qcow2.data_file {
        line("data file", &name.escape_debug());
        line("data file raw", raw);
    }
    for bitmap in &qcow2.bitmaps {
        let granularity = 1u64 << bitmap.granularity_bits;
        let flags = bitmap.flag_names().join(", ");
        line("bitmap", &format!("{}, granularity {granularity}, {flags}", bitmap.name.escape_debug()));
    }
    if !qcow2.snapshots.is_empty() {
        lines.push("snapshots:".to_owned());
        lines.push(snapshot_table(&qcow2.snapshots));
    }
    lines.join("\n")
}
