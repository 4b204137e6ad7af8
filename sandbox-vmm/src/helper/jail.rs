//! What the process gives up before it reads its first byte. Later jails only take away what is not used.

use std::os::fd::RawFd;

/// Standard input (the control socket), output (nowhere) and error (diagnostics).
const KEPT_DESCRIPTORS: libc::c_uint = 3;

/// Gives up inherited descriptors, core dumps, being traced and gaining privileges. Fails closed: what cannot be
/// given up ends the process.
pub(super) fn enter() {
    let no_cores = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain system calls on values; no memory of ours is involved but the limit, which outlives its call.
    // No other thread runs yet, and no descriptor above 2 is ours.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, KEPT_DESCRIPTORS, RawFd::MAX, 0) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::setrlimit(libc::RLIMIT_CORE, &no_cores) == 0
    };
    if !done {
        super::fail("cannot give up inherited descriptors, core dumps or privileges");
    }
    crate::fs::prepare_process();
}
