//! The `ringpair` program.
fn main() {}
