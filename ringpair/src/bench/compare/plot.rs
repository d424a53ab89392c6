//! The comparison as a picture: a column for each disk, a panel for each quantity, bars in groups by depth.

use super::contestant::Contestant;
use super::report::Row;
use crate::bench::latency::microseconds;
use crate::bench::picture::{
    self, Area, COLOURS, COLUMN, Drawn, HEAD, INK, brief, label, legend_text, unique,
};
use crate::bench::report::{rate, time};
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

const PANEL: u32 = 230;
const FOOT: u32 = 30;
/// From one bar to the next, and from one group to the next, on the x axis.
const BAR: i32 = 10;
const GROUP: i32 = 40;

/// Draws `rows` into the SVG file at `path`.
///
/// # Errors
///
/// The file cannot be written.
pub fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let disks = unique(rows.iter().map(|row| row.disk.as_str()));
    let height = HEAD + PANEL * Quantity::ALL.len() as u32 + FOOT;
    let size = (COLUMN * disks.len().max(1) as u32, height);
    picture::write(path, size, |root| draw_all(root, rows, &disks))
}

fn draw_all(root: &Area<'_>, rows: &[Row], disks: &[&str]) -> Drawn {
    let (head, rest) = root.split_vertically(HEAD);
    let (panels, foot) = rest.split_vertically(PANEL * Quantity::ALL.len() as u32);
    picture::title(&head, "ringpair bench --compare qemu")?;
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
    picture::footnote(&foot, "4 KiB random reads in one Linux guest, by I/Os in flight (iodepth)")
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
        let mut chart = picture::panel(area, format!("{disk} — {}", self.name), 14)
            .x_label_area_size(22)
            .build_cartesian_2d(
                (0..last)
                    .with_key_points((0..depths.len() as i32).map(|at| at * GROUP + GROUP / 2).collect()),
                0.0..high,
            )?;
        let depth_name = |x: &i32| {
            depths.get((*x / GROUP) as usize).map_or_else(String::new, |depth| format!("iodepth {depth}"))
        };
        let figure = |value: &f64| (self.label)(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_label_formatter(&depth_name).y_label_formatter(&figure);
        picture::axes(&mut mesh, (depths.len(), 5))?;
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
