//! Devices of the machine. Each has a folder with the same files: `mod.rs` (what it is, its limits), `device.rs`
//! (its [`virtio::VirtioDevice`]), `wire.rs` (what the guest and we write to each other).

pub mod blk;
pub mod fs;
pub mod rng;
pub mod serial;
pub mod virtio;
pub mod vsock;
