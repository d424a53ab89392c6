//! How far long work is, on standard error: a bar on a terminal, a line for each tenth elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write as _};

/// A progress bar, or nothing unless asked for.
pub enum Progress {
    Silent,
    Bar(ProgressBar),
    Lines { tenths: u64 },
}

impl Progress {
    /// Shown if `wanted`.
    pub fn new(wanted: bool) -> Self {
        if !wanted {
            return Self::Silent;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { tenths: 0 };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {eta:>4}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// So much of so much is done.
    pub fn show(&mut self, done: u64, of: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_length(of);
                bar.set_position(done);
            }
            Self::Lines { tenths } => {
                let part = (u128::from(done) * 10).checked_div(of.into());
                // Of nothing, all is done.
                let now = part.map_or(10, |part| part as u64);
                if now > *tenths {
                    *tenths = now;
                    let _ = writeln!(std::io::stderr(), "{} %", now * 10);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
