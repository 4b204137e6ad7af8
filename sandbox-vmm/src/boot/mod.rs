//! What the kernel finds when it starts: itself, its command line, the memory map, page tables and the MP table.
//! Follows the 64-bit entry of Linux's `Documentation/arch/x86/boot.rst`.

mod kernel_file;
mod mp_table;

use std::fs::File;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use self::kernel_file::KernelFile;
use crate::hypervisor::CpuStart;
use crate::layout::{self, Layout};
use crate::memory::GuestRam;

/// Entries of the descriptor table: two unused, code, data, task state.
pub const GDT_ENTRIES: usize = 5;
/// Selectors as the boot protocol wants them: code 0x10, data 0x18; the task segment is ours.
const GDT: [u64; GDT_ENTRIES] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// Why the kernel could not be made ready. The caller's or host's fault: the file is ours, not the guest's.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is no kernel we can start.
    #[error("the kernel is not an uncompressed 64-bit ELF file that fits into guest memory: {0}")]
    Kernel(String),
    /// Guest memory is too small for the tables.
    #[error("guest memory cannot hold the boot tables: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Loads `kernel` and writes everything it needs into guest memory. Returns where the first processor starts.
///
/// # Errors
/// See [`BootError`].
pub fn load(
    memory: &GuestRam,
    layout: &Layout,
    kernel: &mut File,
    command_line: &str,
) -> Result<CpuStart, BootError> {
    let lowest = Some(GuestAddress(layout::HIGH_MEMORY));
    let entry = Elf::load(&**memory, None, &mut KernelFile(kernel), lowest)
        .map_err(|error| BootError::Kernel(error.to_string()))?
        .kernel_load
        .0;
    // Guest memory starts zeroed, so the string is already terminated.
    memory.write_slice(command_line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    write_boot_params(memory, layout, command_line)?;
    write_seed(memory)?;
    write_page_tables(memory)?;
    for (index, entry) in GDT.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT + 8 * index as u64))?;
    }
    mp_table::write(memory, layout.cpus())?;
    Ok(CpuStart {
        instruction: entry,
        boot_params: layout::BOOT_PARAMS,
        stack: layout::BOOT_STACK,
        page_tables: layout::PAGE_TABLES,
        gdt: layout::GDT,
        gdt_entries: GDT,
    })
}

/// The "zero page": only what the 64-bit entry reads. Offsets are those of `boot_params` and its `setup_header`.
fn write_boot_params(memory: &GuestRam, layout: &Layout, command_line: &str) -> Result<(), BootError> {
    const E820_ENTRIES: u64 = 0x1e8;
    const BOOT_FLAG: u64 = 0x1fe;
    const HEADER: u64 = 0x202;
    const LOADER_TYPE: u64 = 0x210;
    const COMMAND_LINE: u64 = 0x228;
    const COMMAND_LINE_SIZE: u64 = 0x238;
    const SETUP_DATA: u64 = 0x250;
    const E820_TABLE: u64 = 0x2d0;
    const E820_ENTRY_BYTES: u64 = 20;
    const E820_RAM: u32 = 1;
    const UNDEFINED_LOADER: u8 = 0xff;

    let at = |offset: u64| GuestAddress(layout::BOOT_PARAMS + offset);
    memory.write_obj(0xaa55u16, at(BOOT_FLAG))?;
    memory.write_slice(b"HdrS", at(HEADER))?;
    memory.write_obj(UNDEFINED_LOADER, at(LOADER_TYPE))?;
    memory.write_obj(layout::COMMAND_LINE as u32, at(COMMAND_LINE))?;
    memory.write_obj(
        u32::try_from(command_line.len()).unwrap_or(0),
        at(COMMAND_LINE_SIZE),
    )?;
    memory.write_obj(layout::SETUP_DATA, at(SETUP_DATA))?;

    let mut ranges = vec![(0, layout::MP_POINTER)];
    for &(start, length) in layout.ram() {
        let first = start.max(layout::HIGH_MEMORY);
        ranges.push((first, start + length - first));
    }
    for (index, (start, length)) in ranges.iter().enumerate() {
        let entry = E820_TABLE + E820_ENTRY_BYTES * index as u64;
        memory.write_obj(*start, at(entry))?;
        memory.write_obj(*length, at(entry + 8))?;
        memory.write_obj(E820_RAM, at(entry + 16))?;
    }
    memory.write_obj(ranges.len() as u8, at(E820_ENTRIES))?;
    Ok(())
}

/// A seed for the kernel's generator, the only entry of `setup_data`. With it the generator is ready before anything
/// asks, and need not gather for each who does. The kernel erases it.
fn write_seed(memory: &GuestRam) -> Result<(), BootError> {
    const RNG_SEED: u32 = 9;
    const SEED_BYTES: usize = 32;

    let mut seed = [0u8; SEED_BYTES];
    // An empty entry is allowed: it only fails before the host's own pool is ready, long past.
    let length = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::NONBLOCK).unwrap_or(0);
    let at = |offset: u64| GuestAddress(layout::SETUP_DATA + offset);
    // Memory starts zeroed: there is no next entry.
    memory.write_obj(RNG_SEED, at(8))?;
    memory.write_obj(u32::try_from(length).unwrap_or(0), at(12))?;
    memory.write_slice(&seed, at(16))?;
    Ok(())
}

/// Identity-maps the first GiB in pages of 2 MiB: kernel, boot parameters and command line are all in it.
fn write_page_tables(memory: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let (root, directories, pages) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    memory.write_obj(directories | PRESENT_WRITABLE, GuestAddress(root))?;
    memory.write_obj(pages | PRESENT_WRITABLE, GuestAddress(directories))?;
    let table: Vec<u8> = (0..512u64)
        .flat_map(|page| ((page << 21) | PRESENT_WRITABLE | LARGE).to_le_bytes())
        .collect();
    memory.write_slice(&table, GuestAddress(pages))?;
    Ok(())
}
