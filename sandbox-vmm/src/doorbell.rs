//! A doorbell: the guest's "look at this queue", as a descriptor that a host thread can wait on.
//! Where the hypervisor can ring it by itself (ioeventfd), the vCPU does not even leave the guest for long.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// A counter that one side rings and the other waits for and drains. Clones are the same doorbell.
///
/// Rings that arrive before a drain are one ring: the waiter must look at everything it serves.
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<OwnedFd>);

impl Doorbell {
    /// A doorbell that has not rung.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Rings it. Never blocks; a doorbell that rings already keeps ringing.
    pub fn ring(&self) {
        // The only possible failure is a full counter, and a full counter rings.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Silences it; returns whether it had rung. Never blocks.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        rustix::io::read(&*self.0, &mut count).is_ok()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_are_drained_at_once() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.drain());
        bell.ring();
        bell.clone().ring();
        assert!(bell.drain());
        assert!(!bell.drain());
    }
}
