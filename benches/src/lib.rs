//! Benches of the pieces; see `README.md` beside this package's manifest.
