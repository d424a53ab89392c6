//! The vfio-user front door.
