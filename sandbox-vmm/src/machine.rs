//! Puts a machine together and runs it: memory, devices in their slots, kernel, one thread per processor, the event
//! thread. The order of [`Machine::build`] is the order that hypervisors need. Nothing of the guest's happens before
//! [`Ready::go`].

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::boot::{self, BootError};
use crate::devices::serial::SerialConsole;
use crate::devices::virtio::mmio::QUEUE_NOTIFY;
use crate::devices::virtio::{Dispatch, GuestFault, MmioTransport, VirtioDevice};
use crate::event_loop::{AfterDispatch, EventLoop, SharedTransport};
use crate::hypervisor::{CpuStart, Hypervisor, HypervisorError, Vcpu, Vm};
use crate::layout::{Layout, LayoutError, SERIAL_IRQ};
use crate::memory::{self, GuestRam, MemoryError};
use crate::vcpu::{self, Bus, VcpuEnd};

/// Stack of a vCPU or device thread. They nest a few calls deep; the host commits only what is touched.
const THREAD_STACK: usize = 256 << 10;

/// What a machine is to be.
pub struct MachineConfig {
    /// Guest memory in bytes, whole MiB.
    pub memory: u64,
    /// Number of processors, at least 1.
    pub cpus: u8,
    /// An uncompressed ELF kernel.
    pub kernel: File,
    /// Kernel options; where the devices are is appended.
    pub options: String,
    /// Where console output goes; must be non-blocking.
    pub console: Option<OwnedFd>,
    /// The devices, in the order of their slots: block devices are named by it.
    pub devices: Vec<Box<dyn VirtioDevice>>,
}

impl std::fmt::Debug for MachineConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineConfig")
            .field("memory", &self.memory)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

/// Why a machine could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Impossible numbers.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel is unusable.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The host is out of descriptors or threads.
    #[error("the host has no descriptor or thread left: {0}")]
    Host(#[from] std::io::Error),
}

/// What happens to a running machine. Called on its threads, so it must not wait long.
pub trait Observer: Send + Sync + 'static {
    /// The guest broke a device, which is now useless until the guest resets it.
    fn device_failed(&self, device: &'static str, fault: &GuestFault);
    /// A processor ended, and so does the machine. May be called by several processors.
    fn ended(&self, end: &VcpuEnd);
}

/// A machine, built and not yet running.
pub struct Machine<H: Hypervisor> {
    vm: Arc<H::Vm>,
    memory: GuestRam,
    bus: Arc<Bus>,
    events: EventLoop,
    own_threads: Vec<(usize, SharedTransport)>,
    start: CpuStart,
    cpus: u8,
    observer: Arc<dyn Observer>,
    after: AfterDispatch,
}

impl<H: Hypervisor> std::fmt::Debug for Machine<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

impl<H: Hypervisor> Machine<H> {
    /// Builds everything up to the first instruction.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing is left behind.
    pub fn build(
        hypervisor: &H,
        mut config: MachineConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, MachineError> {
        let layout = Layout::new(config.memory, config.cpus, config.devices.len())?;
        let command_line = layout.command_line(&config.options)?;
        let vm = Arc::new(hypervisor.create_vm(config.cpus)?);
        let memory = memory::map(layout.ram())?;
        // Before the hypervisor has the memory, which may replace pages of it.
        let start = boot::load(&memory, &layout, &mut config.kernel, &command_line)?;
        vm.map_memory(&memory)?;

        let after: AfterDispatch = {
            let observer = observer.clone();
            Arc::new(move |_, transport: &mut MmioTransport| {
                if let Some(fault) = transport.take_fault() {
                    observer.device_failed(transport.device().name(), &fault);
                }
            })
        };
        let mut events = EventLoop::new(after.clone())?;
        let mut own_threads = Vec::new();
        let mut devices: Vec<SharedTransport> = Vec::new();
        for (slot, device) in layout.slots().zip(config.devices) {
            let transport = MmioTransport::new(device, memory.clone(), vm.irq_line(slot.irq)?)?;
            for (queue, bell) in (0u32..).zip(transport.doorbells()) {
                vm.wire_doorbell(slot.address + QUEUE_NOTIFY, queue, bell)?;
            }
            let dispatch = transport.device().dispatch();
            let transport = Arc::new(Mutex::new(transport));
            match dispatch {
                Dispatch::EventThread => events.add(devices.len(), &transport)?,
                Dispatch::OwnThread => own_threads.push((devices.len(), transport.clone())),
            }
            devices.push(transport);
        }
        let serial = SerialConsole::new(vm.irq_line(SERIAL_IRQ)?, config.console);
        let cpus = layout.cpus();
        let bus = Arc::new(Bus::new(layout, devices, serial, after.clone()));
        Ok(Self {
            vm,
            memory,
            bus,
            events,
            own_threads,
            start,
            cpus,
            observer,
            after,
        })
    }

    /// Starts all threads and makes the processors, which wait for [`Ready::go`].
    ///
    /// # Errors
    /// A thread or processor could not be made. Some may be there already: end the process.
    pub fn prepare(self) -> Result<Ready, MachineError> {
        let Self {
            vm,
            memory,
            bus,
            events,
            own_threads,
            start,
            cpus,
            observer,
            after,
        } = self;
        spawn("events", move || {
            let Err(error) = events.run();
            tracing::error!(%error, "the event thread ended");
        })?;
        for (index, transport) in own_threads {
            let mut events = EventLoop::new(after.clone())?;
            events.add(index, &transport)?;
            let name = transport
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .device()
                .name();
            spawn(name, move || {
                let Err(error) = events.run();
                tracing::error!(%error, "a device's thread ended");
            })?;
        }
        // A processor is made on its thread, and all must exist before the first runs and wakes the others.
        let (ready, made) = mpsc::channel();
        let mut gates = Vec::new();
        for index in 0..cpus {
            let (gate, open) = mpsc::channel();
            let (vm, bus, observer, ready) = (vm.clone(), bus.clone(), observer.clone(), ready.clone());
            let memory = memory.clone();
            spawn(&format!("vcpu{index}"), move || {
                // The guest's memory must outlive its processors, also without any device that holds it.
                let _memory = memory;
                let vcpu = vm.create_vcpu(index).and_then(|mut vcpu| {
                    vcpu.prepare((index == 0).then_some(&start))?;
                    Ok(vcpu)
                });
                match vcpu {
                    Ok(mut vcpu) => {
                        let _ = ready.send(Ok(()));
                        if open.recv().is_ok() {
                            let end = vcpu::run(&mut vcpu, &bus);
                            bus.flush_console();
                            observer.ended(&end);
                        }
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })?;
            gates.push(gate);
        }
        for _ in 0..cpus {
            made.recv().map_err(std::io::Error::other)??;
        }
        Ok(Ready { gates })
    }
}

/// A machine whose processors stand before their first instruction. Dropped, it never runs.
#[derive(Debug)]
pub struct Ready {
    gates: Vec<Sender<()>>,
}

impl Ready {
    /// Lets the processors run. Their end is reported to the observer.
    pub fn go(self) {
        for gate in self.gates {
            // Fails only if the processor's thread is gone, which only a panic can cause.
            let _ = gate.send(());
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(THREAD_STACK)
        .spawn(body)
        .map(drop)
}
