//! The machine's map: where memory is, which slot and interrupt each device has. The only place that knows; boot
//! tables and command line are written from it.

use std::fmt::Write as _;

use crate::devices::virtio::mmio::WINDOW_BYTES;

/// Memory never reaches from here to [`GAP_END`]: devices and the interrupt controllers live there.
pub const GAP_START: u64 = 0xc000_0000;
/// End of the gap, and where memory goes on.
pub const GAP_END: u64 = 1 << 32;
/// First virtio-mmio window.
const SLOTS_START: u64 = 0xd000_0000;

/// Where the PC keeps its tables; nothing of the kernel goes below [`HIGH_MEMORY`].
pub(crate) const GDT: u64 = 0x500;
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const SETUP_DATA: u64 = 0x1_0000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// End of conventional memory; the kernel looks here for the MP pointer.
pub(crate) const MP_POINTER: u64 = 0x9_fc00;
pub(crate) const MP_TABLE: u64 = 0xf_0000;
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// Ports of the first serial line.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupts free for devices: below 16, without timer (0), cascade (2), serial (3, 4) and clock (8).
const DEVICE_IRQS: [u32; 10] = [5, 6, 7, 9, 10, 11, 12, 13, 14, 15];

/// Longest kernel command line; what Linux takes on x86.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Least memory a machine boots with: kernel, its page structs and the boot tables.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Most memory: keeps page tables of the VMM process small and addresses within what every processor can map.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Why a machine cannot be laid out. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Memory out of bounds or not whole pages.
    #[error("{0} bytes of memory: choose whole MiB from {min} to {max}", min = MIN_MEMORY, max = MAX_MEMORY)]
    Memory(u64),
    /// More devices than interrupts.
    #[error("{0} devices: a machine has slots for {max}", max = DEVICE_IRQS.len())]
    Devices(usize),
    /// The command line does not fit.
    #[error("the kernel command line has {0} bytes, {max} fit", max = MAX_COMMAND_LINE)]
    CommandLine(usize),
}

/// A device's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First address of its registers.
    pub address: u64,
    /// Its interrupt line.
    pub irq: u32,
}

/// Where everything of one machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    ram: Vec<(u64, u64)>,
    devices: usize,
    cpus: u8,
}

impl Layout {
    /// Lays out `memory` bytes, `cpus` processors and `devices` virtio devices.
    ///
    /// # Errors
    /// Numbers that no machine can have.
    pub fn new(memory: u64, cpus: u8, devices: usize) -> Result<Self, LayoutError> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) || !memory.is_multiple_of(1 << 20) {
            return Err(LayoutError::Memory(memory));
        }
        if devices > DEVICE_IRQS.len() {
            return Err(LayoutError::Devices(devices));
        }
        let mut ram = vec![(0, memory.min(GAP_START))];
        if memory > GAP_START {
            ram.push((GAP_END, memory - GAP_START));
        }
        Ok(Self { ram, devices, cpus })
    }

    /// Memory as `(start, length)`, in order.
    pub fn ram(&self) -> &[(u64, u64)] {
        &self.ram
    }

    /// Number of processors.
    pub fn cpus(&self) -> u8 {
        self.cpus
    }

    /// The slots, one per device, in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        DEVICE_IRQS
            .into_iter()
            .take(self.devices)
            .zip((SLOTS_START..).step_by(WINDOW_BYTES as usize))
            .map(|(irq, address)| Slot { address, irq })
    }

    /// Which device answers at `address`, and the offset in its window.
    pub fn find(&self, address: u64) -> Option<(usize, u64)> {
        let distance = address.checked_sub(SLOTS_START)?;
        let index = usize::try_from(distance / WINDOW_BYTES).ok()?;
        (index < self.devices).then_some((index, distance % WINDOW_BYTES))
    }

    /// `options`, followed by what tells the kernel where its devices are.
    ///
    /// # Errors
    /// [`LayoutError::CommandLine`] when it is too long.
    pub fn command_line(&self, options: &str) -> Result<String, LayoutError> {
        let mut line = options.to_owned();
        for slot in self.slots() {
            // Writing to a String cannot fail.
            let _ = write!(line, " virtio_mmio.device=4K@{:#x}:{}", slot.address, slot.irq);
        }
        if line.len() > MAX_COMMAND_LINE {
            return Err(LayoutError::CommandLine(line.len()));
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_above_the_gap_goes_on_at_four_gib() {
        let layout = Layout::new(4 << 30, 1, 0).unwrap();
        assert_eq!(layout.ram(), [(0, GAP_START), (GAP_END, (4 << 30) - GAP_START)]);
        assert_eq!(Layout::new(256 << 20, 1, 0).unwrap().ram(), [(0, 256 << 20)]);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert_eq!(Layout::new(1 << 20, 1, 0), Err(LayoutError::Memory(1 << 20)));
        assert_eq!(
            Layout::new((256 << 20) + 1, 1, 0),
            Err(LayoutError::Memory((256 << 20) + 1))
        );
        assert_eq!(Layout::new(256 << 20, 1, 11), Err(LayoutError::Devices(11)));
    }

    #[test]
    fn every_slot_is_found_at_its_address_and_named_on_the_command_line() {
        let layout = Layout::new(256 << 20, 1, 6).unwrap();
        let line = layout.command_line("quiet").unwrap();
        assert!(line.starts_with("quiet "));
        for (index, slot) in layout.slots().enumerate() {
            assert_eq!(layout.find(slot.address + 0x70), Some((index, 0x70)));
            assert!(line.contains(&format!("4K@{:#x}:{}", slot.address, slot.irq)));
        }
        assert_eq!(layout.find(SLOTS_START + 6 * WINDOW_BYTES), None);
        assert_eq!(layout.find(0), None);
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        let layout = Layout::new(256 << 20, 1, 1).unwrap();
        assert!(matches!(
            layout.command_line(&"x".repeat(2047)),
            Err(LayoutError::CommandLine(_))
        ));
    }
}
