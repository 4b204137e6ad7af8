//! One processor of KVM, and what its exits mean.

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use sandbox_vmm::hypervisor::{CpuStart, Exit, HypervisorError, Kick, Vcpu};

use super::kick::{Flag, ThreadKick};
use super::{failed, registers};

/// A processor of KVM. Stays on the thread that made it.
#[derive(Debug)]
pub struct KvmVcpu {
    // Dropped before the processor, whose shared page it points into.
    _flag: Flag,
    fd: VcpuFd,
}

impl KvmVcpu {
    pub(super) fn new(mut fd: VcpuFd, cpuid: &CpuId) -> Result<Self, HypervisorError> {
        fd.set_cpuid2(cpuid).map_err(failed("set processor features"))?;
        let flag = &raw mut fd.get_kvm_run().immediate_exit;
        // SAFETY: the page is mapped for as long as `fd` lives, wherever `fd` itself moves; `_flag` is dropped first.
        // Processors never leave their thread: `VcpuFd` is made and used in one function of the machine.
        let flag = unsafe { Flag::set(flag) };
        Ok(Self { _flag: flag, fd })
    }
}

impl Vcpu for KvmVcpu {
    fn prepare(&mut self, start: Option<&CpuStart>) -> Result<(), HypervisorError> {
        registers::common(&self.fd)?;
        match start {
            Some(start) => registers::boot(&self.fd, start),
            None => Ok(()),
        }
    }

    fn kicker(&self) -> Box<dyn Kick> {
        Box::new(ThreadKick::here())
    }

    fn run(&mut self) -> Result<Exit<'_>, HypervisorError> {
        match self.fd.run() {
            Ok(exit) => Ok(translate(exit)),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
            Err(error) => Err(failed("run the guest")(error)),
        }
    }
}

fn translate(exit: VcpuExit<'_>) -> Exit<'_> {
    match exit {
        VcpuExit::IoIn(port, data) => Exit::PioRead { port, data },
        VcpuExit::IoOut(port, data) => Exit::PioWrite { port, data },
        VcpuExit::MmioRead(address, data) => Exit::MmioRead { address, data },
        VcpuExit::MmioWrite(address, data) => Exit::MmioWrite { address, data },
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Nmi => Exit::Interrupted,
        VcpuExit::SystemEvent(..) => Exit::Reset,
        VcpuExit::Shutdown => Exit::Stuck {
            why: "triple fault".into(),
        },
        VcpuExit::Hlt => Exit::Stuck {
            why: "halted with nothing to wake it".into(),
        },
        VcpuExit::InternalError => Exit::Stuck {
            why: "an instruction that the hypervisor cannot emulate".into(),
        },
        other => Exit::Stuck {
            why: format!("unexpected exit {other:?}"),
        },
    }
}
