//! The first processor's state at its first instruction: long mode, as the kernel's 64-bit entry expects it.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use sandbox_vmm::hypervisor::{CpuStart, HypervisorError};

use super::failed;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);
/// Reserved bit 1 is always set; interrupts are off.
const RFLAGS: u64 = 2;
/// What `fninit` leaves, and all SIMD exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Enabled, write-back.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_FAST_STRINGS: u64 = 1;

/// Offsets of the local APIC's two pins, and what they deliver.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXT_INT: u32 = 7 << 8;
const DELIVERY_MASK: u32 = 7 << 8;

/// What every processor needs, booting or not.
pub(super) fn common(vcpu: &VcpuFd) -> Result<(), HypervisorError> {
    for (index, data) in [
        (MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK),
        (MSR_MISC_ENABLE, MISC_FAST_STRINGS),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        // Only a wish: a processor without one of these works without.
        if let Ok(msrs) = Msrs::from_entries(&[entry]) {
            let _ = vcpu.set_msrs(&msrs);
        }
    }
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(failed("set floating point registers"))?;
    let mut lapic = vcpu
        .get_lapic()
        .map_err(failed("read the interrupt controller"))?;
    set_pin(&mut lapic.regs, APIC_LVT0, DELIVER_EXT_INT);
    set_pin(&mut lapic.regs, APIC_LVT1, DELIVER_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(failed("set the interrupt controller"))
}

/// What only the processor that boots needs.
pub(super) fn boot(vcpu: &VcpuFd, start: &CpuStart) -> Result<(), HypervisorError> {
    // Special registers first: general ones are checked against the mode.
    let mut special = vcpu.get_sregs().map_err(failed("read special registers"))?;
    let [_, _, code, data, task] = start.gdt_entries;
    special.gdt.base = start.gdt;
    special.gdt.limit = (start.gdt_entries.len() * 8 - 1) as u16;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cs = segment(code, 2);
    let data = segment(data, 3);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = segment(task, 4);
    special.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    special.cr3 = start.page_tables;
    special.cr4 = CR4_PAE;
    special.efer = EFER_LONG_MODE;
    vcpu.set_sregs(&special)
        .map_err(failed("set special registers"))?;
    let regs = kvm_regs {
        rip: start.instruction,
        rsi: start.boot_params,
        rsp: start.stack,
        rbp: start.stack,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("set registers"))
}

/// Unpacks a descriptor as the processor would when loading selector `index * 8`.
fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let bits = |from: u32, count: u32| (descriptor >> from) & ((1 << count) - 1);
    let base = bits(16, 24) | (bits(56, 8) << 24);
    let raw_limit = (bits(0, 16) | (bits(48, 4) << 16)) as u32;
    let granular = bits(55, 1) == 1;
    kvm_segment {
        base,
        limit: if granular {
            (raw_limit << 12) | 0xfff
        } else {
            raw_limit
        },
        selector: index * 8,
        type_: bits(40, 4) as u8,
        s: bits(44, 1) as u8,
        dpl: bits(45, 2) as u8,
        present: bits(47, 1) as u8,
        avl: bits(52, 1) as u8,
        l: bits(53, 1) as u8,
        db: bits(54, 1) as u8,
        g: u8::from(granular),
        unusable: 0,
        ..Default::default()
    }
}

fn set_pin(regs: &mut [std::os::raw::c_char], offset: usize, deliver: u32) {
    let Some(register) = regs.get_mut(offset..offset + 4) else {
        return;
    };
    let old = register
        .iter()
        .rev()
        .fold(0u32, |value, byte| (value << 8) | u32::from(*byte as u8));
    let new = (old & !DELIVERY_MASK) | deliver;
    for (byte, value) in register.iter_mut().zip(new.to_le_bytes()) {
        *byte = value as std::os::raw::c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_descriptor_unpacks_to_a_flat_long_mode_segment() {
        let code = segment(0x00af_9b00_0000_ffff, 2);
        assert_eq!((code.base, code.limit, code.selector), (0, 0xffff_ffff, 0x10));
        assert_eq!(
            (code.l, code.db, code.type_, code.present, code.s),
            (1, 0, 11, 1, 1)
        );
    }
}
