//! The figures, for a person and for a program.

use super::explain::{self, Explained};
use super::latency::{Latency, microseconds};
use super::limits::Bound;
use super::workload::Workload;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table, TableComponent};
use serde::Serialize;

/// A finished row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The target, as it was named.
    pub target: String,
    /// What was done to it.
    pub workload: Workload,
    /// I/Os a second.
    pub iops: f64,
    /// How long they took.
    pub latency: Latency,
    /// What the machine could have done.
    pub limit: Bound,
    /// Whether the machine held still.
    pub steady: bool,
    /// Where the time of an I/O went, if that was asked for.
    pub explained: Option<Explained>,
}

/// A row as `--json` prints it. `limit` is in I/Os a second, `mb_s` in 10⁶ bytes a second.
#[derive(Serialize)]
struct JsonRow<'a> {
    target: &'a str,
    rw: String,
    bs: u32,
    iodepth: u16,
    numjobs: u16,
    iops: u64,
    mb_s: f64,
    lat_ns: Latency,
    limit: u64,
    limit_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    above_ring_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explained_ns: Option<Explained>,
}

impl Row {
    /// 10⁶ bytes a second.
    pub fn megabytes(&self) -> f64 {
        self.iops * f64::from(self.workload.block_size) / 1e6
    }

    /// The part of the limit that was reached.
    pub fn ratio(&self) -> f64 {
        self.iops / self.limit.iops
    }

    /// What an I/O takes more than the bare ring's round trip, in nanoseconds, where there is one after another.
    pub fn above_ring_ns(&self) -> Option<f64> {
        let period = |iops: f64| 1e9 * f64::from(self.workload.numjobs) / iops;
        let comparable = self.workload.iodepth == 1 && self.limit.set_by == "ring";
        comparable.then(|| period(self.iops) - period(self.limit.iops))
    }

    /// One line of JSON.
    ///
    /// # Errors
    ///
    /// None that these types can cause.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
        serde_json::to_string(&JsonRow {
            target: &self.target,
            rw: self.workload.pattern.to_string(),
            bs: self.workload.block_size,
            iodepth: self.workload.iodepth,
            numjobs: self.workload.numjobs,
            iops: self.iops.round() as u64,
            mb_s: rounded(self.megabytes(), 10.0),
            lat_ns: self.latency,
            limit: self.limit.iops.round() as u64,
            limit_ratio: rounded(self.ratio(), 1e4),
            above_ring_ns: self.above_ring_ns().map(|above| rounded(above, 10.0)),
            explained_ns: self.explained,
        })
    }
}

/// All rows as a table, with what its marks mean.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for line in [TableComponent::HeaderLines, TableComponent::MiddleHeaderIntersections] {
        table.set_style(line, '─');
    }
    table.set_header([
        "target", "rw", "bs", "iodepth", "numjobs", "IOPS", "MB/s", "mean", "p50", "p99", "p99.9", "limit",
        "ratio", "above",
    ]);
    for row in rows {
        let Latency { mean, p50, p99, p999, .. } = row.latency;
        let mark = if row.steady { "" } else { " ~" };
        table.add_row([
            row.target.clone(),
            row.workload.pattern.to_string(),
            block_size(row.workload.block_size),
            row.workload.iodepth.to_string(),
            row.workload.numjobs.to_string(),
            rate(row.iops),
            format!("{:.0}", row.megabytes()),
            time(mean),
            time(p50),
            time(p99),
            time(p999),
            format!("{} {}{mark}", rate(row.limit.iops), row.limit.set_by),
            format!("{:.2}", row.ratio()),
            row.above_ring_ns().map_or_else(String::new, |above| format!("{above:.0} ns")),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let explained = explain::table(rows).map(|table| format!("\n\n{table}")).unwrap_or_default();
    format!("{table}\n\n{}{explained}", legend(rows))
}

fn legend(rows: &[Row]) -> String {
    let mut lines = vec!["limit: what this machine does in the same place and the same seconds, in IOPS"];
    for (set_by, meaning) in [
        ("ring", "  ring      two CPUs passing SQEs, doorbells and CQEs, and nothing else"),
        ("copy", "  copy      one CPU copying blocks between two memories"),
        ("io_uring", "  io_uring  a plain io_uring loop on the same file"),
    ] {
        if rows.iter().any(|row| row.limit.set_by == set_by) {
            lines.push(meaning);
        }
    }
    if rows.iter().any(|row| row.above_ring_ns().is_some()) {
        lines.push(
            "above: what an I/O takes more than the ring's round trip, where there is one after another",
        );
    }
    if rows.iter().any(|row| !row.steady) {
        lines.push("  ~         not steady: it moved by more than 10 %, or others took CPU time, each time the row was run");
    }
    lines.join("\n")
}

/// A rate in three digits: `934`, `84.1 k`, `4.12 M`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 999_500.0 => format!("{} M", three_digits(rate / 1e6)),
        rate if rate >= 999.5 => format!("{} k", three_digits(rate / 1e3)),
        rate => three_digits(rate),
    }
}

