#![forbid(unsafe_code)]
//! The NVMe wire format: registers, commands, completions, data structures. No I/O.
