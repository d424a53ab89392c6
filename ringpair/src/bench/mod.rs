//! `ringpair bench`: what a disk or server does, beside what the machine could do.
//!
//! The controller is in a process of its own (`server`) and driven over vfio-user, or where else [`Place`] says; `row`
//! drives it with one [`Workload`] after another; `limits` says what that is held against, measured by `ring`, `copy` and
//! `file_loop` with the same `workload`; `report` and `plot` show it (in what `picture` has for all pictures), and
//! `explain` where the time went. `compare` is a bench of its own, in a guest.

mod compare;
mod contention;
mod copy;
mod explain;
mod file_loop;
mod latency;
mod limits;
mod picture;
mod place;
mod placement;
mod plot;
mod report;
mod ring;
mod row;
mod server;
mod subject;
mod temporary_file;
mod workload;

use crate::controller::explain;
use crate::count::count;
use crate::failure::{OutputClosed, Usage};
use crate::interruption::Interruption;
use crate::serve::Poll;
use crate::target::Target;
use anyhow::{Context, Result};
use block_core::spec::{SIZE, parse_size};
use contention::Watch;
use indicatif::{ProgressBar, ProgressStyle};
use limits::Limit;
use nvme_vfio::Options;
use place::Place;
use placement::{Placement, pinned_cpus};
use report::Row;
use std::io::Write as _;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;
use subject::Kind;
use temporary_file::TemporaryFile;
use workload::{Pattern, Workload};

/// Options of `ringpair bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A DISK, for which a server is started, or vfio-user:SOCKET[/NSID], or nvme://BDF[/NSID] [default: a temporary
    /// file, memory, nothing]
    #[arg(value_name = "TARGET")]
    target: Option<Target>,
    /// What to do: read, write, rw, randread, randwrite, randrw; several with commas [default: randread, and
    /// randwrite where there is no TARGET]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    rw: Vec<Pattern>,
    /// How many of a hundred I/Os of rw and randrw are reads
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,
    /// Bytes an I/O
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = block_size)]
    bs: u32,
    /// I/Os that each job keeps in flight; several with commas [default: 1,32,128; with --compare 1,32]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = count)]
    iodepth: Vec<NonZeroU16>,
    /// Threads that drive the target, each with a queue pair of its own
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    numjobs: NonZeroU16,
    /// How long each row is measured, after a short warm-up
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    runtime: Duration,
    /// Run the controller of a DISK in this process instead of a second one: the driver and the controller by themselves,
    /// without vfio-user
    #[arg(long)]
    loopback: bool,
    /// Print an object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Draw IOPS and latency into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Say for each row where the time of its I/Os went; for a TARGET that a server is started for
    #[arg(long, conflicts_with = "loopback")]
    explain: bool,
    /// Instead, read the same disk in the same Linux guest through ringpair and through this one's own devices; TARGET
    /// is a raw file or null:SIZE [default: a temporary file, and nothing]
    #[arg(long, value_name = "PEER", conflicts_with_all = ["rw", "rwmixread", "numjobs", "loopback", "explain", "destroy_data"])]
    compare: Option<compare::Peer>,
    /// How often each contestant of --compare has its turn
    #[arg(long, value_name = "N", default_value = "3", requires = "compare", value_parser = count)]
    rounds: NonZeroU16,
    /// How ringpair's server waits for work in --compare
    #[arg(long, value_name = "HOW", default_value = "adaptive", requires = "compare")]
    poll: Poll,
    /// Let rows that write overwrite what is on TARGET
    #[arg(long)]
    destroy_data: bool,
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text).and_then(|size| u32::try_from(size).ok()).filter(|&size| size > 0);
    size.ok_or_else(|| format!("expected {SIZE}"))
}

/// Memory disks of a bench without a target: past every cache, and quickly filled.
const MEMORY: &str = "mem:512M";
/// As large as nothing may be.
const NOTHING: &str = "null:1T";

