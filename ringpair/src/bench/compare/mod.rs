//! `ringpair bench --compare qemu`: the same disk in the same guest, through our controller and through QEMU's own
//! devices.
//!
//! A stock Debian kernel boots in QEMU with three devices on one disk ([`contestant`]): ours, over vfio-user; QEMU's
//! `nvme`; and `virtio-blk-pci` with a thread of its own. In the guest, fio reads from one after another, several rounds
//! of it ([`guest`]), while the host counts processor time, doorbell messages and interrupts. What is printed of each is
//! the median round ([`report`]); [`plot`] draws it.
//!
//! Everything that the guest needs is fetched from Debian's archive the first time, as an ordinary user. Where there is
//! no KVM to be had, which is what it is made for, the guest's processor is emulated: figures are then a tenth of what a
//! real machine does, and only the ratios mean something.

mod contestant;
mod fio;
mod guest;
mod plot;
mod report;

use super::temporary_file::TemporaryFile;
use super::{Arguments, progress_bar};
use crate::failure::{OutputClosed, Usage};
use crate::interruption::Interruption;
use crate::target::Target;
use anyhow::{Context, Result};
use contestant::{Contestant, SharedDisk};
use guest::Arena;
use indicatif::ProgressBar;
use report::Row;
use std::io::Write as _;
use std::num::NonZeroU16;

/// What to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// QEMU's own devices: `nvme`, and `virtio-blk-pci` with an iothread.
    Qemu,
}

/// Depths if none are asked for.
const DEPTHS: [u16; 2] = [1, 32];
/// The null disk of a comparison without a target.
const NOTHING: &str = "null:1G";

/// Compares, and prints and draws what was found.
///
/// # Errors
///
/// What cannot be compared, or what a guest cannot be had for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let interruption = Interruption::watch()?;
    let comparison = Comparison { arguments, progress: progress_bar()?, interruption };
    let mut rows = Vec::new();
    let compared = comparison.all_disks(&mut rows);
    comparison.progress.finish_and_clear();
    if !arguments.json && !rows.is_empty() {
        writeln!(std::io::stdout(), "{}", report::table(&rows)).context(OutputClosed)?;
    }
    if let Some(path) = arguments.plot.as_ref().filter(|_| !rows.is_empty()) {
        plot::draw(&rows, path)?;
    }
    compared
}

struct Comparison<'a> {
    arguments: &'a Arguments,
    progress: ProgressBar,
    interruption: Interruption,
}

impl Comparison<'_> {
    fn all_disks(&self, rows: &mut Vec<Row>) -> Result<()> {
        let runs = self.depths().len() * Contestant::ALL.len() * usize::from(self.arguments.rounds.get());
        match &self.arguments.target {
            Some(target) => {
                let Target::Disk(disk) = target else {
                    let message =
                        format!("--compare takes a file or null:SIZE, which QEMU can open too, not {target}");
                    return Err(Usage(message).into());
                };
                self.progress.set_length(runs as u64);
                self.disk(SharedDisk::parse(disk)?, rows)
            }
            None => {
                self.progress.set_length(2 * runs as u64);
                self.progress.set_message("writing a temporary file");
                let file = TemporaryFile::create(|_, _| ())?;
                self.disk(SharedDisk::parse(&file.disk())?.called("file"), rows)?;
                drop(file);
                self.disk(SharedDisk::parse(NOTHING)?.called("null"), rows)
            }
        }
    }

    fn depths(&self) -> Vec<u16> {
        let asked: Vec<u16> = self.arguments.iodepth.iter().copied().map(NonZeroU16::get).collect();
        if asked.is_empty() { DEPTHS.into() } else { asked }
    }

    fn disk(&self, disk: SharedDisk, rows: &mut Vec<Row>) -> Result<()> {
        self.progress.set_message(format!("{}: booting a guest", disk.name));
        let arena = Arena::open(&disk, self.arguments.poll)?;
        let depths = self.depths();
        // By depth and contestant, the rounds.
        let mut measured = vec![Vec::new(); depths.len() * Contestant::ALL.len()];
        for round in 1..=self.arguments.rounds.get() {
            for (d, &iodepth) in depths.iter().enumerate() {
                for (c, &contestant) in Contestant::ALL.iter().enumerate() {
                    self.interruption.check()?;
                    self.progress
                        .set_message(format!("{} {contestant} iodepth={iodepth} round {round}", disk.name));
                    let job =
                        fio::Job { block_size: self.arguments.bs, iodepth, runtime: self.arguments.runtime };
                    measured[d * Contestant::ALL.len() + c].push(arena.run(contestant, &job)?);
                    self.progress.inc(1);
                }
            }
        }
        arena.close()?;
        for (index, rounds) in measured.into_iter().enumerate() {
            let (d, c) = (index / Contestant::ALL.len(), index % Contestant::ALL.len());
            let Some(measured) = report::median(rounds) else { continue };
            let row =
                Row { disk: disk.name.clone(), contestant: Contestant::ALL[c], iodepth: depths[d], measured };
            if self.arguments.json {
                let json = row.to_json()?;
                let print = || writeln!(std::io::stdout(), "{json}");
                self.progress.suspend(print).context(OutputClosed)?;
            }
            rows.push(row);
        }
        Ok(())
    }
}
