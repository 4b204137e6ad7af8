//! Keeps programs from binding to synthetic addresses, which are local ones. Whoever connects from the address that
//! another program is connecting to, at the same time (RFC 9293 §3.5), would be taken for the host that it stands for.
//!
//! Two programs that the kernel runs where a socket is bound (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`), for all processes:
//!
//! ```text
//! if (current->tgid == 1) return ALLOW;             // the agent
//! return address is of a synthetic network ? DENY : ALLOW;
//! ```

use std::{fs::File, io, os::fd::AsFd};

use sandbox_protocol::SYNTHETIC_V6;

use super::bpf::{
    self, AND_IMMEDIATE, CALL, EXIT, Instruction, JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT_U32, LOAD_U32, MOVE,
    MOVE_IMMEDIATE, SHIFT_RIGHT, instruction, word,
};
use crate::diagnostics::Failed;

const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_BIND: u32 = 8;
const BPF_CGROUP_INET6_BIND: u32 = 9;

/// What is returned to the kernel: it says `EPERM`, or goes on.
const DENY: i32 = 0;
const ALLOW: i32 = 1;

/// A helper function of the kernel: thread group in the upper half, thread in the lower.
const GET_CURRENT_PID_TGID: i32 = 14;

/// Offsets in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;

/// From now on until the machine ends.
pub(super) fn begin() -> Result<(), Failed> {
    let guard = || -> io::Result<()> {
        // The group of all processes, which is mounted before any other program runs.
        let root = File::open("/sys/fs/cgroup")?;
        for (attach_type, name, code) in [
            (BPF_CGROUP_INET4_BIND, b"sandbox_bind_v4", v4()),
            (BPF_CGROUP_INET6_BIND, b"sandbox_bind_v6", v6()),
        ] {
            let program = bpf::load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type, name, &code)?;
            match bpf::attach(&program, root.as_fd(), attach_type) {
                // A kernel without IPv6 binds nothing to such addresses.
                Err(_) if attach_type == BPF_CGROUP_INET6_BIND && !super::has_v6() => {}
                attached => attached?,
            }
        }
        Ok(())
    };
    guard().map_err(Failed::when("keep synthetic addresses from being bound to"))
}

fn v4() -> Vec<Instruction> {
    let (network, mask) = bpf::v4_network();
    linked(vec![
        instruction(LOAD_U32, 2, 6, USER_IP4, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, mask),
        instruction(JUMP_IF_NOT_U32, 2, 0, TO_ALLOW, network),
    ])
}

fn v6() -> Vec<Instruction> {
    let (network, mask) = bpf::v4_network();
    let synthetic = SYNTHETIC_V6.0.octets();
    let mapped = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    // The prefix of either is three words.
    linked(vec![
        instruction(LOAD_U32, 2, 6, USER_IP6, 0),
        instruction(LOAD_U32, 3, 6, USER_IP6 + 4, 0),
        instruction(LOAD_U32, 4, 6, USER_IP6 + 8, 0),
        instruction(JUMP_IF_NOT_U32, 2, 0, 3, word(&synthetic, 0)),
        instruction(JUMP_IF_NOT_U32, 3, 0, 2, word(&synthetic, 1)),
        instruction(JUMP_IF_NOT_U32, 4, 0, 1, word(&synthetic, 2)),
        instruction(JUMP, 0, 0, TO_DENY, 0),
        instruction(JUMP_IF_NOT_U32, 2, 0, TO_ALLOW, word(&mapped, 0)),
        instruction(JUMP_IF_NOT_U32, 3, 0, TO_ALLOW, word(&mapped, 1)),
        instruction(JUMP_IF_NOT_U32, 4, 0, TO_ALLOW, word(&mapped, 2)),
        instruction(LOAD_U32, 2, 6, USER_IP6 + 12, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, mask),
        instruction(JUMP_IF_NOT_U32, 2, 0, TO_ALLOW, network),
    ])
}

/// Stand for the ways to the two ends, until their lengths are known.
const TO_ALLOW: i16 = i16::MAX;
const TO_DENY: i16 = i16::MAX - 1;

/// A whole program around what looks at the address: what comes to its end is denied. r6 is the context.
fn linked(look: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(CALL, 0, 0, 0, GET_CURRENT_PID_TGID),
        instruction(SHIFT_RIGHT, 0, 0, 0, 32),
        instruction(JUMP_IF_EQUAL, 0, 0, TO_ALLOW, 1),
    ];
    code.extend(look);
    let deny = code.len();
    code.extend([
        instruction(MOVE_IMMEDIATE, 0, 0, 0, DENY),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, ALLOW),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    for (index, jump) in code.iter_mut().enumerate() {
        match jump.offset {
            TO_DENY => jump.offset = (deny - index - 1) as i16,
            TO_ALLOW => jump.offset = (deny + 2 - index - 1) as i16,
            _ => {}
        }
    }
    code
}
