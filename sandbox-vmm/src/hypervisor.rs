//! What a hypervisor has to do for us. One backend implements these traits per operating system; nothing here names
//! one, and each backend keeps its own types behind associated ones.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use crate::devices::virtio::IrqLine;
use crate::doorbell::Doorbell;
use crate::memory::GuestRam;

/// Why the hypervisor could not do something. The host's fault.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// It lacks something we cannot do without.
    #[error("the hypervisor lacks {0}")]
    Lacks(String),
    /// A call failed.
    #[error("the hypervisor failed to {call}: {cause}")]
    Call {
        /// What was asked for.
        call: &'static str,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
}

/// A hypervisor, opened.
pub trait Hypervisor: Sized + Send + 'static {
    /// Its virtual machines.
    type Vm: Vm;

    /// Takes over the device that the orchestrator opened. `None` for hypervisors that have none.
    ///
    /// # Errors
    /// The device is missing, or not that of this hypervisor, or too old.
    fn open(device: Option<OwnedFd>) -> Result<Self, HypervisorError>;

    /// Makes an empty machine with interrupt controllers and timers, for up to `cpus` processors.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn create_vm(&self, cpus: u8) -> Result<Self::Vm, HypervisorError>;
}

/// A virtual machine. Shared by the threads of its processors.
pub trait Vm: Send + Sync + 'static {
    /// Its processors.
    type Vcpu: Vcpu;

    /// Gives the guest its memory. Called once, before any processor runs; `memory` outlives the machine.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn map_memory(&self, memory: &GuestRam) -> Result<(), HypervisorError>;

    /// Makes a 4-byte write of `value` to guest address `at` ring `bell` without a trip through a vCPU thread.
    /// Returns `false` if this hypervisor cannot: such writes then arrive as [`Exit::MmioWrite`], and work as well.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn wire_doorbell(&self, at: u64, value: u32, bell: &Doorbell) -> Result<bool, HypervisorError>;

    /// The interrupt line `number` of the machine's interrupt controller.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn irq_line(&self, number: u32) -> Result<Arc<dyn IrqLine>, HypervisorError>;

    /// Makes processor `index`. Called on the thread that will run it, which is the only one that ever touches it.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn create_vcpu(&self, index: u8) -> Result<Self::Vcpu, HypervisorError>;
}

/// One processor, on its own thread.
pub trait Vcpu {
    /// Sets its first state: at `start` for the processor that boots; waiting for it to wake them for the others.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn prepare(&mut self, start: Option<&CpuStart>) -> Result<(), HypervisorError>;

    /// A handle by which any thread can make [`Vcpu::run`] return soon.
    fn kicker(&self) -> Box<dyn Kick>;

    /// Runs guest code until something needs us.
    ///
    /// # Errors
    /// The hypervisor failed; the processor cannot go on.
    fn run(&mut self) -> Result<Exit<'_>, HypervisorError>;
}

/// Interrupts [`Vcpu::run`] from another thread.
pub trait Kick: Send + Sync {
    /// Makes the current, or else the next, `run` return [`Exit::Interrupted`].
    fn kick(&self);
}

/// Why a processor stopped running guest code.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads from a port; fill `data`.
    PioRead {
        /// First port.
        port: u16,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// The guest writes to a port.
    PioWrite {
        /// First port.
        port: u16,
        /// What it writes.
        data: &'a [u8],
    },
    /// The guest reads where no memory is; fill `data`.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// The guest writes where no memory is.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What it writes.
        data: &'a [u8],
    },
    /// Kicked, or interrupted by a signal: nothing to do.
    Interrupted,
    /// The guest asked for an end: power off or reset, whichever way the architecture has.
    Reset,
    /// The processor cannot go on: a triple fault, an instruction the hypervisor does not know.
    Stuck {
        /// What was seen, for the log.
        why: String,
    },
}

/// Where the first processor starts (x86_64, long mode).
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuStart {
    /// First instruction, guest physical, identity-mapped.
    pub instruction: u64,
    /// Goes to RSI: address of the boot parameters.
    pub boot_params: u64,
    /// Goes to RSP.
    pub stack: u64,
    /// Goes to CR3.
    pub page_tables: u64,
    /// Address of the descriptor table.
    pub gdt: u64,
    /// Its entries.
    pub gdt_entries: [u64; crate::boot::GDT_ENTRIES],
}
