//! Interrupting the driver: the line to the interrupt controller and the status register that says why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::fault::GuestFault;
use super::queue::VirtQueue;

/// `InterruptStatus` bit: a queue has used buffers (virtio 1.2 §4.2.2).
pub(super) const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit: the configuration changed, or the device needs a reset.
pub(super) const CONFIG_CHANGE: u32 = 2;

/// An edge-triggered interrupt line into the guest. A hypervisor gives one per slot (irqfd on KVM).
pub trait IrqLine: Send + Sync {
    /// Sends one edge. Never blocks, from any thread.
    fn pulse(&self);
}

/// Interrupts one driver. Clones belong to the same device.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<dyn IrqLine>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    /// An interrupt over `line`, with nothing pending.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            status: Arc::new(AtomicU32::new(0)),
            line,
        }
    }

    /// Tells the driver that `queue` has used buffers, unless it asked not to be told.
    ///
    /// # Errors
    /// The ring's addresses became unreadable, which is a [`GuestFault::BrokenRing`].
    pub fn used(&self, queue: &mut VirtQueue) -> Result<(), GuestFault> {
        if queue.wants_interrupt()? {
            self.raise(USED_BUFFER);
        }
        Ok(())
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG_CHANGE);
    }

    /// Sets the reason first, so that the handler that the edge starts finds it.
    pub(super) fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.pulse();
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
