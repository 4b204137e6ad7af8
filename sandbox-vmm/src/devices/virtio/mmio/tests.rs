//! The transport against drivers that follow the rules, and those that do not.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::devices::rng::EntropyDevice;
use crate::devices::virtio::testing::{Driver, MEMORY, NoIrq};
use crate::memory;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;

fn transport() -> MmioTransport {
    let memory = memory::map(&[(0, MEMORY)]).unwrap();
    MmioTransport::new(Box::new(EntropyDevice::new()), memory, Arc::new(NoIrq)).unwrap()
}

fn write(transport: &mut MmioTransport, register: u64, value: u32) {
    transport.write(register, &value.to_le_bytes());
}

fn read(transport: &mut MmioTransport, register: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(register, &mut word);
    u32::from_le_bytes(word)
}

#[test]
fn a_driver_that_skips_a_step_gets_needs_reset_and_can_start_again() {
    let mut transport = transport();
    write(&mut transport, 0x70, 1);
    write(&mut transport, 0x70, 15);
    assert_eq!(read(&mut transport, 0x70) & NEEDS_RESET, NEEDS_RESET);
    assert!(matches!(transport.take_fault(), Some(GuestFault::Sequence(_))));
    assert_eq!(transport.take_fault(), None);
    write(&mut transport, 0x70, 0);
    assert_eq!(read(&mut transport, 0x70), 0);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let mut transport = transport();
    for status in [1, 3] {
        write(&mut transport, 0x70, status);
    }
    write(&mut transport, 0x24, 1);
    write(&mut transport, 0x20, 0xffff_ffff);
    write(&mut transport, 0x70, 11);
    assert_eq!(read(&mut transport, 0x70), 3);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let mut transport = transport();
    for status in [1, 3, 11] {
        write(&mut transport, 0x70, status);
    }
    assert_eq!(read(&mut transport, 0x70), 3);
}

#[test]
fn a_queue_outside_memory_never_becomes_ready() {
    for address in [MEMORY, MEMORY - 8, u64::MAX - 15, 1 << 63] {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        for status in [0, 1, 3] {
            driver.write(0x70, status);
        }
        driver.write(0x24, 1);
        driver.write(0x20, 1);
        driver.write(0x70, 11);
        driver.write(0x80, address as u32 & !15);
        driver.write(0x84, (address >> 32) as u32);
        driver.write(0x44, 1);
        assert_eq!(driver.read(0x44), 0, "{address:#x}");
        assert!(driver.needs_reset());
    }
}

#[test]
fn a_queue_cannot_be_moved_while_the_device_uses_it() {
    let mut driver = Driver::start(Box::new(EntropyDevice::new()));
    driver.write(0x80, 0x2000);
    assert!(driver.needs_reset());
    assert_eq!(driver.request(0, &[], &[8]), None);
}

#[test]
fn impossible_queue_sizes_are_refused() {
    for size in [0, 3, 17, 1 << 15, 1 << 16, u32::MAX] {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        for status in [0, 1, 3] {
            driver.write(0x70, status);
        }
        driver.write(0x24, 1);
        driver.write(0x20, 1);
        driver.write(0x70, 11);
        driver.write(0x38, size);
        assert!(driver.needs_reset(), "{size}");
    }
}

#[test]
fn chains_that_loop_leave_memory_or_mix_directions_break_only_their_device() {
    // (address, length, flags, next) of the descriptors from 0 on.
    let hostile: [&[(u64, u32, u16, u16)]; 7] = [
        &[(0x10_0000, 8, WRITABLE | NEXT, 0)],
        &[(0x10_0000, 8, WRITABLE | NEXT, 9999)],
        &[(MEMORY - 4, 8, WRITABLE, 0)],
        &[(u64::MAX - 3, 8, WRITABLE, 0)],
        &[(0x10_0000, u32::MAX, WRITABLE, 0)],
        &[(0x10_0000, 8, WRITABLE | NEXT, 1), (0x10_0000, 8, 0, 0)],
        &[(0x1_0000, 0x10_0000, INDIRECT, 0)],
    ];
    for (number, chain) in hostile.into_iter().enumerate() {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        driver.offer(0, &[], &[8]);
        let (table, ..) = Driver::rings(0);
        for (index, &(address, len, flags, next)) in chain.iter().enumerate() {
            driver.descriptor(table, index as u16, address, len, flags, next);
        }
        driver.transport.notify(0);
        assert!(driver.needs_reset(), "chain {number}");
        driver.restart();
        assert_eq!(driver.request(0, &[], &[8]).unwrap().len(), 8);
    }
}

#[test]
fn more_chains_than_slots_break_the_ring() {
    let mut driver = Driver::start(Box::new(EntropyDevice::new()));
    let (_, available, _) = Driver::rings(0);
    driver
        .memory
        .write_obj(17u16, GuestAddress(available + 2))
        .unwrap();
    driver.transport.notify(0);
    assert!(driver.needs_reset());
}

#[test]
fn odd_widths_and_offsets_read_zero_and_write_nothing() {
    let mut transport = transport();
    for width in [1, 2, 3, 5, 8] {
        let mut bytes = vec![0xaa; width];
        transport.read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0));
        transport.write(0x70, &vec![1; width]);
    }
    assert_eq!(read(&mut transport, 0x70), 0);
    assert_eq!(read(&mut transport, 0x3), 0);
}

proptest! {
    #[test]
    fn no_sequence_of_register_accesses_panics(
        accesses in proptest::collection::vec((any::<bool>(), 0u64..0x120, any::<u32>(), 0usize..9), 0..300),
        prefix in 0usize..5,
    ) {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        // From different depths of the initialisation on.
        for status in [0u32, 1, 3, 11, 15].into_iter().take(prefix) {
            driver.write(0x70, status);
        }
        for (write, register, value, width) in accesses {
            let mut bytes = u64::from(value).to_le_bytes();
            // Mostly whole registers, now and then anything.
            let (register, width) = if width > 2 { (register & !3, 4) } else { (register, width + 1) };
            match write {
                true => driver.transport.write(register, &bytes[..width]),
                false => driver.transport.read(register, &mut bytes[..width]),
            }
            driver.transport.notify(0);
            driver.transport.take_fault();
        }
        driver.restart();
        prop_assert_eq!(driver.request(0, &[], &[8]).unwrap().len(), 8);
    }

    #[test]
    fn no_content_of_rings_and_tables_panics(words in proptest::collection::vec((0u64..0x1_0000, any::<u64>()), 1..64)) {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        let (table, available, _) = Driver::rings(0);
        for (offset, word) in words {
            let at = table + (offset & 0xff8);
            driver.memory.write_obj(word, GuestAddress(at)).unwrap();
            driver.memory.write_obj(word as u16 & 15, GuestAddress(available + 2)).unwrap();
            driver.transport.notify(0);
        }
    }
}
