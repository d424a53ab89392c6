//! A polling userspace NVMe driver.
