//! Where the time of a row's I/Os went: the controller's stages, which it samples itself, and what is left of the
//! latency that the driver saw.

use super::latency::Latency;
use super::report::{Row, block_size};
use anyhow::{Context, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table, TableComponent};
use serde::{Deserialize, Serialize};

/// Sums of what a controller has sampled, as its statistics have them.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Stages {
    samples: u64,
    queued_ns: u64,
    decode_ns: u64,
    disk_ns: u64,
    post_ns: u64,
}

/// The part of `ringpair serve --stats` that is looked at.
#[derive(Deserialize)]
struct Statistics {
    controllers: [Controller; 1],
}

#[derive(Deserialize)]
struct Controller {
    stages: Stages,
}

impl Stages {
    /// What a server's statistics say of its only controller.
    ///
    /// # Errors
    ///
    /// They do not say it.
    pub fn of_statistics(json: &[u8]) -> Result<Self> {
        let statistics: Statistics = serde_json::from_slice(json).context("reading the server's counters")?;
        let [controller] = statistics.controllers;
        Ok(controller.stages)
    }

    /// What has come since; `None` if nothing has.
    pub fn since(&self, before: &Self) -> Option<Self> {
        let stages = Self {
            samples: self.samples - before.samples,
            queued_ns: self.queued_ns - before.queued_ns,
            decode_ns: self.decode_ns - before.decode_ns,
            disk_ns: self.disk_ns - before.disk_ns,
            post_ns: self.post_ns - before.post_ns,
        };
        (stages.samples > 0).then_some(stages)
    }

    /// The means, and what they leave of a latency.
    pub fn explain(&self, latency: Latency) -> Explained {
        let mean = |sum: u64| sum / self.samples.max(1);
        let (queued, decode, disk, post) =
            (mean(self.queued_ns), mean(self.decode_ns), mean(self.disk_ns), mean(self.post_ns));
        let way = latency.mean.saturating_sub(queued + decode + disk + post);
        Explained { way, queued, decode, disk, post, samples: self.samples }
    }
}

/// Means of an I/O's stages, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    way: u64,
    queued: u64,
    decode: u64,
    disk: u64,
    post: u64,
    samples: u64,
}

/// The rows that were explained, with what the columns mean.
pub fn table(rows: &[Row]) -> Option<String> {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for line in [TableComponent::HeaderLines, TableComponent::MiddleHeaderIntersections] {
        table.set_style(line, '─');
    }
    table.set_header([
        "target", "rw", "bs", "iodepth", "way", "queued", "decode", "disk", "post", "mean", "samples",
    ]);
    let explained = rows.iter().filter_map(|row| Some((row, row.explained?)));
    for (row, Explained { way, queued, decode, disk, post, samples }) in explained {
        let (workload, mean) = (&row.workload, row.latency.mean);
        table.add_row([
            row.target.clone(),
            workload.pattern.to_string(),
            block_size(workload.block_size),
            workload.iodepth.to_string(),
            nanoseconds(way),
            nanoseconds(queued),
            nanoseconds(decode),
            nanoseconds(disk),
            nanoseconds(post),
            nanoseconds(mean),
            samples.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (!table.is_empty()).then(|| {
        format!(
            "Where the time of an I/O went, in nanoseconds (means of one in 251):\n\n{table}\n\n\
             way:    the driver's own time, and the way between the two: until the reactor looked at the doorbell,\n        \
             and until the driver looked at the completion; what the others leave of the mean latency\n\
             queued: seen by the reactor, behind others of the same batch\n\
             decode: fetched, validated, its addresses looked up\n\
             disk:   from its submission to the disk until that was done\n\
             post:   until its completion was in the driver's memory"
        )
    })
}

/// With a space at the thousands, as there are microseconds among nanoseconds.
fn nanoseconds(ns: u64) -> String {
    match (ns / 1_000_000, ns / 1000 % 1000, ns % 1000) {
        (0, 0, ns) => ns.to_string(),
        (0, us, ns) => format!("{us} {ns:03}"),
        (ms, us, ns) => format!("{ms} {us:03} {ns:03}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::rows;

    fn stages(samples: u64) -> Stages {
        let [queued_ns, decode_ns, disk_ns, post_ns] = [10, 20, 300, 5].map(|ns| ns * samples);
        Stages { samples, queued_ns, decode_ns, disk_ns, post_ns }
    }

    #[test]
    fn the_means_of_the_stages_and_the_way_make_up_the_latency() {
        let latency = Latency { mean: 1000, p50: 0, p99: 0, p999: 0, max: 0 };
        let explained = stages(30).since(&stages(10)).unwrap().explain(latency);
        let expected = Explained { way: 665, queued: 10, decode: 20, disk: 300, post: 5, samples: 20 };
        assert_eq!(explained, expected);
        assert_eq!(stages(10).since(&stages(10)), None);
    }

    #[test]
    fn stages_are_found_in_the_statistics() {
        let json = br#"{"controllers": [{"socket": "/s", "reads": 1, "stages":
            {"samples": 1, "queued_ns": 10, "decode_ns": 20, "disk_ns": 300, "post_ns": 5}}], "sleeps": [0]}"#;
        assert_eq!(Stages::of_statistics(json).unwrap(), stages(1));
        assert!(Stages::of_statistics(br#"{"controllers": [{"socket": "/s"}], "sleeps": []}"#).is_err());
    }

    #[test]
    fn only_rows_that_were_explained_are_in_the_table() {
        let mut rows = rows();
        assert_eq!(table(&rows), None);
        rows[0].explained = Some(stages(7).explain(rows[0].latency));
        let table = table(&rows).unwrap();
        assert_eq!(table.matches("disk.img").count(), 1, "{table}");
        assert_eq!([nanoseconds(7), nanoseconds(1_002), nanoseconds(3_000_004)], ["7", "1 002", "3 000 004"]);
    }
}
