//! What a guest can do wrong on a ring or in a request. One enum for all devices, since the answer is always the
//! same: that device is reset and marked, never more.

/// The guest broke the rules of virtio or of a device. Never our host's or caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// The available ring announces more chains than it has slots for, or cannot be read.
    #[error("the available ring of queue {queue} is broken: {detail}")]
    BrokenRing {
        /// Index of the queue.
        queue: u16,
        /// What was found.
        detail: String,
    },
    /// A chain loops, leaves its descriptor table, or has more descriptors than the ring. An indirect table, which was
    /// not offered, is counted by the same measure.
    #[error("the descriptor chain at {head} of queue {queue} is malformed")]
    BrokenChain {
        /// Index of the queue.
        queue: u16,
        /// First descriptor of the chain.
        head: u16,
    },
    /// A chain has a readable descriptor after a writable one (virtio 1.2 §2.7.4.2).
    #[error("the descriptor chain at {head} of queue {queue} has a readable buffer after a writable one")]
    MixedChain {
        /// Index of the queue.
        queue: u16,
        /// First descriptor of the chain.
        head: u16,
    },
    /// A buffer reaches past this machine's memory.
    #[error("a buffer of {len} bytes at {address:#x} is outside guest memory")]
    OutsideMemory {
        /// Guest physical address of the buffer.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The buffers are too small for the fixed part of a request or of its answer.
    #[error("a request has {have} bytes where {need} are needed")]
    ShortRequest {
        /// Bytes that are left in the chain.
        have: usize,
        /// Bytes that were needed.
        need: usize,
    },
    /// The driver broke the initialisation sequence (virtio 1.2 §3.1).
    #[error("the driver broke the initialisation sequence: {0}")]
    Sequence(&'static str),
    /// A request that makes no sense to this device, where the device has no better answer.
    #[error("a request this device cannot answer: {0}")]
    BadRequest(&'static str),
}
