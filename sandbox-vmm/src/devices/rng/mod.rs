//! Entropy from the host's kernel (virtio 1.2 §5.4).
//!
//! Hostile: the buffers' number and size. It costs the host one `getrandom` per buffer, of bounded length.

mod device;

pub use device::EntropyDevice;
