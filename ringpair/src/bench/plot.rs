//! The figures as a picture: a column of two panels per target, I/Os a second above, latency below.

use super::latency::microseconds;
use super::picture::{self, Area, COLOURS, COLUMN, Drawn, FAINT, HEAD, brief, legend_text, unique};
use super::report::{Row, block_size, rate, time};
use anyhow::Result;
use plotters::prelude::*;
use std::path::Path;

const PANEL: u32 = 300;
const FOOT: u32 = 34;
/// From one depth to the next on the x axis.
const STEP: i32 = 99;

/// Draws `rows` into the SVG file at `path`.
///
/// # Errors
///
/// The file cannot be written.
pub fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let picture = Picture::of(rows);
    let size = (COLUMN * picture.targets.len().max(1) as u32, HEAD + 2 * PANEL + FOOT);
    picture::write(path, size, |root| picture.draw(root))
}

/// The rows, sorted into what is drawn apart and what is drawn together.
struct Picture<'a> {
    rows: &'a [Row],
    targets: Vec<&'a str>,
    /// Positions on the x axis.
    depths: Vec<u16>,
    /// Lines of a panel: what distinguishes rows of the same target and depth.
    lines: Vec<String>,
}

fn line_of(row: &Row) -> String {
    let workload = &row.workload;
    let jobs = if workload.numjobs > 1 { format!(" ×{}", workload.numjobs) } else { String::new() };
    format!("{} {}{jobs}", workload.pattern, block_size(workload.block_size))
}

impl<'a> Picture<'a> {
    fn of(rows: &'a [Row]) -> Self {
        let mut depths = unique(rows.iter().map(|row| row.workload.iodepth));
        depths.sort_unstable();
        Self {
            rows,
            targets: unique(rows.iter().map(|row| row.target.as_str())),
            depths,
            lines: unique(rows.iter().map(line_of)),
        }
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let (head, rest) = root.split_vertically(HEAD);
        let (panels, foot) = rest.split_vertically(2 * PANEL);
        self.legend(&head)?;
        let columns = panels.split_evenly((1, self.targets.len().max(1)));
        for (target, column) in self.targets.iter().zip(&columns) {
            let (above, below) = column.split_vertically(PANEL);
            self.panel(&above, target, &Quantity::IOPS)?;
            self.panel(&below, target, &Quantity::LATENCY)?;
        }
        picture::footnote(&foot, "I/Os in flight (iodepth) · logarithmic scales")
    }

    /// What the lines mean, above all panels.
    fn legend(&self, head: &Area<'_>) -> Drawn {
        picture::title(head, "ringpair bench")?;
        let (mut x, y) = (18, 44);
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            head.draw(&PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)))?;
            head.draw(&Circle::new((x + 11, y), 4, colour.filled()))?;
            x = legend_text(head, (x, y), line)?;
        }
        for dash in [0, 8, 16] {
            head.draw(&PathElement::new([(x + dash, y), (x + dash + 5, y)], FAINT.stroke_width(2)))?;
        }
        x = legend_text(head, (x, y), "the machine's limit")?;
        head.draw(&Rectangle::new([(x, y - 6), (x + 22, y + 6)], FAINT.mix(0.25).filled()))?;
        legend_text(head, (x, y), "latency: p50 up to p99")?;
        Ok(())
    }

    fn panel(&self, area: &Area<'_>, target: &str, quantity: &Quantity) -> Drawn {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.target == target).collect();
        let (low, high) = quantity.range(&rows);
        let last = self.depths.len().saturating_sub(1) as i32 * STEP;
        let mut chart = picture::panel(area, format!("{target} — {}", quantity.name), 15)
            .x_label_area_size(24)
            .build_cartesian_2d(
                (-STEP / 3..last + STEP / 3).with_key_points((0..=last).step_by(STEP as usize).collect()),
                (low..high).log_scale().with_key_points(ticks(low, high)),
            )?;
        let depth_name =
            |x: &i32| self.depths.get((*x / STEP) as usize).map_or_else(String::new, u16::to_string);
        let figure = |value: &f64| (quantity.label)(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_label_formatter(&depth_name).y_label_formatter(&figure);
        picture::axes(&mut mesh, (self.depths.len(), 12))?;
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let mut rows: Vec<&&Row> = rows.iter().filter(|row| line_of(row) == *line).collect();
            rows.sort_by_key(|row| row.workload.iodepth);
            let points = |value: fn(&Row) -> f64| -> Vec<(i32, f64)> {
                rows.iter().map(|row| (self.position(row), value(row))).collect()
            };
            if let Some(spread) = quantity.spread {
                let mut outline = points(quantity.value);
                outline.extend(points(spread).into_iter().rev());
                chart.draw_series([Polygon::new(outline, colour.mix(0.15).filled())])?;
            }
            if let Some(limit) = quantity.limit {
                chart.draw_series(DashedLineSeries::new(
                    points(limit),
                    5,
                    4,
                    colour.mix(0.7).stroke_width(2),
                ))?;
            }
            chart.draw_series(LineSeries::new(points(quantity.value), colour.stroke_width(3)))?;
            chart.draw_series(
                points(quantity.value).into_iter().map(|point| Circle::new(point, 4, colour.filled())),
            )?;
        }
        Ok(())
    }

    fn position(&self, row: &Row) -> i32 {
        self.depths.iter().position(|&depth| depth == row.workload.iodepth).unwrap_or(0) as i32 * STEP
    }
}

/// What a panel shows of each row.
struct Quantity {
    name: &'static str,
    value: fn(&Row) -> f64,
    /// The other edge of a band that begins at the value.
    spread: Option<fn(&Row) -> f64>,
    limit: Option<fn(&Row) -> f64>,
    label: fn(f64) -> String,
}

impl Quantity {
    const IOPS: Self = Self {
        name: "IOPS",
        value: |row| row.iops,
        spread: None,
        limit: Some(|row| row.limit.iops),
        label: |iops| brief(&rate(iops)),
    };
    const LATENCY: Self = Self {
        name: "latency",
        value: |row| microseconds(row.latency.p50.max(1)),
        spread: Some(|row| microseconds(row.latency.p99.max(1))),
        limit: None,
        label: |us| brief(&time((us * 1e3).round() as u64)),
    };

    /// Round bounds that hold all that is drawn, with room above.
    fn range(&self, rows: &[&Row]) -> (f64, f64) {
        let values = rows.iter().flat_map(|row| {
            [Some(self.value), self.spread, self.limit].into_iter().flatten().map(move |of| of(row))
        });
        let (low, high) = values
            .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)));
        (low.min(high) / 1.5, high * 1.5)
    }
}

/// 1, 2 and 5 of each power of ten between two bounds.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::rows;

    #[test]
    fn the_picture_names_every_target_line_and_depth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.svg");
        draw(&rows(), &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in
            ["disk.img,cache=none", "mem:512M", "null:1T", "randread 4k", "randwrite 4k", "128", "limit"]
        {
            assert!(svg.contains(text), "{text} is missing");
        }
        if let Some(copy) = std::env::var_os("RINGPAIR_KEEP_PLOT") {
            std::fs::copy(&path, copy).unwrap();
        }
    }

    #[test]
    fn one_row_makes_a_picture_too() {
        let folder = tempfile::tempdir().unwrap();
        draw(&rows()[..1], &folder.path().join("one.svg")).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = draw(&rows(), Path::new("/nonexistent/folder/x.svg")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/folder/x.svg"), "{error}");
    }
}
