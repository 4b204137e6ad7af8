//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2): registers, and the state machine of §3.1.
//!
//! Hostile: every access, at any time, in any order and width. A step out of order marks the device as needing a
//! reset and is reported once; the guest can always reset and start again.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::fault::GuestFault;
use super::interrupt::{CONFIG_CHANGE, Interrupt, IrqLine, USED_BUFFER};
use super::queue::{MAX_QUEUE_SIZE, Progress, VirtQueue};
use super::{Activation, VirtioDevice};
use crate::doorbell::Doorbell;
use crate::memory::GuestRam;

/// Bytes of address space one transport answers to.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where the driver writes a queue's index to ring its doorbell.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// What lspci-like tools show as the maker; any value will do.
const VENDOR: u32 = u32::from_le_bytes(*b"SNBX");
const CONFIG_SPACE: u64 = 0x100;

const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
/// The bits a driver sets, in the order it has to.
const SEQUENCE: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// A device in its slot. The owner holds a lock around every call.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    rings: Vec<Queue>,
    doorbells: Vec<Doorbell>,
    interrupt: Interrupt,
    status: u32,
    active: bool,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected: u32,
    fault: Option<GuestFault>,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.name())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind registers.
    ///
    /// # Errors
    /// The host is out of descriptors, or the device offers an impossible queue size (a bug of ours).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        line: std::sync::Arc<dyn IrqLine>,
    ) -> std::io::Result<Self> {
        let mut rings = Vec::new();
        let mut doorbells = Vec::new();
        for &size in device.queue_sizes() {
            let ring = Queue::new(size.min(MAX_QUEUE_SIZE)).map_err(std::io::Error::other)?;
            rings.push(ring);
            doorbells.push(Doorbell::new()?);
        }
        Ok(Self {
            device,
            memory,
            rings,
            doorbells,
            interrupt: Interrupt::new(line),
            status: 0,
            active: false,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected: 0,
            fault: None,
        })
    }

    /// The device's doorbells, one per queue: wire them into the hypervisor at [`QUEUE_NOTIFY`], and wait for them.
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.doorbells
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// What the guest did wrong since the last call, for the log and the orchestrator.
    pub fn take_fault(&mut self) -> Option<GuestFault> {
        self.fault.take()
    }

    /// A doorbell rang. Passes it to the device if that is running; rings again if the device wants to go on.
    pub fn notify(&mut self, queue: u16) {
        if !self.active {
            return;
        }
        match self.device.notify(queue) {
            Ok(Progress::Idle) => {}
            Ok(Progress::More) => {
                if let Some(bell) = self.doorbells.get(usize::from(queue)) {
                    bell.ring();
                }
            }
            Err(fault) => self.fail(fault),
        }
    }

    /// A host descriptor of the device became readable.
    pub fn host_event(&mut self, token: u32) {
        if let Err(fault) = self.device.host_event(token) {
            self.fail(fault);
        }
    }

    /// The guest reads `data.len()` bytes at `offset` of the window. What is not there reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG_SPACE) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.device.read_config(at, data);
            }
            return;
        }
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the window. What makes no sense is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG_SPACE) {
            if self.status & DRIVER != 0 && matches!(data.len(), 1 | 2 | 4 | 8) {
                self.device.write_config(at, data);
            }
            return;
        }
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_id(),
            0x0c => VENDOR,
            0x10 => match self.device_features_page {
                0 => low(self.offered()),
                1 => high(self.offered()),
                _ => 0,
            },
            0x34 => self.ring().map_or(0, |ring| u32::from(ring.max_size())),
            0x44 => self.ring().map_or(0, |ring| u32::from(ring.ready())),
            0x60 => self.interrupt.status(),
            0x70 => self.status,
            // No shared memory region: its length reads as all ones (§4.2.2).
            0xb0..=0xbc => u32::MAX,
            // 0xfc is the configuration's generation; ours never changes under the driver.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_page = value,
            0x20 => self.write_features(value),
            0x24 => self.driver_features_page = value,
            0x30 => self.selected = value,
            0x38 => self.configure(|ring| {
                u16::try_from(value)
                    .ok()
                    .and_then(|size| ring.try_set_size(size).ok())
                    .is_some()
            }),
            0x44 => self.write_ready(value),
            QUEUE_NOTIFY => {
                // The slow path, for hypervisors that cannot ring by themselves.
                if let Some(bell) = usize::try_from(value)
                    .ok()
                    .and_then(|queue| self.doorbells.get(queue))
                {
                    bell.ring();
                }
            }
            0x64 => self.interrupt.acknowledge(value & (USED_BUFFER | CONFIG_CHANGE)),
            0x70 => self.write_status(value),
            // Halves of an address come one by one; the queue as a whole is checked when it is made ready.
            0x80 | 0x84 => self.configure(|ring| {
                let address = replace_half(ring.desc_table(), offset & 4 != 0, value);
                ring.try_set_desc_table_address(address).is_ok()
            }),
            0x90 | 0x94 => self.configure(|ring| {
                let address = replace_half(ring.avail_ring(), offset & 4 != 0, value);
                ring.try_set_avail_ring_address(address).is_ok()
            }),
            0xa0 | 0xa4 => self.configure(|ring| {
                let address = replace_half(ring.used_ring(), offset & 4 != 0, value);
                ring.try_set_used_ring_address(address).is_ok()
            }),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_EVENT_IDX | F_VERSION_1
    }

    fn ring(&self) -> Option<&Queue> {
        self.rings.get(usize::try_from(self.selected).ok()?)
    }

    fn write_features(&mut self, value: u32) {
        if self.status & (FEATURES_OK | NEEDS_RESET) != 0 || self.status & DRIVER == 0 {
            return self.fail(GuestFault::Sequence("features written outside of negotiation"));
        }
        let value = u64::from(value);
        match self.driver_features_page {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    /// Changes a queue that is not in use yet.
    fn configure(&mut self, change: impl FnOnce(&mut Queue) -> bool) {
        let negotiated =
            self.status & FEATURES_OK != 0 && self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == 0;
        let selected = usize::try_from(self.selected).ok();
        let Some(ring) = selected.and_then(|selected| self.rings.get_mut(selected)) else {
            return;
        };
        let fault = if !negotiated || ring.ready() {
            Some("a queue was changed while it could not be")
        } else if !change(ring) {
            Some("a queue was given an impossible size or address")
        } else {
            None
        };
        if let Some(what) = fault {
            self.fail(GuestFault::Sequence(what));
        }
    }

    fn write_ready(&mut self, value: u32) {
        if value == 1 {
            let memory = self.memory.clone();
            self.configure(|ring| {
                ring.set_ready(true);
                let valid = ring.is_valid(&*memory);
                ring.set_ready(valid);
                valid
            });
        } else if !self.active {
            // Linux un-readies queues on the way to a reset.
            let selected = usize::try_from(self.selected).ok();
            if let Some(ring) = selected.and_then(|selected| self.rings.get_mut(selected)) {
                ring.set_ready(false);
            }
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.status & (NEEDS_RESET | FAILED) != 0 {
            return;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        let added = value & !self.status;
        let removed = self.status & !value;
        let next = SEQUENCE
            .into_iter()
            .find(|bit| self.status & bit == 0)
            .unwrap_or(0);
        match added {
            0 if removed == 0 => {}
            _ if removed != 0 || added != next => {
                self.fail(GuestFault::Sequence("status bits out of order"));
            }
            FEATURES_OK => {
                let unknown = self.driver_features & !self.offered();
                // Not setting the bit is how a device says no (§3.1.1).
                if unknown == 0 && self.driver_features & F_VERSION_1 != 0 {
                    self.status |= FEATURES_OK;
                }
            }
            DRIVER_OK => self.activate(),
            _ => self.status |= added,
        }
    }

    fn activate(&mut self) {
        let mut queues = Vec::with_capacity(self.rings.len());
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if !ring.ready() {
                queues.push(None);
                continue;
            }
            // The device gets the ring; ours keeps saying "ready" to the driver.
            let Ok(mut theirs) = Queue::new(ring.max_size()) else {
                continue;
            };
            let state = ring.state();
            let restored = theirs.try_set_size(state.size).is_ok()
                && theirs
                    .try_set_desc_table_address(GuestAddress(state.desc_table))
                    .is_ok()
                && theirs
                    .try_set_avail_ring_address(GuestAddress(state.avail_ring))
                    .is_ok()
                && theirs
                    .try_set_used_ring_address(GuestAddress(state.used_ring))
                    .is_ok();
            theirs.set_event_idx(self.driver_features & F_EVENT_IDX != 0);
            theirs.set_ready(true);
            if !restored || !theirs.is_valid(&*self.memory) {
                return self.fail(GuestFault::Sequence("a queue is outside guest memory"));
            }
            // Queue counts are tiny constants of the devices.
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            queues.push(Some(VirtQueue::new(index, theirs, self.memory.clone())));
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            doorbells: self.doorbells.clone(),
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        };
        match self.device.activate(activation) {
            Ok(()) => {
                self.active = true;
                self.status |= DRIVER_OK;
                tracing::debug!(
                    device = self.device.name(),
                    features = self.driver_features,
                    "active"
                );
                // A ring before now was dropped; what it announced must not wait for another.
                for bell in &self.doorbells {
                    bell.ring();
                }
            }
            Err(error) => {
                tracing::warn!(device = self.device.name(), %error, "cannot start");
                self.fail(GuestFault::Sequence(
                    "the device could not start as its driver asked",
                ));
            }
        }
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
        }
        for ring in &mut self.rings {
            ring.reset();
        }
        for bell in &self.doorbells {
            bell.drain();
        }
        self.interrupt.acknowledge(u32::MAX);
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected = 0;
    }

    /// The guest broke the rules: stop the device and say so, once, until it resets (§2.1.2).
    fn fail(&mut self, fault: GuestFault) {
        if self.status & NEEDS_RESET != 0 {
            return;
        }
        tracing::warn!(device = self.device.name(), %fault, "the guest broke a device; it needs a reset");
        if self.active {
            self.device.reset();
            self.active = false;
        }
        let announce = self.status & DRIVER_OK != 0;
        self.status |= NEEDS_RESET;
        self.fault = Some(fault);
        if announce {
            self.interrupt.config_changed();
        }
    }
}

fn replace_half(address: u64, upper: bool, value: u32) -> GuestAddress {
    let value = u64::from(value);
    GuestAddress(if upper {
        (address & 0xffff_ffff) | (value << 32)
    } else {
        (address & !0xffff_ffff) | value
    })
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests;
