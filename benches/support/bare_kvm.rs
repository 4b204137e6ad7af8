//! The KVM calls that no VMM can avoid for a Linux guest, and nothing else: a machine with interrupt
//! controllers, its memory, one processor in 64-bit mode, run to its first port access.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where the guest's code, page tables and segment descriptors lie.
const CODE: u64 = 0x10_0000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;

/// Runs `code` as the first instructions of a 64-bit guest until it writes to a port. Returns how long that took from
/// nothing; taking it all down again is not counted.
pub fn run(memory_bytes: u64, code: &[u8]) -> Result<Duration, Box<dyn std::error::Error>> {
    let started = Instant::now();
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), usize::try_from(memory_bytes)?)])?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory_bytes,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the region is the whole mapping of `memory`, which outlives the processor: it is declared before
    // it and dropped after it.
    unsafe { vm.set_user_memory_region(region)? };
    // The first 2 MiB, mapped to themselves in one page.
    memory.write_obj(PDPT | 0x3, GuestAddress(PML4))?;
    memory.write_obj(PD | 0x3, GuestAddress(PDPT))?;
    memory.write_obj(0x83u64, GuestAddress(PD))?;
    memory.write_slice(code, GuestAddress(CODE))?;

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut special = vcpu.get_sregs()?;
    special.cr3 = PML4;
    special.cr4 |= 0x20; // PAE
    special.cr0 |= 0x8000_0001; // PG, PE
    special.efer |= 0x500; // LME, LMA
    special.cs.l = 1;
    special.cs.db = 0;
    special.cs.base = 0;
    special.cs.limit = 0xffff_ffff;
    special.cs.g = 1;
    special.cs.type_ = 11;
    special.cs.s = 1;
    special.cs.present = 1;
    special.cs.selector = 0x10;
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    general.rip = CODE;
    general.rflags = 2;
    vcpu.set_regs(&general)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(..) => return Ok(started.elapsed()),
            VcpuExit::Intr => {}
            other => return Err(format!("unexpected exit {other:?}").into()),
        }
    }
}
