//! `sandbox_vmm::hypervisor` over `/dev/kvm`.

mod cpuid;
mod kick;
mod registers;
mod vcpu;

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use sandbox_vmm::doorbell::Doorbell;
use sandbox_vmm::hypervisor::{Hypervisor, HypervisorError, IrqLine, Vm};
use sandbox_vmm::memory::GuestRam;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

pub use vcpu::KvmVcpu;

/// The version of the KVM interface, unchanged since 2007.
const API_VERSION: i32 = 12;
/// Pages that Intel processors need for real mode, inside the layout's gap and away from every device.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// KVM, opened.
#[derive(Debug)]
pub struct KvmHypervisor {
    kvm: Kvm,
}

impl Hypervisor for KvmHypervisor {
    type Vm = KvmVm;

    fn open(device: Option<OwnedFd>) -> Result<Self, HypervisorError> {
        let device =
            device.ok_or_else(|| HypervisorError::Lacks("/dev/kvm: no descriptor was handed over".into()))?;
        // SAFETY: the descriptor is owned, and given away here: `Kvm` closes it and nobody else does.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        if kvm.get_api_version() != API_VERSION {
            return Err(HypervisorError::Lacks(format!(
                "version {API_VERSION} of the KVM interface"
            )));
        }
        for (capability, name) in [
            (Cap::Irqchip, "in-kernel interrupt controllers"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::Irqfd, "irqfd"),
            (Cap::UserMemory, "user memory"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::ExtCpuid, "CPUID configuration"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(HypervisorError::Lacks(format!(
                    "{name} (KVM capability {capability:?})"
                )));
            }
        }
        kick::install()?;
        Ok(Self { kvm })
    }

    fn create_vm(&self, cpus: u8) -> Result<KvmVm, HypervisorError> {
        let vm = self.kvm.create_vm().map_err(failed("create a machine"))?;
        // Before the interrupt controllers and processors: Intel needs both pages then.
        vm.set_tss_address(TSS)
            .map_err(failed("set the task state page"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(failed("set the identity map page"))?;
        vm.create_irq_chip()
            .map_err(failed("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(failed("create the timer"))?;
        let cpuid = cpuid::for_machine(&self.kvm)?;
        Ok(KvmVm { vm, cpuid, cpus })
    }
}

/// A machine of KVM.
#[derive(Debug)]
pub struct KvmVm {
    vm: VmFd,
    cpuid: kvm_bindings::CpuId,
    cpus: u8,
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn map_memory(&self, memory: &GuestRam) -> Result<(), HypervisorError> {
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let host = memory.get_host_address(region.start_addr()).map_err(|error| {
                HypervisorError::Lacks(format!("a host address for guest memory: {error}"))
            })?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is a live mapping of that size. By the trait's contract it outlives the machine, and
            // nothing else of ours makes references into it.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("map guest memory"))?;
        }
        Ok(())
    }

    fn wire_doorbell(&self, at: u64, value: u32, bell: &Doorbell) -> Result<bool, HypervisorError> {
        self.vm
            .register_ioevent(&as_event(bell), &IoEventAddress::Mmio(at), value)
            .map_err(failed("wire a doorbell"))?;
        Ok(true)
    }

    fn irq_line(&self, number: u32) -> Result<Arc<dyn IrqLine>, HypervisorError> {
        let bell = Doorbell::new().map_err(|cause| HypervisorError::Call {
            call: "make an event",
            cause,
        })?;
        self.vm
            .register_irqfd(&as_event(&bell), number)
            .map_err(failed("wire an interrupt"))?;
        Ok(Arc::new(IrqFd(bell)))
    }

    fn create_vcpu(&self, index: u8) -> Result<KvmVcpu, HypervisorError> {
        let fd = self
            .vm
            .create_vcpu(u64::from(index))
            .map_err(failed("create a processor"))?;
        // KVM would compute the guest's clock from it for ever.
        if fd.get_tsc_khz().is_ok_and(|khz| khz == 0) {
            return Err(HypervisorError::Lacks(
                "the speed of the time stamp counter, which the host's kernel failed to measure when it started; \
                 start the host again when it is less busy, or with tsc_early_khz= on its command line"
                    .to_owned(),
            ));
        }
        let cpuid = cpuid::for_vcpu(&self.cpuid, index, self.cpus);
        KvmVcpu::new(fd, &cpuid)
    }
}

/// Rings an event that KVM turns into an edge.
struct IrqFd(Doorbell);

impl IrqLine for IrqFd {
    fn pulse(&self) {
        self.0.ring();
    }
}

fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HypervisorError {
    move |error| HypervisorError::Call {
        call,
        cause: error.into(),
    }
}

/// The same event as the `kvm-ioctls` crate wants it, for one call. KVM keeps its own hold on the event.
fn as_event(bell: &Doorbell) -> ManuallyDrop<EventFd> {
    // SAFETY: the descriptor stays the doorbell's: never dropped, this does not close it, and it is used only while
    // the doorbell is borrowed by the caller.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(bell.as_fd().as_raw_fd()) })
}
