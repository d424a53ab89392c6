//! SIGINT and SIGTERM to commands that hold a controller: they let go of it in order, and then end.

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the program was told to end. Who has one looks at it wherever it can stop.
#[derive(Clone)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// From here on, the first signal is kept for whoever looks; the second one ends the program where it stands.
    ///
    /// # Errors
    ///
    /// The signals cannot be caught.
    pub fn watch() -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Registered first: it sees what signals before this one have set.
            flag::register_conditional_shutdown(signal, 1, told.clone()).context("catching signals")?;
            flag::register(signal, told.clone()).context("catching signals")?;
        }
        Ok(Self(told))
    }

    /// Was it?
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends what called it, if so.
    ///
    /// # Errors
    ///
    /// It was told to end.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.is_told(), "interrupted");
        Ok(())
    }
}