/// Measures, and prints what was measured.
///
/// # Errors
///
/// What cannot be measured, and why. Rows that were finished are printed all the same.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(compare::Peer::Qemu) = arguments.compare {
        return compare::run(&arguments);
    }
    let mut arguments = arguments;
    if arguments.iodepth.is_empty() {
        arguments.iodepth = [1, 32, 128].into_iter().filter_map(NonZeroU16::new).collect();
    }
    let bench = Bench::new(arguments)?;
    let mut rows = Vec::new();
    let measured = bench.measure(&mut rows);
    bench.progress.finish_and_clear();
    if !bench.arguments.json && !rows.is_empty() {
        writeln!(std::io::stdout(), "{}", report::table(&rows)).context(OutputClosed)?;
    }
    if let Some(path) = bench.arguments.plot.as_ref().filter(|_| !rows.is_empty()) {
        plot::draw(&rows, path)?;
    }
    measured
}

struct Bench {
    arguments: Arguments,
    placement: Placement,
    progress: ProgressBar,
    interruption: Interruption,
}

impl Bench {
    fn new(arguments: Arguments) -> Result<Self> {
        let (placement, interruption) = (Placement::choose()?, Interruption::watch()?);
        Ok(Self { arguments, placement, progress: progress_bar()?, interruption })
    }

    fn measure(&self, rows: &mut Vec<Row>) -> Result<()> {
        let default = if self.arguments.target.is_some() {
            vec![Pattern::RandomRead]
        } else {
            vec![Pattern::RandomRead, Pattern::RandomWrite]
        };
        let patterns = if self.arguments.rw.is_empty() { default } else { self.arguments.rw.clone() };
        let per_target = (patterns.len() * self.arguments.iodepth.len()) as u64;
        let Some(target) = &self.arguments.target else {
            self.progress.set_length(3 * per_target);
            return self.measure_everything(&patterns, rows);
        };
        let writes = patterns.iter().any(|pattern| pattern.writes());
        let fresh = matches!(Kind::of(target)?, Kind::Memory(_)) || target.to_string().starts_with("null:");
        if writes && !fresh && !self.arguments.destroy_data {
            let message = format!("--rw with writes would overwrite {target}: add --destroy-data if it may");
            return Err(Usage(message).into());
        }
        self.progress.set_length(per_target);
        self.measure_target(target, &target.to_string(), &patterns, rows)
    }

    /// The system as a whole: a file, memory, and nothing at all.
    fn measure_everything(&self, patterns: &[Pattern], rows: &mut Vec<Row>) -> Result<()> {
        self.progress.set_message("writing a temporary file");
        let file = TemporaryFile::create(|written, size| {
            self.progress.set_message(format!(
                "writing a temporary file: {} of {} MiB",
                written >> 20,
                size >> 20
            ));
        })?;
        let cache = if file.direct { "cache=none" } else { "cache=writeback (no O_DIRECT there)" };
        self.progress.suspend(|| {
            eprintln!("file: {} MiB in {}, {cache}", file.size >> 20, file.folder().display());
        });
        let cache = if file.direct { "none" } else { "writeback" };
        self.measure_target(&Target::Disk(file.disk()), &format!("file,cache={cache}"), patterns, rows)?;
        drop(file);
        for disk in [MEMORY, NOTHING] {
            self.measure_target(&Target::Disk(disk.to_owned()), disk, patterns, rows)?;
        }
        Ok(())
    }

