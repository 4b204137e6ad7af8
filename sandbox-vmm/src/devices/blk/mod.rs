//! A block device over a descriptor (virtio 1.2 §5.2).
//!
//! Hostile: every request. Ours: the file, whose size is taken once. A host error is the guest's `IOERR` and is told
//! to the orchestrator, once until something succeeds again; the guest cannot reach past the file or make it grow.

mod device;
mod wire;

pub use device::{BlockDevice, DiskAccess, DiskTrouble};
