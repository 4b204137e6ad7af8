//! A driver for tests: brings a device up through its registers as a guest would and sends requests over real rings.

use std::sync::Arc;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::{IrqLine, MmioTransport, VirtioDevice};
use crate::memory::{self, GuestRam};

/// Memory of the pretended guest.
pub(crate) const MEMORY: u64 = 2 << 20;
const RING_BYTES: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) struct NoIrq;

impl IrqLine for NoIrq {
    fn pulse(&self) {}
}

pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: GuestRam,
    sizes: Vec<u16>,
    next: Vec<(u16, u16)>,
    features: u64,
}

impl Driver {
    /// Accepts all features and makes all queues ready.
    pub(crate) fn start(device: Box<dyn VirtioDevice>) -> Self {
        let memory = memory::map(&[(0, MEMORY)]).unwrap();
        let sizes = device.queue_sizes().to_vec();
        let features = device.features();
        let transport = MmioTransport::new(device, memory.clone(), Arc::new(NoIrq)).unwrap();
        let mut driver = Self {
            transport,
            memory,
            sizes,
            next: Vec::new(),
            features,
        };
        driver.restart();
        driver
    }

    /// Resets and brings the device up again.
    pub(crate) fn restart(&mut self) {
        self.write(0x70, 0);
        self.next = vec![(0, 0); self.sizes.len()];
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x24, 0);
        self.write(0x20, self.features as u32);
        self.write(0x24, 1);
        self.write(0x20, (self.features >> 32) as u32 | 1);
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11);
        for queue in 0..self.sizes.len() {
            let (desc, avail, used) = Self::rings(queue);
            for at in [avail, used] {
                self.memory.write_obj(0u32, GuestAddress(at)).unwrap();
            }
            self.write(0x30, queue as u32);
            self.write(0x38, u32::from(self.sizes[queue]));
            for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
                self.write(register, address as u32);
                self.write(register + 4, (address >> 32) as u32);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    pub(crate) fn rings(queue: usize) -> (u64, u64, u64) {
        let base = 0x1_0000 + RING_BYTES * queue as u64;
        (base, base + 0x8000, base + 0xc000)
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub(crate) fn read(&mut self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn needs_reset(&mut self) -> bool {
        self.read(0x70) & 64 != 0
    }

    /// Makes a chain available without ringing. Descriptors are used from 0 on, so one request at a time per queue.
    pub(crate) fn offer(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> Vec<(u64, usize)> {
        let (desc, avail, _) = Self::rings(queue);
        let count = readable.len() + writable.len();
        let mut data = DATA + 0x2_0000 * queue as u64;
        let mut answers = Vec::new();
        for at in 0..count {
            let (len, flags) = match readable.get(at) {
                Some(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(data)).unwrap();
                    (bytes.len(), 0)
                }
                None => {
                    let len = writable[at - readable.len()];
                    answers.push((data, len));
                    (len, WRITE)
                }
            };
            let flags = if at + 1 < count { flags | NEXT } else { flags };
            self.descriptor(desc, at as u16, data, len as u32, flags, at as u16 + 1);
            data += len as u64;
        }
        let slot = u64::from(self.next[queue].0 % self.sizes[queue]);
        self.memory
            .write_obj(0u16, GuestAddress(avail + 4 + 2 * slot))
            .unwrap();
        self.next[queue].0 = self.next[queue].0.wrapping_add(1);
        self.memory
            .write_obj(self.next[queue].0, GuestAddress(avail + 2))
            .unwrap();
        answers
    }

    pub(crate) fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        self.memory
            .write_obj(descriptor, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    /// The length of the next used chain, if there is one.
    pub(crate) fn used(&mut self, queue: usize) -> Option<u32> {
        let (_, _, used) = Self::rings(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        if index == self.next[queue].1 {
            return None;
        }
        let slot = u64::from(self.next[queue].1 % self.sizes[queue]);
        self.next[queue].1 = self.next[queue].1.wrapping_add(1);
        Some(
            self.memory
                .read_obj(GuestAddress(used + 4 + 8 * slot + 4))
                .unwrap(),
        )
    }

    /// One request and its answer: the written bytes, or `None` if the device gave nothing back.
    pub(crate) fn request(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> Option<Vec<u8>> {
        let answers = self.offer(queue, readable, writable);
        self.transport.notify(queue as u16);
        let used = self.used(queue)? as usize;
        Some(self.collect(&answers, used))
    }

    pub(crate) fn collect(&self, answers: &[(u64, usize)], used: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(address, len) in answers {
            let mut part = vec![0; len];
            self.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
            bytes.extend(part);
        }
        // The status may come after a part that was left unwritten on errors; keep all of it then.
        if used > 1 && used < bytes.len() {
            bytes.truncate(used.max(1))
        }
        bytes
    }
}
