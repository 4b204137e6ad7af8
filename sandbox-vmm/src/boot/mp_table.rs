//! The MultiProcessor table (Intel MP specification 1.4): processors and interrupt routing for a kernel without ACPI.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout;
use crate::memory::GuestRam;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
/// Lines of the bus; each goes to the I/O APIC pin of the same number.
const ISA_LINES: u8 = 16;
/// Bits of an interrupt entry's type: vectored, non-maskable, from an external 8259.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes the pointer where the kernel looks first, and the table.
pub(super) fn write(memory: &GuestRam, cpus: u8) -> Result<(), BootError> {
    let table = table(cpus);
    let mut pointer = Vec::with_capacity(16);
    pointer.extend(b"_MP_");
    pointer.extend((layout::MP_TABLE as u32).to_le_bytes());
    pointer.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    memory.write_slice(&pointer, GuestAddress(layout::MP_POINTER))?;
    memory.write_slice(&table, GuestAddress(layout::MP_TABLE))?;
    Ok(())
}

fn table(cpus: u8) -> Vec<u8> {
    let io_apic_id = cpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    for cpu in 0..cpus {
        const ENABLED: u8 = 1;
        const BOOTS: u8 = 2;
        let flags = if cpu == 0 { ENABLED | BOOTS } else { ENABLED };
        entries.extend([0, cpu, APIC_VERSION, flags]);
        // Signature and features of a processor with an on-chip APIC; the kernel asks CPUID instead.
        entries.extend(0x600u32.to_le_bytes());
        entries.extend(0x201u32.to_le_bytes());
        entries.extend([0; 8]);
        count += 1;
    }
    entries.extend([1, 0]);
    entries.extend(b"ISA   ");
    entries.extend([2, io_apic_id, APIC_VERSION, 1]);
    entries.extend(layout::IO_APIC.to_le_bytes());
    count += 2;
    for line in 0..ISA_LINES {
        entries.extend([3, INT, 0, 0, 0, line, io_apic_id, line]);
        count += 1;
    }
    entries.extend([4, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.extend([4, NMI, 0, 0, 0, 0, 0xff, 1]);
    count += 2;

    const HEADER_BYTES: usize = 44;
    let mut table = Vec::with_capacity(HEADER_BYTES + entries.len());
    table.extend(b"PCMP");
    table.extend(((HEADER_BYTES + entries.len()) as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"SANDBOX ");
    table.extend(b"MICROVM     ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    set_checksum(&mut table, 7);
    table
}

/// Sets the byte at `at` so that all bytes sum to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_to_zero_and_states_its_length() {
        for cpus in [1u8, 2, 32, 254] {
            let table = table(cpus);
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert!(layout::MP_TABLE + (table.len() as u64) < layout::HIGH_MEMORY);
        }
    }
}
