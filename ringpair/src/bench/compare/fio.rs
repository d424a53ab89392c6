//! fio in the guest: how it is called, and what it says.

use crate::bench::latency::Latency;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;

/// Random reads by io_uring.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Bytes a read.
    pub block_size: u32,
    /// Reads in flight.
    pub iodepth: u16,
    /// How long it is measured, after [`RAMP`].
    pub runtime: Duration,
}

/// How long fio reads before it counts.
pub const RAMP: Duration = Duration::from_secs(1);

impl Job {
    /// The command that reads from the first `size` bytes of `device`.
    pub fn command(&self, device: &str, size: u64) -> String {
        format!(
            "fio --name=read --filename={device} --direct=1 --rw=randread --bs={} --size={size} --ioengine=io_uring \
             --iodepth={} --norandommap --randrepeat=0 --time_based --ramp_time={}ms --runtime={}ms --output-format=json",
            self.block_size,
            self.iodepth,
            RAMP.as_millis(),
            self.runtime.as_millis().max(1),
        )
    }
}

/// What fio found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Reads a second.
    pub iops: f64,
    /// From submission to completion, as the guest's program sees it.
    pub latency: Latency,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobOutput>,
}

#[derive(Deserialize)]
struct JobOutput {
    error: i32,
    read: Reads,
}

#[derive(Deserialize)]
struct Reads {
    iops: f64,
    lat_ns: Statistics,
    clat_ns: Percentiles,
}

#[derive(Deserialize)]
struct Statistics {
    mean: f64,
    max: f64,
}

#[derive(Deserialize)]
struct Percentiles {
    #[serde(default)]
    percentile: HashMap<String, f64>,
}

/// Reads fio's JSON.
///
/// # Errors
///
/// It is something else, or reads failed.
pub fn parse(text: &str) -> Result<Found> {
    // Notes may come before the object.
    let start = text.find('{').with_context(|| format!("fio says nothing: {text}"))?;
    let output: Output = serde_json::from_str(&text[start..]).context("reading what fio says")?;
    let job = output.jobs.first().context("fio says nothing of its job")?;
    ensure!(job.error == 0, "fio's reads failed with errno {}", job.error);
    let percentile = |name: &str| -> Result<u64> {
        let value = job.read.clat_ns.percentile.get(name);
        Ok(value.copied().with_context(|| format!("fio gives no percentile {name}"))? as u64)
    };
    Ok(Found {
        iops: job.read.iops,
        latency: Latency {
            mean: job.read.lat_ns.mean as u64,
            p50: percentile("50.000000")?,
            p99: percentile("99.000000")?,
            p999: percentile("99.900000")?,
            max: job.read.lat_ns.max as u64,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_found() {
        let text = r#"fio: a note
            {"fio version": "fio-3.33", "jobs": [{"jobname": "read", "error": 0, "read": {"iops": 1234.5,
             "lat_ns": {"min": 1, "max": 900, "mean": 100.5},
             "clat_ns": {"percentile": {"50.000000": 90, "99.000000": 200, "99.900000": 400}}}}]}"#;
        let found = parse(text).unwrap();
        assert_eq!(found.iops, 1234.5);
        assert_eq!((found.latency.p50, found.latency.p99, found.latency.max), (90, 200, 900));
    }

    #[test]
    fn reads_that_failed_are_an_error_and_so_is_anything_else() {
        let text = r#"{"jobs": [{"error": 5, "read": {"iops": 0, "lat_ns": {"max": 0, "mean": 0}, "clat_ns": {}}}]}"#;
        assert!(parse(text).unwrap_err().to_string().contains("errno 5"));
        assert!(parse("fio: not found").is_err() && parse("{}").is_err());
    }
}
