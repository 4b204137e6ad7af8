//! virtio 1.2 over MMIO: the transport, the rings, and the trait every device implements.
//!
//! # How a device runs
//! 1. The machine puts the device in a slot. The guest's driver negotiates with the transport ([`mmio`]), which
//!    checks every step; the device sees nothing of it but reads of its configuration space.
//! 2. On `DRIVER_OK` the transport calls [`VirtioDevice::activate`] with validated [`queue::VirtQueue`]s.
//! 3. When the guest rings a queue's doorbell, [`VirtioDevice::notify`] is called: on the shared event thread, or on
//!    a thread of the device's own ([`VirtioDevice::dispatch`]).
//! 4. An error from `notify` is the *guest's* fault: the transport marks the device as needing a reset, tells the
//!    driver and the orchestrator, and calls [`VirtioDevice::reset`]. The machine goes on.
//! 5. `reset` also comes when the driver asks for it, at any time. After it the device starts again at 1.
//!
//! The calls of one device never overlap: the slot holds a lock around each of them.

pub mod chain;
pub mod fault;
pub mod interrupt;
pub mod mmio;
pub mod queue;
#[cfg(test)]
pub(crate) mod testing;

use std::os::fd::BorrowedFd;

pub use chain::{Chain, Reader, Writer};
pub use fault::GuestFault;
pub use interrupt::{Interrupt, IrqLine};
pub use mmio::MmioTransport;
pub use queue::{Progress, VirtQueue};

use crate::doorbell::Doorbell;
use crate::memory::GuestRam;

/// Device ids of virtio 1.2 §5.
pub mod device_id {
    /// Block device, §5.2.
    pub const BLOCK: u32 = 2;
    /// Entropy device, §5.4.
    pub const ENTROPY: u32 = 4;
    /// Socket device, §5.10.
    pub const VSOCK: u32 = 19;
    /// File system device, §5.11.
    pub const FS: u32 = 26;
}

/// Which thread calls [`VirtioDevice::notify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// The event thread, shared by all such devices: `notify` must never wait for anything.
    EventThread,
    /// A thread made for this device: `notify` may wait for a file system. It still returns after a bounded amount
    /// of work, so that a reset gets its turn.
    OwnThread,
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory. The queues hold it too.
    pub memory: GuestRam,
    /// One queue per entry of [`VirtioDevice::queue_sizes`], in that order. `None` where the driver did not make that
    /// queue ready, which it may do; every `Some` was checked to lie inside guest memory.
    pub queues: Vec<Option<VirtQueue>>,
    /// One doorbell per queue. Ringing one makes `notify` be called for it: use it to continue later, or to hand
    /// work back from a thread of your own. They stay the same over resets.
    pub doorbells: Vec<Doorbell>,
    /// How to interrupt the driver. Clone it into worker threads.
    pub interrupt: Interrupt,
    /// The feature bits both sides agreed on: a subset of what was offered, checked.
    pub features: u64,
}

impl Activation {
    /// What a device with one queue needs.
    ///
    /// # Errors
    /// The driver left it unready.
    pub fn only_queue(self) -> Result<(VirtQueue, Interrupt), ActivateError> {
        let queue = self.queues.into_iter().next().flatten();
        Ok((queue.ok_or(ActivateError::MissingQueue(0))?, self.interrupt))
    }
}

/// Answers a read of a configuration space that is `space`; see [`VirtioDevice::read_config`].
pub fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = space.get(start..).unwrap_or(&[]);
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

/// Why a device cannot start with what its driver chose. Answered like any guest fault.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue this device cannot work without was left unready.
    #[error("the driver started the device without its queue {0}")]
    MissingQueue(u16),
    /// The host could not provide what the device needs (a thread, a descriptor).
    #[error("the host could not provide what the device needs: {0}")]
    Host(#[from] std::io::Error),
}

/// One virtio device, without its transport.
///
/// No method may panic, allocate without bound, or loop without bound, whatever the guest did. Only
/// [`Dispatch::OwnThread`] devices may wait, and only in `notify`.
pub trait VirtioDevice: Send {
    /// A short name for logs and notices, such as `"blk"`.
    fn name(&self) -> &'static str;

    /// The id of virtio 1.2 §5; see [`device_id`].
    fn device_id(&self) -> u32;

    /// Device specific feature bits offered (bits 0 to 23 and 50 up). The transport adds `VERSION_1` and `EVENT_IDX`;
    /// indirect descriptors are never offered.
    fn features(&self) -> u64 {
        0
    }

    /// Largest size of each queue, powers of two, at most [`queue::MAX_QUEUE_SIZE`]. Its length is the number of
    /// queues. Must not change.
    fn queue_sizes(&self) -> &[u16];

    /// Which thread `notify` runs on.
    fn dispatch(&self) -> Dispatch {
        Dispatch::EventThread
    }

    /// Reads the configuration space at `offset` into `data` (1, 2, 4 or 8 bytes). Bytes past the end of the space
    /// must be left as they are; they are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: take the queues. Called once between resets. Must not wait: a vCPU is standing still.
    ///
    /// # Errors
    /// An error leaves the device inactive and marks it as needing a reset; `reset` is not called.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The guest rang the doorbell of queue `queue` (always a valid index; only called while active).
    /// Spurious calls happen.
    ///
    /// # Errors
    /// What the guest did wrong; the device is then reset and marked.
    fn notify(&mut self, queue: u16) -> Result<Progress, GuestFault>;

    /// Forget the driver: drop queues, memory and work in flight, keep what the host gave. When it returns, nothing
    /// of this device writes to guest memory any more. Called only after a successful `activate`.
    fn reset(&mut self);

    /// Descriptors of the host that this device waits for besides its doorbells ([`Dispatch::EventThread`] only),
    /// each with a token. They are watched level-triggered for readability from before the first activation on.
    fn host_sources(&self) -> Vec<(BorrowedFd<'_>, u32)> {
        Vec::new()
    }

    /// The descriptor of `token` is readable. Also called while inactive: must then make it unreadable, or drop it.
    ///
    /// # Errors
    /// As for `notify`.
    fn host_event(&mut self, _token: u32) -> Result<(), GuestFault> {
        Ok(())
    }
}