/// A time in three digits: `0.57 µs`, `84.1 µs`, `4.12 ms`.
pub fn time(ns: u64) -> String {
    match microseconds(ns) {
        us if us >= 999_500.0 => format!("{} s", three_digits(us / 1e6)),
        us if us >= 999.5 => format!("{} ms", three_digits(us / 1e3)),
        us => format!("{} µs", three_digits(us)),
    }
}

/// A block size as it is given: `512`, `4k`, `1M`.
pub fn block_size(bytes: u32) -> String {
    if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) {
        format!("{}M", bytes >> 20)
    } else if bytes >= 1024 && bytes.is_multiple_of(1024) {
        format!("{}k", bytes >> 10)
    } else {
        bytes.to_string()
    }
}

fn three_digits(value: f64) -> String {
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::workload::Pattern;

    /// Rows of three targets, made up, for the tests of this module and of the picture.
    pub fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for (target, scale, set_by) in [
            ("disk.img,cache=none", 20e3, "io_uring"),
            ("mem:512M", 0.6e6, "copy"),
            ("null:1T", 1.2e6, "ring"),
        ] {
            for (pattern, cost) in [(Pattern::RandomRead, 1.0), (Pattern::RandomWrite, 1.4)] {
                for iodepth in [1u16, 32, 128] {
                    let iops = scale * f64::from(iodepth).powf(0.45) / cost;
                    let mean = (1e9 * f64::from(iodepth) / iops) as u64;
                    rows.push(Row {
                        target: target.to_owned(),
                        workload: Workload {
                            pattern,
                            read_percent: 50,
                            block_size: 4096,
                            iodepth,
                            numjobs: 1,
                        },
                        iops,
                        latency: Latency {
                            mean,
                            p50: mean * 9 / 10,
                            p99: mean * 2,
                            p999: mean * 4,
                            max: mean * 30,
                        },
                        limit: Bound { iops: iops * 1.3, set_by },
                        steady: iodepth != 32,
                        explained: None,
                    });
                }
            }
        }
        rows
    }

    #[test]
    fn json_has_exactly_the_documented_fields() {
        let json: serde_json::Value = serde_json::from_str(&rows()[0].to_json().unwrap()).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(
            keys(&json),
            ["bs", "iodepth", "iops", "lat_ns", "limit", "limit_ratio", "mb_s", "numjobs", "rw", "target"]
        );
        assert_eq!(keys(&json["lat_ns"]), ["max", "mean", "p50", "p99", "p999"]);
        assert_eq!(json["rw"], "randread");
        assert_eq!(json["bs"], 4096);
        assert_eq!(json["limit"], 26_000);
        assert_eq!(json["limit_ratio"], 0.7692);
        assert_eq!(json["mb_s"], 81.9);
    }

    #[test]
    fn what_is_above_the_ring_is_told_of_rows_of_one_io_after_another() {
        let above = |target: &str, iodepth: u16| {
            let mut rows = rows();
            rows.retain(|row| row.target == target && row.workload.iodepth == iodepth);
            let json: serde_json::Value = serde_json::from_str(&rows[0].to_json().unwrap()).unwrap();
            json.get("above_ring_ns").map(|ns| ns.as_f64().unwrap())
        };
        // 833.3 ns an I/O, where 641.0 would do.
        assert_eq!(above("null:1T", 1), Some(192.3));
        assert_eq!(above("null:1T", 32), None);
        assert_eq!(above("disk.img,cache=none", 1), None);
    }

    #[test]
    fn the_table_marks_rows_whose_limit_moved_and_explains_what_it_uses() {
        let table = table(&rows());
        assert!(table.contains("20.0 k"), "{table}");
        assert!(table.contains("io_uring ~"), "{table}");
        assert!(table.contains("copying blocks"), "{table}");
        let steady = super::table(&rows()[..1]);
        assert!(!steady.contains('~') && !steady.contains("copying"), "{steady}");
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(rate(999.0), "999");
        assert_eq!(rate(999.9), "1.00 k");
        assert_eq!(rate(84_123.0), "84.1 k");
        assert_eq!(rate(12_345_678.0), "12.3 M");
        assert_eq!(time(571), "0.57 µs");
        assert_eq!(time(4_123_000), "4.12 ms");
        assert_eq!(block_size(4096), "4k");
        assert_eq!(block_size(520), "520");
        assert_eq!(block_size(1 << 20), "1M");
    }
}
