//! The comparison, for a person and for a program.

use super::contestant::Contestant;
use super::guest::Measured;
use crate::bench::report::{rate, time};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table, TableComponent};
use serde::Serialize;

/// What a contestant came to on a disk at a depth.
#[derive(Clone, Debug)]
pub struct Row {
    /// The disk, as it was named.
    pub disk: String,
    /// Who.
    pub contestant: Contestant,
    /// Reads in flight.
    pub iodepth: u16,
    /// Its median round.
    pub measured: Measured,
}

/// The round with the median rate (of two in the middle, the lower): one that really was, so that its figures belong
/// together.
pub fn median(mut rounds: Vec<Measured>) -> Option<Measured> {
    rounds.sort_by(|a, b| a.found.iops.total_cmp(&b.found.iops));
    rounds.get(rounds.len().saturating_sub(1) / 2).copied()
}

/// A row as `--json` prints it.
#[derive(Serialize)]
struct JsonRow<'a> {
    disk: &'a str,
    device: Contestant,
    iodepth: u16,
    iops: u64,
    lat_ns: crate::bench::latency::Latency,
    cpu_ns_per_io: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    doorbell_messages_per_io: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interrupts_per_io: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sleeps_per_io: Option<f64>,
}

impl Row {
    /// One line of JSON.
    ///
    /// # Errors
    ///
    /// None that these types can cause.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let Measured { found, cpu_per_io, counted } = &self.measured;
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        serde_json::to_string(&JsonRow {
            disk: &self.disk,
            device: self.contestant,
            iodepth: self.iodepth,
            iops: found.iops.round() as u64,
            lat_ns: found.latency,
            cpu_ns_per_io: cpu_per_io.as_nanos() as u64,
            doorbell_messages_per_io: counted.map(|it| rounded(it.doorbell_messages)),
            interrupts_per_io: counted.map(|it| rounded(it.interrupts)),
            sleeps_per_io: counted.map(|it| rounded(it.sleeps)),
        })
    }

    /// QEMU's `nvme` on the same disk at the same depth.
    fn peer<'a>(&self, rows: &'a [Row]) -> Option<&'a Row> {
        rows.iter().find(|row| {
            row.contestant == Contestant::QemuNvme && row.disk == self.disk && row.iodepth == self.iodepth
        })
    }
}

/// All rows as a table, and what its columns mean.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for line in [TableComponent::HeaderLines, TableComponent::MiddleHeaderIntersections] {
        table.set_style(line, '─');
    }
    table.set_header([
        "disk",
        "device",
        "iodepth",
        "IOPS",
        "ratio",
        "p50",
        "ratio",
        "p99",
        "CPU/IO",
        "ratio",
        "doorbells/IO",
        "interrupts/IO",
    ]);
    for row in rows {
        let Measured { found, cpu_per_io, counted } = &row.measured;
        let peer = row.peer(rows);
        let ratio = |own: f64, of: fn(&Measured) -> f64| {
            peer.map_or_else(String::new, |peer| format!("{:.2}", own / of(&peer.measured)))
        };
        let per_io = |of: Option<f64>| of.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        table.add_row([
            row.disk.clone(),
            row.contestant.to_string(),
            row.iodepth.to_string(),
            rate(found.iops),
            ratio(found.iops, |peer| peer.found.iops),
            time(found.latency.p50),
            ratio(found.latency.p50 as f64, |peer| peer.found.latency.p50 as f64),
            time(found.latency.p99),
            time(cpu_per_io.as_nanos() as u64),
            ratio(cpu_per_io.as_secs_f64(), |peer| peer.cpu_per_io.as_secs_f64()),
            per_io(counted.map(|it| it.doorbell_messages)),
            per_io(counted.map(|it| it.interrupts)),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n\n{LEGEND}")
}

const LEGEND: &str = "\
4 KiB unless --bs says otherwise; the median of the rounds
ratio: to QEMU's nvme on the same disk in the same guest: more IOPS are better, and less of the rest
CPU/IO: processor time of the host, of QEMU (the guest's processor included) and of our server together
doorbells/IO, interrupts/IO: messages that the guest's doorbell writes cost, and interrupts, as our server counts them";

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::compare::fio::Found;
    use crate::bench::compare::guest::Counted;
    use crate::bench::latency::Latency;
    use std::time::Duration;

    pub fn measured(iops: f64, iodepth: u16) -> Measured {
        let mean = (1e9 * f64::from(iodepth) / iops) as u64;
        let latency = Latency { mean, p50: mean * 9 / 10, p99: mean * 2, p999: mean * 4, max: mean * 9 };
        Measured {
            found: Found { iops, latency },
            cpu_per_io: Duration::from_secs_f64(1.1 / iops),
            counted: None,
        }
    }

    /// Two disks at two depths, made up.
    pub fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for (disk, scale) in [("file", 8000.0), ("null", 11_000.0)] {
            for iodepth in [1, 32] {
                for (contestant, share) in Contestant::ALL.into_iter().zip([1.2, 1.0, 1.1]) {
                    let mut measured = measured(scale * share * f64::from(iodepth).powf(0.25), iodepth);
                    measured.counted = (contestant == Contestant::Ringpair).then_some(Counted {
                        doorbell_messages: 0.0123,
                        interrupts: 0.0456,
                        sleeps: 0.5,
                    });
                    rows.push(Row { disk: disk.to_owned(), contestant, iodepth, measured });
                }
            }
        }
        rows
    }

    #[test]
    fn the_median_is_a_round_that_was() {
        let rounds = [3.0, 1.0, 2.0].map(|iops| measured(iops, 1)).into();
        assert_eq!(median(rounds).unwrap().found.iops, 2.0);
        assert!(median(Vec::new()).is_none());
    }

    #[test]
    fn ratios_are_to_qemus_nvme_on_the_same_disk_at_the_same_depth() {
        let table = table(&rows());
        let line = |start: &[&str]| {
            table.lines().find(|line| start.iter().all(|word| line.contains(word))).unwrap().to_owned()
        };
        assert!(line(&["file", "QEMU nvme"]).contains("1.00"), "{table}");
        let ours = line(&["file", "ringpair"]);
        assert!(ours.contains("1.20") && ours.contains("0.012") && ours.contains("0.046"), "{table}");
        assert!(line(&["null", "virtio-blk"]).contains('–'), "{table}");
    }

    #[test]
    fn json_has_counts_where_there_are_any() {
        let json =
            |row: &Row| -> serde_json::Value { serde_json::from_str(&row.to_json().unwrap()).unwrap() };
        let (ours, theirs) = (json(&rows()[0]), json(&rows()[1]));
        assert_eq!((&ours["device"], &ours["interrupts_per_io"]), (&"ringpair".into(), &0.0456.into()));
        assert_eq!((&theirs["device"], theirs.get("interrupts_per_io")), (&"qemu-nvme".into(), None));
    }
}
