//! An emulated NVMe PCI function and its vfio-user front door.