    fn measure_target(
        &self,
        target: &Target,
        name: &str,
        patterns: &[Pattern],
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        self.progress.set_message(format!("{name}: starting"));
        let explain = self.arguments.explain;
        if explain && !matches!(target, Target::Disk(_)) {
            let message =
                format!("--explain asks a server of its own, which is started for a disk; {target} is none");
            return Err(Usage(message).into());
        }
        let kind = Kind::of(target)?;
        let arguments = &self.arguments;
        let place = Place::open(target, arguments.loopback, explain, self.driver_options(), &self.placement)?;
        let placement = match place.other_server() {
            Some(process) => self.placement.beside(&pinned_cpus(process)),
            None => self.placement.clone(),
        };
        if placement.is_cramped() {
            self.progress.suspend(|| {
                tracing::warn!(
                    "too few CPUs to run on: driver and controller take turns, and figures say little"
                );
            });
        }
        let limit = kind.limit(target, patterns.iter().any(|pattern| pattern.writes()))?;
        if let Kind::Memory(_) = kind {
            self.progress.set_message(format!("{name}: filling"));
            place.drive(row::fill)?;
        }
        if rows.is_empty() {
            // Later, this program itself would be what keeps the machine busy.
            self.progress.suspend(warn_if_busy);
        }
        for &pattern in patterns {
            for iodepth in &self.arguments.iodepth {
                let workload = Workload {
                    pattern,
                    read_percent: self.arguments.rwmixread,
                    block_size: self.arguments.bs,
                    iodepth: iodepth.get(),
                    numjobs: self.arguments.numjobs.get(),
                };
                self.progress.set_message(format!("{name} {pattern} iodepth={iodepth}"));
                let row = self.measure_row(name, &workload, (&place, &placement), &limit)?;
                if self.arguments.json {
                    let json = row.to_json()?;
                    let print = || writeln!(std::io::stdout(), "{json}");
                    self.progress.suspend(print).context(OutputClosed)?;
                    if !row.steady {
                        tracing::warn!("the machine did not hold still for the last row");
                    }
                }
                rows.push(row);
                self.progress.inc(1);
            }
        }
        Ok(())
    }

    fn driver_options(&self) -> Options {
        let depth = self.arguments.iodepth.iter().map(|depth| depth.get()).max().unwrap_or(1);
        Options { queues: self.arguments.numjobs.get(), depth, ..Options::default() }
    }

    fn measure_row(
        &self,
        name: &str,
        workload: &Workload,
        (place, placement): (&Place, &Placement),
        limit: &Limit,
    ) -> Result<Row> {
        let runtime = self.arguments.runtime;
        let stages = || place.server().map_or(Ok(None), server::Server::stages);
        let judged = limit.beside(
            workload,
            placement,
            runtime,
            || place.pause(),
            || {
                let before = stages()?;
                let (measured, undisturbed) = place.drive(|drive| {
                    let watch = Watch::start(workload, placement, place);
                    let measured = row::measure(workload, drive, placement, runtime, &self.interruption);
                    let measured = explain(drive.controller, measured).with_context(|| {
                        format!("{name} {} iodepth={}", workload.pattern, workload.iodepth)
                    })?;
                    Ok((measured, watch.undisturbed()))
                })?;
                self.interruption.check()?;
                let stages = stages()?.zip(before).and_then(|(after, before)| after.since(&before));
                Ok(((measured, stages), undisturbed))
            },
        )?;
        let (measured, stages) = judged.row;
        Ok(Row {
            target: name.to_owned(),
            workload: *workload,
            iops: measured.iops,
            latency: measured.latency,
            limit: judged.limit,
            steady: judged.steady,
            explained: stages.map(|stages| stages.explain(measured.latency)),
        })
    }
}

/// Whatever else runs takes its share of what is measured.
fn warn_if_busy() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|load| load.parse::<f64>().ok());
    if let Some(load) = load.filter(|&load| load > 0.5) {
        tracing::warn!(
            "other processes are keeping this machine busy (load {load}): figures will be low and uneven"
        );
    }
}

/// A bar on standard error if that is a terminal, and nothing otherwise.
fn progress_bar() -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{spinner} {bar:30} {pos}/{len} {msg}")?;
    let bar = ProgressBar::new(0).with_style(style);
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(250));
    }
    Ok(bar)
}
