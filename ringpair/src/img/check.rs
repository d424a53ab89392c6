//! `ringpair img check`.

use super::progress::Progress;
use super::{Output, format, looking, print, print_json, told};
use crate::failure::AlreadyTold;
use anyhow::{Context, Result};
use block_core::image::{Access, Format, Layer};
use block_core::qcow2::offline::{CheckReport, Image, Repair, check};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Exit statuses, as qemu-img's.
const CORRUPTION: u8 = 2;
const LEAKS: u8 = 3;
const CANNOT_CHECK: u8 = 63;

/// Options of `ringpair img check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its format; without it, what its first bytes say
    #[arg(short, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Repair what was found: clusters that leak, or all that can be without touching data
    #[arg(short, value_name = "WHAT", value_enum)]
    repair: Option<What>,
    /// Look at it even while somebody writes to it
    #[arg(short = 'U', long, conflicts_with = "repair")]
    force_share: bool,
    /// Show how far it is
    #[arg(short)]
    progress: bool,
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Clusters that nobody refers to
    Leaks,
    /// Refcounts, flags, and the marks of a dirty or corrupt image
    All,
}

/// Carries it out.
///
/// # Errors
///
/// The image cannot be read, or has leaks or corruption.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.image;
    let repair = match arguments.repair {
        None => Repair::Nothing,
        Some(What::Leaks) => Repair::Leaks,
        Some(What::All) => Repair::All,
    };
    let access = if repair == Repair::Nothing { looking(arguments.force_share) } else { Access::Write };
    let layer = Layer::open(path, arguments.format, access).map_err(told)?;
    if layer.format != Format::Qcow2 {
        eprintln!("ringpair: {}: is {}, which cannot be checked", path.display(), layer.format);
        return Err(AlreadyTold(CANNOT_CHECK).into());
    }
    let image = layer.file.try_clone().and_then(Image::open);
    let mut image = image.with_context(|| format!("{}: cannot read", path.display()))?;
    let mut progress = Progress::new(arguments.progress);
    let report = check(&mut image, repair, &mut |done, of| progress.show(done, of));
    drop(progress);
    let report = report.with_context(|| format!("{}: cannot check", path.display()))?;
    match arguments.output {
        Output::Json => print_json(&to_json(&report, path.display().to_string()))?,
        Output::Human => print(&to_text(&report))?,
    }
    match report {
        CheckReport { corruptions: 1.., .. } => Err(AlreadyTold(CORRUPTION).into()),
        CheckReport { leaks: 1.., .. } => Err(AlreadyTold(LEAKS).into()),
        _ => Ok(()),
    }
}

/// As qemu-img has it: what is nothing is not there.
fn to_json(report: &CheckReport, filename: String) -> Value {
    let mut json = json!({ "filename": filename, "format": "qcow2", "check-errors": 0 });
    for (key, value) in [
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("leaks", report.leaks),
        ("leaks-fixed", report.leaks_fixed),
        ("corruptions", report.corruptions),
        ("corruptions-fixed", report.corruptions_fixed),
    ] {
        if value > 0 {
            json[key] = json!(value);
        }
    }
    json
}

fn to_text(report: &CheckReport) -> String {
    let mut lines = report.findings.clone();
    let more = report.findings_in_all - report.findings.len() as u64;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    let fixed = report.leaks_fixed + report.corruptions_fixed;
    if fixed > 0 {
        let CheckReport { leaks_fixed, corruptions_fixed, .. } = report;
        lines.push(format!("repaired: {leaks_fixed} leaked clusters, {corruptions_fixed} errors"));
    }
    if let Some(reason) = &report.not_repaired {
        lines.push(format!("not repaired: {reason}"));
    }
    match report {
        CheckReport { leaks: 0, corruptions: 0, .. } => lines.push("no errors".to_owned()),
        CheckReport { leaks, corruptions: 0, .. } => {
            lines.push(format!("{leaks} leaked clusters: they waste space, and do no harm to data"));
        }
        CheckReport { leaks, corruptions, .. } => {
            lines.push(format!(
                "{corruptions} errors, {leaks} leaked clusters: data may be wrong, and writing may make it worse"
            ));
        }
    }
    let percent = |part: u64, of: u64| part as f64 * 100.0 / (of.max(1)) as f64;
    let CheckReport { allocated_clusters: allocated, total_clusters: total, .. } = *report;
    lines.push(format!(
        "{allocated}/{total} clusters allocated ({:.2} %), {:.2} % of them fragmented, {:.2} % compressed",
        percent(allocated, total),
        percent(report.fragmented_clusters, allocated),
        percent(report.compressed_clusters, allocated),
    ));
    lines.push(format!("image end offset: {}", report.image_end_offset));
    lines.join("\n")
}
