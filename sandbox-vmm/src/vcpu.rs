//! One processor's thread: runs guest code and answers what traps. Unknown ports and addresses answer like an empty
//! bus; nothing the guest touches can stop the VMM.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::devices::serial::SerialConsole;
use crate::devices::virtio::MmioTransport;
use crate::event_loop::{AfterDispatch, SharedTransport};
use crate::hypervisor::{Exit, Vcpu};
use crate::layout::{Layout, SERIAL_PORT};

/// The keyboard controller's command port; `reboot=k` resets the machine through it.
const KEYBOARD_COMMAND: u16 = 0x64;
/// Its command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;
const SERIAL_PORTS: u16 = 8;

/// Why a processor's thread ended, and with it the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEnd {
    /// The guest powered off or reset.
    Reset,
    /// The processor could not go on.
    Stuck(String),
    /// The hypervisor failed.
    Failed(String),
}

/// What all processors share: everything that answers traps.
pub struct Bus {
    layout: Layout,
    devices: Vec<SharedTransport>,
    serial: Mutex<SerialConsole>,
    after: AfterDispatch,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// Puts `devices` into the slots of `layout`, in order, beside a serial line.
    pub fn new(
        layout: Layout,
        devices: Vec<SharedTransport>,
        serial: SerialConsole,
        after: AfterDispatch,
    ) -> Self {
        Self {
            layout,
            devices,
            serial: Mutex::new(serial),
            after,
        }
    }

    /// Writes out what the console holds back, before the end.
    pub fn flush_console(&self) {
        self.serial().flush();
    }

    fn serial(&self) -> MutexGuard<'_, SerialConsole> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mmio(&self, address: u64, access: impl FnOnce(&mut MmioTransport, u64)) {
        let Some((index, offset)) = self.layout.find(address) else {
            return;
        };
        let Some(device) = self.devices.get(index) else {
            return;
        };
        let mut transport = device.lock().unwrap_or_else(PoisonError::into_inner);
        access(&mut transport, offset);
        (self.after)(index, &mut transport);
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) {
        // A string instruction repeats the same port; each byte is one access.
        for byte in data {
            *byte = match port.checked_sub(SERIAL_PORT) {
                Some(register) if register < SERIAL_PORTS => self.serial().read(register as u8),
                // Nothing in its buffers: ready for a command.
                _ if port == KEYBOARD_COMMAND => 0,
                _ => 0xff,
            };
        }
    }

    /// Returns whether the guest asked for a reset.
    fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        if port == KEYBOARD_COMMAND {
            return data.first() == Some(&PULSE_RESET);
        }
        if let Some(register) = port
            .checked_sub(SERIAL_PORT)
            .filter(|register| *register < SERIAL_PORTS)
        {
            let mut serial = self.serial();
            for &byte in data {
                serial.write(register as u8, byte);
            }
        }
        false
    }
}

/// Runs `vcpu` until the machine ends.
pub fn run<V: Vcpu>(vcpu: &mut V, bus: &Arc<Bus>) -> VcpuEnd {
    loop {
        match vcpu.run() {
            Ok(Exit::PioRead { port, data }) => bus.pio_read(port, data),
            Ok(Exit::PioWrite { port, data }) => {
                if bus.pio_write(port, data) {
                    return VcpuEnd::Reset;
                }
            }
            Ok(Exit::MmioRead { address, data }) => {
                data.fill(0xff);
                bus.mmio(address, |device, offset| device.read(offset, data));
            }
            Ok(Exit::MmioWrite { address, data }) => {
                bus.mmio(address, |device, offset| device.write(offset, data));
            }
            Ok(Exit::Interrupted) => {}
            Ok(Exit::Reset) => return VcpuEnd::Reset,
            Ok(Exit::Stuck { why }) => return VcpuEnd::Stuck(why),
            Err(error) => return VcpuEnd::Failed(error.to_string()),
        }
    }
}
