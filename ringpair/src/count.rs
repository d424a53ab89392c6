//! Counts on the command line.

use std::num::NonZeroU16;

/// A number of things of which there is at least one.
pub fn count(text: &str) -> Result<NonZeroU16, String> {
    text.parse().map_err(|_| format!("expected a number from 1 to {}", u16::MAX))
}
