//! A polling userspace NVMe driver.

pub mod transport;

pub use transport::Transport;
