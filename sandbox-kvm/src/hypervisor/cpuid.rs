//! What the guest learns about its processors: what KVM supports, with the topology of this machine instead of the
//! host's.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use sandbox_vmm::hypervisor::HypervisorError;

use super::failed;

const EDX_HTT: u32 = 1 << 28;
const ECX_HYPERVISOR: u32 = 1 << 31;
const ECX_TSC_DEADLINE: u32 = 1 << 24;

/// All that this host's KVM can show a guest.
pub(super) fn for_machine(kvm: &Kvm) -> Result<CpuId, HypervisorError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("list processor features"))
}

/// The same for processor `index` of `cpus`: one package, one thread per core, APIC id = index.
pub(super) fn for_vcpu(machine: &CpuId, index: u8, cpus: u8) -> CpuId {
    let mut cpuid = machine.clone();
    let (id, count) = (u32::from(index), u32::from(cpus.max(1)));
    let id_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (count << 16) | (id << 24);
                entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
                entry.edx = if count > 1 {
                    entry.edx | EDX_HTT
                } else {
                    entry.edx & !EDX_HTT
                };
            }
            // Caches: private to a core, but the last level. Bits 25:14 say how many share, 31:26 how many cores.
            4 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((count - 1).min(63) << 26);
            }
            // Topology: threads of a core, then cores of the package.
            0xb => {
                let (shift, units, level_type) = match entry.index {
                    0 => (0, 1, 1),
                    1 => (id_bits, count, 2),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = units;
                entry.ecx = (level_type << 8) | (entry.index & 0xff);
                entry.edx = id;
            }
            // The newer topology leaf would contradict; all zero means "use the older one".
            0x1f => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            // AMD: cores of the package, and their ids.
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1) | (id_bits << 12),
            0x8000_001e => {
                (entry.eax, entry.ebx, entry.ecx) = (id, id, 0);
            }
            _ => {}
        }
    }
    cpuid
}
