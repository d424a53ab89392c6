//! The comparison as a picture: a column for each disk, a panel for each quantity, bars in groups by depth.

use super::contestant::Contestant;
use super::report::Row;
use crate::bench::latency::microseconds;
use crate::bench::plot::{COLOURS, FAINT, GRID, INK, brief, label, legend_text, unique};
use crate::bench::report::{rate, time};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

const COLUMN: u32 = 420;
const PANEL: u32 = 230;
const HEAD: u32 = 64;
const FOOT: u32 = 30;
/// From one bar to the next, and from one group to the next, on the x axis.
const BAR: i32 = 10;
const GROUP: i32 = 40;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws `rows` into the SVG file at `path`.
///
/// # Errors
///
/// The file cannot be written.
pub fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let disks = unique(rows.iter().map(|row| row.disk.as_str()));
    let height = HEAD + PANEL * Quantity::ALL.len() as u32 + FOOT;
    let mut svg = String::new();
    {
        let size = (COLUMN * disks.len().max(1) as u32, height);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        picture(&root, rows, &disks).map_err(|error| anyhow!("drawing {}: {error}", path.display()))?;
    }
    std::fs::write(path, svg).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

fn picture(root: &Area<'_>, rows: &[Row], disks: &[&str]) -> Drawn {
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(HEAD);
    let (panels, foot) = rest.split_vertically(PANEL * Quantity::ALL.len() as u32);
    head.draw(&Text::new("ringpair bench --compare qemu", (16, 10), label(18, INK, HPos::Left)))?;
    let (mut x, y) = (18, 44);
    for (contestant, colour) in Contestant::ALL.iter().zip(COLOURS) {
        head.draw(&Rectangle::new([(x, y - 6), (x + 22, y + 6)], colour.filled()))?;
        x = legend_text(&head, (x, y), &contestant.to_string())?;
    }
    let all = panels.split_evenly((Quantity::ALL.len(), disks.len().max(1)));
    let places = Quantity::ALL.iter().flat_map(|quantity| disks.iter().map(move |disk| (quantity, disk)));
    for ((quantity, disk), area) in places.zip(&all) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.disk == *disk).collect();
        quantity.panel(area, disk, &rows)?;
    }
    let (width, _) = foot.dim_in_pixel();
    let text = "4 KiB random reads in one Linux guest, by I/Os in flight (iodepth)";
    foot.draw(&Text::new(text, (width as i32 / 2, 4), label(13, FAINT, HPos::Center)))
}

/// What a panel shows of each row.
struct Quantity {
    name: &'static str,
    value: fn(&Row) -> f64,
    label: fn(f64) -> String,
}

fn of_time(us: f64) -> String {
    brief(&time((us * 1e3).round() as u64))
}

impl Quantity {
    const ALL: [Self; 3] = [
        Self {
            name: "IOPS (more is better)",
            value: |row| row.measured.found.iops,
            label: |iops| brief(&rate(iops)),
        },
        Self {
            name: "latency, p50 (less is better)",
            value: |row| microseconds(row.measured.found.latency.p50),
            label: of_time,
        },
        Self {
            name: "host CPU time an I/O (less is better)",
            value: |row| row.measured.cpu_per_io.as_secs_f64() * 1e6,
            label: of_time,
        },
    ];

    fn panel(&self, area: &Area<'_>, disk: &str, rows: &[&Row]) -> Drawn {
        let depths = unique(rows.iter().map(|row| row.iodepth));
        let high = rows.iter().map(|row| (self.value)(row)).fold(f64::MIN_POSITIVE, f64::max) * 1.2;
        let last = depths.len().max(1) as i32 * GROUP;
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            .margin_top(6)
            .caption(format!("{disk} — {}", self.name), label(14, INK, HPos::Center))
            .x_label_area_size(22)
            .y_label_area_size(62)
            .build_cartesian_2d(
                (0..last)
                    .with_key_points((0..depths.len() as i32).map(|at| at * GROUP + GROUP / 2).collect()),
                0.0..high,
            )?;
        let depth_name = |x: &i32| {
            depths.get((*x / GROUP) as usize).map_or_else(String::new, |depth| format!("iodepth {depth}"))
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(FAINT)
            .x_labels(depths.len())
            .x_label_formatter(&depth_name)
            .y_labels(5)
            .y_label_formatter(&|value| (self.label)(*value))
            .label_style(label(12, FAINT, HPos::Center))
            .draw()?;
        let bars = Contestant::ALL.len() as i32;
        let place = |row: &Row| {
            let group = depths.iter().position(|depth| *depth == row.iodepth).unwrap_or(0) as i32;
            let bar = Contestant::ALL.iter().position(|it| *it == row.contestant).unwrap_or(0);
            let x = group * GROUP + (GROUP - bars * BAR) / 2 + bar as i32 * BAR;
            (x, COLOURS[bar])
        };
        for row in rows {
            let ((x, colour), value) = (place(row), (self.value)(row));
            chart.draw_series([Rectangle::new([(x + 1, 0.0), (x + BAR - 1, value)], colour.filled())])?;
            let style = label(11, INK, HPos::Center);
            let above = value + high * 0.075;
            chart.draw_series([Text::new((self.label)(value), (x + BAR / 2, above), style)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::report::tests::rows;

    #[test]
    fn the_picture_names_every_disk_device_depth_and_quantity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compare.svg");
        draw(&rows(), &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["file — IOPS", "null — latency", "CPU time", "QEMU nvme", "virtio-blk", "iodepth 32"]
        {
            assert!(svg.contains(text), "{text} is missing");
        }
        if let Some(copy) = std::env::var_os("RINGPAIR_KEEP_PLOT") {
            std::fs::copy(&path, copy).unwrap();
        }
    }
}
