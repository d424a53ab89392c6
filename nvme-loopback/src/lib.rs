//! Joins nvme-emu and nvme-vfio in one process: the emulated PCI function as a driver's transport.
