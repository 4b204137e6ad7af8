//! Small programs that the kernel runs (RFC 9669), made by hand and given to it by bpf(2).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use sandbox_protocol::SYNTHETIC_V4;

/// Commands of bpf(2).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;

/// Loads a program, and gives it.
pub(super) fn load(
    program_type: u32,
    attach_type: u32,
    name: &[u8],
    code: &[Instruction],
) -> io::Result<OwnedFd> {
    let mut padded = [0; 16];
    for (place, byte) in padded.iter_mut().zip(name) {
        *place = *byte;
    }
    let load = ProgramLoad {
        program_type,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: padded,
        interface: 0,
        attach_type,
    };
    // SAFETY: `code` has as many instructions as `count` says, the licence ends with a zero, and both outlive the call.
    unsafe { opens(BPF_PROG_LOAD, &load) }
}

/// Has the kernel run a program for a namespace or a group of processes, from now on until the machine ends.
pub(super) fn attach(program: &OwnedFd, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<()> {
    let link = LinkCreate {
        program: program.as_raw_fd(),
        target: target.as_raw_fd(),
        attach_type,
        flags: 0,
    };
    // SAFETY: this command's attributes have no pointers.
    let link = unsafe { opens(BPF_LINK_CREATE, &link) }?;
    // The program stays as long as the link is open: as long as the agent runs, and with it the machine.
    std::mem::forget(link);
    Ok(())
}

/// A word of an address, which is in memory as on the wire, and loaded as the machine orders bytes.
pub(super) fn word(octets: &[u8], index: usize) -> i32 {
    let octets = octets
        .get(index * 4..index * 4 + 4)
        .and_then(|octets| octets.try_into().ok());
    i32::from_ne_bytes(octets.unwrap_or_default())
}

/// The synthetic network of IPv4, and its mask, likewise.
pub(super) fn v4_network() -> (i32, i32) {
    let mask = (u32::MAX << (32 - SYNTHETIC_V4.1)).to_be_bytes();
    (word(&SYNTHETIC_V4.0.octets(), 0), i32::from_ne_bytes(mask))
}

/// An instruction (RFC 9669 §3).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    /// Destination in the lower four bits, source in the upper.
    registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

pub(super) const fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        opcode,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// Opcodes (RFC 9669 §4, §5).
pub(super) const LOAD_U32: u8 = 0x61;
pub(super) const STORE_U32: u8 = 0x63;
pub(super) const LOAD_MAP: u8 = 0x18;
pub(super) const MOVE: u8 = 0xbf;
pub(super) const MOVE_IMMEDIATE: u8 = 0xb7;
pub(super) const ADD_IMMEDIATE: u8 = 0x07;
pub(super) const AND_IMMEDIATE: u8 = 0x57;
pub(super) const SHIFT_RIGHT: u8 = 0x77;
pub(super) const JUMP: u8 = 0x05;
pub(super) const JUMP_IF_EQUAL: u8 = 0x15;
pub(super) const JUMP_IF_NOT: u8 = 0x55;
/// Compares the lower 32 bits: no sign is extended into those of an address.
pub(super) const JUMP_IF_NOT_U32: u8 = 0x56;
pub(super) const CALL: u8 = 0x85;
pub(super) const EXIT: u8 = 0x95;
/// Says that the immediate of [`LOAD_MAP`] is a map's descriptor.
pub(super) const PSEUDO_MAP: u8 = 1;

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: libc::c_int,
    target: libc::c_int,
    attach_type: u32,
    flags: u32,
}

/// bpf(2) for commands that give a descriptor.
///
/// # Safety
/// As [`call`], and the command is one that gives a new descriptor.
pub(super) unsafe fn opens<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// bpf(2).
///
/// # Safety
/// `T` is laid out as `union bpf_attr` is for this command, and what its pointers lead to is as the command expects it
/// until the call returns.
pub(super) unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: reads as many bytes as the length says, which `attributes` has; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
