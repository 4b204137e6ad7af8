//! File system device (virtio 1.2 §5.11): carries FUSE requests between the guest and a [`crate::fs::Server`].
//!
//! Hostile: every descriptor and the bytes of every request. Ours: the server, and the tag the guest mounts.
//! Files may be slow, so requests are served by threads of the device's own; the event thread only wakes them, and
//! a reset never waits for them: what they were doing is thrown away when it is done.
//!
//! The guest mounts it with `mount -t virtiofs TAG DIR` and finds one directory per export, named by its number.

mod device;
#[cfg(test)]
mod tests;
mod wire;
mod workers;

pub use device::FsDevice;
pub use wire::{Tag, TagError};

/// Size of the ring for urgent requests, which are small.
const URGENT_QUEUE_SIZE: u16 = 128;

/// Size of the ring for all others: without indirect descriptors a request takes one descriptor per page, so this is some
/// fifteen of the largest requests at once.
const QUEUE_SIZE: u16 = 1024;

/// Most threads that serve one guest's files. They mostly wait for the disk; each costs a stack and two buffers.
const MAX_WORKERS: usize = 4;
