//! Gives connections to synthetic addresses, on whatever port, to the agent's listeners: a program that the kernel runs
//! where it looks up who listens (`BPF_PROG_TYPE_SK_LOOKUP`, Documentation/bpf/prog_sk_lookup.rst). Nothing is
//! translated or tracked, and the accepted socket bears the address that was meant.
//!
//! The program, for what is new and goes to a synthetic network:
//!
//! ```text
//! if (protocol is not TCP) return DROP;
//! listener = listeners[family is IPv6];
//! if (listener) { assign(listener); release(listener); }
//! return PASS;
//! ```

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use sandbox_protocol::SYNTHETIC_V6;

use super::bpf::{
    self, ADD_IMMEDIATE, AND_IMMEDIATE, CALL, EXIT, Instruction, JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT,
    JUMP_IF_NOT_U32, LOAD_MAP, LOAD_U32, MOVE, MOVE_IMMEDIATE, PSEUDO_MAP, STORE_U32, instruction, word,
};
use crate::diagnostics::Failed;

/// Commands of bpf(2).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// What the kernel says to `SK_PASS`: the look-up goes on, with the listener that was assigned, if one was.
const SK_PASS: i32 = 1;

/// Nobody is there, whoever listens on that port of all addresses.
const SK_DROP: i32 = 0;

/// Listeners by family.
pub(super) struct Steering {
    listeners: OwnedFd,
    /// Whether one of IPv6 is among them. The verifier of a kernel without IPv6 takes no program that reads such addresses.
    v6: bool,
}

impl Steering {
    pub(super) fn new() -> Result<Self, Failed> {
        let attributes = MapCreate {
            map_type: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: 2,
        };
        // SAFETY: this command's attributes have no pointers.
        let listeners = unsafe { bpf::opens(BPF_MAP_CREATE, &attributes) }
            .map_err(Failed::when("make a map of sockets"))?;
        Ok(Self { listeners, v6: false })
    }

    /// Adds the listener of a family.
    pub(super) fn add(&mut self, listener: BorrowedFd<'_>, v6: bool) -> Result<(), Failed> {
        self.v6 |= v6;
        let (key, value) = (u32::from(v6), listener.as_raw_fd());
        let attributes = MapUpdate {
            map: self.listeners.as_raw_fd(),
            padding: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: `key` and `value` are of the map's sizes, and outlive the call.
        unsafe { bpf::call(BPF_MAP_UPDATE_ELEM, &attributes) }
            .map(drop)
            .map_err(Failed::when("put a listener into a map of sockets"))
    }

    /// Has the kernel ask from now on until the machine ends.
    pub(super) fn begin(self) -> Result<(), Failed> {
        let code = program(self.listeners.as_fd(), self.v6);
        let program = bpf::load(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, b"sandbox_capture", &code)
            .map_err(Failed::when("load the program that steers"))?;
        let what = "steer connections";
        let namespace = File::open("/proc/self/ns/net").map_err(Failed::when(what))?;
        bpf::attach(&program, namespace.as_fd(), BPF_SK_LOOKUP).map_err(Failed::when(what))
    }
}

/// Helper functions of the kernel.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

fn program(listeners: BorrowedFd<'_>, with_v6: bool) -> Vec<Instruction> {
    let (v4, v4_mask) = bpf::v4_network();
    let v6 = SYNTHETIC_V6.0.octets();
    // r6 is the context, r8 the listener's place in the map, r9 the protocol.
    let of_v4 = [
        instruction(LOAD_U32, 2, 6, LOCAL_IP4, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, v4_mask),
        instruction(JUMP_IF_NOT_U32, 2, 0, PASS, v4),
        instruction(MOVE_IMMEDIATE, 8, 0, 0, 0),
    ];
    // The prefix is three words.
    let of_v6 = [
        instruction(LOAD_U32, 2, 6, LOCAL_IP6, 0),
        instruction(JUMP_IF_NOT_U32, 2, 0, PASS, word(&v6, 0)),
        instruction(LOAD_U32, 2, 6, LOCAL_IP6 + 4, 0),
        instruction(JUMP_IF_NOT_U32, 2, 0, PASS, word(&v6, 1)),
        instruction(LOAD_U32, 2, 6, LOCAL_IP6 + 8, 0),
        instruction(JUMP_IF_NOT_U32, 2, 0, PASS, word(&v6, 2)),
        instruction(MOVE_IMMEDIATE, 8, 0, 0, 1),
    ];
    let assign = [
        instruction(JUMP_IF_EQUAL, 9, 0, 2, libc::IPPROTO_TCP),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, SK_DROP),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(STORE_U32, 10, 8, -4, 0),
        instruction(LOAD_MAP, 1, PSEUDO_MAP, 0, listeners.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(JUMP_IF_EQUAL, 0, 0, PASS, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, SK_RELEASE),
    ];
    let mut code = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_U32, 9, 6, PROTOCOL, 0),
        instruction(LOAD_U32, 2, 6, FAMILY, 0),
    ];
    if with_v6 {
        // Each family's part leads to what both have in common.
        let over = |part: &[Instruction]| part.len() as i16;
        code.push(instruction(JUMP_IF_EQUAL, 2, 0, over(&of_v4) + 1, libc::AF_INET6));
        code.extend(of_v4);
        code.push(instruction(JUMP, 0, 0, over(&of_v6), 0));
        code.extend(of_v6);
    } else {
        code.push(instruction(JUMP_IF_NOT, 2, 0, PASS, libc::AF_INET));
        code.extend(of_v4);
    }
    code.extend(assign);
    let pass = code.len();
    code.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, SK_PASS));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    for (index, jump) in code.iter_mut().enumerate() {
        if jump.offset == PASS {
            jump.offset = (pass - index - 1) as i16;
        }
    }
    code
}

/// Stands for the way to the end, until its length is known.
const PASS: i16 = i16::MAX;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: libc::c_int,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_leads_to_an_instruction() {
        let descriptor = File::open("/dev/null").unwrap();
        for with_v6 in [false, true] {
            let code = program(descriptor.as_fd(), with_v6);
            for (index, jump) in code.iter().enumerate() {
                if [JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT, JUMP_IF_NOT_U32].contains(&jump.opcode) {
                    let to = code.get(index + 1 + jump.offset as usize);
                    // The second half of a `LOAD_MAP` is none.
                    assert!(to.is_some_and(|to| to.opcode != 0), "{index}");
                }
            }
        }
    }

    #[test]
    fn both_families_meet_where_the_listener_is_looked_up() {
        let descriptor = File::open("/dev/null").unwrap();
        let code = program(descriptor.as_fd(), true);
        let find = |wanted: &dyn Fn(&Instruction) -> bool| code.iter().position(wanted).unwrap();
        let target = |at: usize| at + 1 + code[at].offset as usize;
        let v4_ends = find(&|step| step.opcode == JUMP);
        let meet = find(&|step| step.opcode == JUMP_IF_EQUAL && step.immediate == libc::IPPROTO_TCP);
        assert_eq!(target(v4_ends), meet);
        let family = find(&|step| step.opcode == JUMP_IF_EQUAL && step.immediate == libc::AF_INET6);
        assert_eq!(target(family), v4_ends + 1);
    }
}
