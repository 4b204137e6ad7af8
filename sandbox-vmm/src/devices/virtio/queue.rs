//! One split virtqueue (virtio 1.2 §2.7) that trusts nothing in the ring, over the `virtio-queue` crate.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::Chain;
use super::fault::GuestFault;
use super::interrupt::Interrupt;
use crate::memory::GuestRam;

/// Largest ring a device may offer. Bounds the descriptors of one chain, so the memory that parsing it takes.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Chains served in one turn. A driver that refills its ring as fast as we empty it would otherwise keep a thread for
/// ever, and with it every other device on that thread.
pub const CHAINS_PER_TURN: usize = 256;

/// Whether a turn ended because the work did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing is left until the next doorbell, which is armed.
    Idle,
    /// The turn was cut short; the caller rings the doorbell to come back.
    More,
}

/// A queue of an active device. Owned by the device, used under its slot's lock or a lock of its own.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    ring: Queue,
    memory: GuestRam,
}

impl VirtQueue {
    /// Takes over a ring that the transport has checked with [`QueueT::is_valid`].
    pub(super) fn new(index: u16, ring: Queue, memory: GuestRam) -> Self {
        Self { index, ring, memory }
    }

    /// Which queue of the device this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors the driver chose.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// A broken ring or chain. The queue cannot be used after it.
    pub fn pop(&mut self) -> Result<Option<Chain>, GuestFault> {
        let queue = self.index;
        let size = self.ring.size();
        let mut available = self
            .ring
            .iter(&*self.memory)
            .map_err(|error| broken(queue, &error))?;
        match available.next() {
            Some(raw) => Chain::parse(queue, size, raw, &self.memory).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the chain taken last back, to be taken again.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Whether a chain is available, without taking it.
    ///
    /// # Errors
    /// The ring became unreadable.
    pub fn has_available(&self) -> Result<bool, GuestFault> {
        let index = self
            .ring
            .avail_idx(&*self.memory, Ordering::Acquire)
            .map_err(|error| broken(self.index, &error))?;
        Ok(index != Wrapping(self.ring.next_avail()))
    }

    /// Gives the chain that began at descriptor `head` back to the driver, with the number of bytes written to it.
    /// Chains may be given back in any order. Follow with [`Interrupt::used`], once for a batch.
    ///
    /// # Errors
    /// The ring became unwritable.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), GuestFault> {
        self.ring
            .add_used(&*self.memory, head, written)
            .map_err(|error| broken(self.index, &error))
    }

    /// Serves available chains until none is left or the turn is over, then arms the doorbell and interrupts the
    /// driver as needed. `serve` returns the number of bytes it wrote into the chain.
    ///
    /// # Errors
    /// Those of the ring, and those of `serve`.
    pub fn serve<F>(&mut self, interrupt: &Interrupt, mut serve: F) -> Result<Progress, GuestFault>
    where
        F: FnMut(&mut Chain) -> Result<u32, GuestFault>,
    {
        self.disarm()?;
        let mut served = 0usize;
        let progress = loop {
            if served >= CHAINS_PER_TURN {
                break Progress::More;
            }
            match self.pop()? {
                Some(mut chain) => {
                    let written = serve(&mut chain)?;
                    self.push(chain.head(), written)?;
                    served += 1;
                }
                // Arming reports chains that came in between.
                None if self.arm()? => self.disarm()?,
                None => break Progress::Idle,
            }
        };
        if served > 0 {
            interrupt.used(self)?;
        }
        Ok(progress)
    }

    /// Asks the driver to ring again. Returns whether chains came in meanwhile, which are not announced.
    ///
    /// # Errors
    /// The ring became unwritable.
    pub fn arm(&mut self) -> Result<bool, GuestFault> {
        self.ring
            .enable_notification(&*self.memory)
            .map_err(|error| broken(self.index, &error))
    }

    /// Asks the driver not to ring while we look anyway. A hint; it may ring all the same.
    ///
    /// # Errors
    /// The ring became unwritable.
    pub fn disarm(&mut self) -> Result<(), GuestFault> {
        self.ring
            .disable_notification(&*self.memory)
            .map_err(|error| broken(self.index, &error))
    }

    pub(super) fn wants_interrupt(&mut self) -> Result<bool, GuestFault> {
        self.ring
            .needs_notification(&*self.memory)
            .map_err(|error| broken(self.index, &error))
    }
}

fn broken(queue: u16, error: &virtio_queue::Error) -> GuestFault {
    GuestFault::BrokenRing {
        queue,
        detail: error.to_string(),
    }
}
