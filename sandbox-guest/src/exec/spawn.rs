//! Starts a process: a child that borrows the agent's memory until it has become the program.
//!
//! Unlike a fork this copies no page tables and takes no page faults afterwards, which in a virtual machine
//! is most of the cost of starting a process. The child makes system calls and nothing else.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use rustix::process::Pid;

/// Stack of the child until it becomes the program. It calls a few functions of the C library, none of which
/// has large variables.
const STACK: usize = 64 << 10;

/// All that a process needs, worked out beforehand.
pub(crate) struct Plan<'a> {
    /// Standard input, output and error; each above 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Files to try in turn, as `execvp(3)` does.
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    /// Whether to run in `/` when `cwd` cannot be entered.
    pub(crate) cwd_optional: bool,
    /// Whom to become; `None` stays.
    pub(crate) identity: Option<Ids>,
}

/// User and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// What failed, and how.
#[derive(Debug)]
pub(crate) struct SpawnFault {
    pub(crate) step: Step,
    pub(crate) error: io::Error,
    /// Index in [`Plan::programs`] that the error is about.
    pub(crate) program: usize,
}

/// Steps in the order they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Clone,
    Stdio,
    Identity,
    Cwd,
    Exec,
}

/// Starts processes, one at a time.
pub(crate) struct Spawner {
    /// Kept, so that its pages are there for the next child.
    stack: Vec<u128>,
    /// What a child must not ignore.
    ignored: Vec<libc::c_int>,
}

/// What the child needs, as it needs it: pointers into the plan, and room for its answer.
struct Child {
    stdio: [libc::c_int; 3],
    programs: Vec<*const libc::c_char>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    cwd: *const libc::c_char,
    cwd_optional: bool,
    ids: Option<(u32, u32, *const u32, usize)>,
    no_signals: libc::sigset_t,
    ignored: *const [libc::c_int],
    failure: Option<(Step, libc::c_int, usize)>,
}

impl Spawner {
    pub(crate) fn new() -> Self {
        Self {
            stack: Vec::with_capacity(STACK / size_of::<u128>()),
            ignored: crate::signals::ignored(),
        }
    }

    /// Starts a process in a session and process group of its own.
    pub(crate) fn spawn(&mut self, plan: &Plan) -> Result<Pid, SpawnFault> {
        // SAFETY: all-zero is a valid `sigset_t`, a plain array of integers.
        let (mut every, mut before, mut none): (libc::sigset_t, libc::sigset_t, libc::sigset_t) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: both are valid for writing.
        unsafe {
            libc::sigfillset(&mut every);
            libc::sigemptyset(&mut none);
        }
        let mut child = Child {
            stdio: plan.stdio.each_ref().map(|end| end.as_raw_fd()),
            programs: plan.programs.iter().map(|path| path.as_ptr()).collect(),
            argv: pointers(&plan.argv),
            env: pointers(&plan.env),
            cwd: plan.cwd.as_ptr(),
            cwd_optional: plan.cwd_optional,
            ids: plan
                .identity
                .as_ref()
                .map(|ids| (ids.uid, ids.gid, ids.groups.as_ptr(), ids.groups.len())),
            no_signals: none,
            ignored: self.ignored.as_slice(),
            failure: None,
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = self.stack.spare_capacity_mut().as_mut_ptr_range().end;
        // SAFETY:
        // - signals are blocked around the call, so no handler of ours runs in the child on our memory;
        // - the stack is ours, large enough (`STACK`), aligned as `u128`, and used by this child alone, since
        //   CLONE_VFORK stops this thread until the child has left our memory and `self` is borrowed meanwhile;
        // - `child` outlives the call for the same reason, and nothing else refers to it meanwhile.
        let (raw, error) = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &every, &mut before);
            let raw = libc::clone(become_program, top.cast(), flags, (&raw mut child).cast());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
            (raw, error)
        };
        let Some(pid) = Pid::from_raw(raw).filter(|_| raw > 0) else {
            return Err(SpawnFault {
                step: Step::Clone,
                error,
                program: 0,
            });
        };
        match child.failure {
            None => Ok(pid),
            Some((step, errno, program)) => {
                // It has ended already, and its end is nobody else's business.
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                Err(SpawnFault {
                    step,
                    error: io::Error::from_raw_os_error(errno),
                    program,
                })
            }
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|text| CStr::as_ptr(text))
        .chain([ptr::null()])
        .collect()
}

/// Runs in the child, on borrowed memory: no allocation, no lock, no panic.
extern "C" fn become_program(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn` passes a pointer to its `Child`, which it does not touch until this process has ended or
    // become the program.
    let child = unsafe { &mut *argument.cast::<Child>() };
    child.failure = Some(attempt(child));
    // SAFETY: ends this process at once; no destructor or exit handler of the agent's runs.
    unsafe { libc::_exit(127) }
}

/// Returns only if it failed.
fn attempt(child: &Child) -> (Step, libc::c_int, usize) {
    // SAFETY: plain system calls; every pointer comes from the plan or the spawner, which outlive this process's
    // use of our memory, and is zero-terminated or comes with its length. Identities change by the raw calls, which,
    // unlike the C library's functions, leave the other threads of the memory's owner alone.
    unsafe {
        libc::setsid();
        for (target, source) in (0..).zip(child.stdio) {
            if libc::dup2(source, target) < 0 {
                return (Step::Stdio, errno(), 0);
            }
        }
        if let Some((uid, gid, groups, count)) = child.ids
            && (libc::syscall(libc::SYS_setgroups, count, groups) != 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0)
        {
            return (Step::Identity, errno(), 0);
        }
        if libc::chdir(child.cwd) != 0 && (!child.cwd_optional || libc::chdir(c"/".as_ptr()) != 0) {
            return (Step::Cwd, errno(), 0);
        }
        // The one disposition a program would inherit.
        for number in &*child.ignored {
            libc::signal(*number, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &child.no_signals, ptr::null_mut());
        let mut failure = (Step::Exec, libc::ENOENT, 0);
        for (index, program) in child.programs.iter().enumerate() {
            libc::execve(*program, child.argv.as_ptr(), child.env.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                // Another directory may have one that may be executed.
                libc::EACCES => failure = (Step::Exec, libc::EACCES, index),
                other => return (Step::Exec, other, index),
            }
        }
        failure
    }
}

fn errno() -> libc::c_int {
    // SAFETY: the C library gives the address of this thread's own variable.
    unsafe { *libc::__errno_location() }
}
