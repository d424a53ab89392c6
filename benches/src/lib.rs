//! Benches of the pieces; see `README.md` beside this package's manifest.
//!
//! What several of them need is here: [`in_flight`].

pub mod in_flight;
