//! Criterion benches of the pieces.
