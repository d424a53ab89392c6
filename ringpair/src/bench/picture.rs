//! What the pictures of figures have in common: colours, texts, axes, and the SVG file around them.

use anyhow::{Result, anyhow};
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Width of a column of panels.
pub const COLUMN: u32 = 420;
/// Height of what stands above all panels.
pub const HEAD: u32 = 64;

pub const INK: RGBColor = RGBColor(0x1F, 0x29, 0x33);
pub const FAINT: RGBColor = RGBColor(0x6B, 0x77, 0x85);
const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEB);
/// Distinct for the colour-blind too (Okabe and Ito).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Draws a white picture of `size` pixels into the SVG file at `path`.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(path: &Path, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = root.fill(&WHITE).and_then(|()| draw(&root));
        drawn.map_err(|error| anyhow!("drawing {}: {error}", path.display()))?;
    }
    std::fs::write(path, svg).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

/// Writes what the picture is of.
pub fn title(head: &Area<'_>, text: &str) -> Drawn {
    head.draw(&Text::new(text, (16, 10), label(18, INK, HPos::Left)))
}

/// Writes what the x axes of all panels are.
pub fn footnote(foot: &Area<'_>, text: &str) -> Drawn {
    let (width, _) = foot.dim_in_pixel();
    foot.draw(&Text::new(text, (width as i32 / 2, 4), label(13, FAINT, HPos::Center)))
}

/// Writes a legend's text beside its mark, and says where the next mark goes.
pub fn legend_text(head: &Area<'_>, (x, y): (i32, i32), text: &str) -> Drawn<i32> {
    head.draw(&Text::new(text.to_owned(), (x + 28, y - 7), label(13, INK, HPos::Left)))?;
    // The backend has no font to measure with; this is what 13 pixels of sans serif come to.
    Ok(x + 28 + 20 + text.chars().count() as i32 * 7)
}

/// A panel's margins and caption.
pub fn panel<'a, 'b>(area: &'a Area<'b>, caption: String, size: u32) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin(14).margin_top(6).caption(caption, label(size, INK, HPos::Center)).y_label_area_size(62);
    chart
}

/// The look of a panel's axes: lines across, and `ticks` labels along.
pub fn axes<X, Y>(mesh: &mut MeshStyle<'_, '_, X, Y, SVGBackend<'_>>, ticks: (usize, usize)) -> Drawn
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
{
    mesh.disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .x_labels(ticks.0)
        .y_labels(ticks.1)
        .label_style(label(12, FAINT, HPos::Center))
        .draw()
}

/// `10.0 k` as `10 k`: an axis has round numbers.
pub fn brief(figure: &str) -> String {
    match figure.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => figure.to_owned(),
    }
}

pub fn label<'a>(size: u32, colour: RGBColor, align: HPos) -> TextStyle<'a> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(align, VPos::Top))
}

/// Each value once, in the order of their first appearance.
pub fn unique<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}
