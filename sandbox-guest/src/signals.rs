//! Signals: what commands start with, and their process groups: signals to all of one, and the knowledge when it is
//! gone.

use std::cell::Cell;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// The signals that this process ignores: the one that the runtime ignores for itself, and as an ordinary process
/// those that a parent made it ignore, as `nohup` and shells in the background do. Commands would ignore them, too.
pub(crate) fn ignored() -> Vec<libc::c_int> {
    let is_ignored = |number: &libc::c_int| {
        // SAFETY: all-zero is a valid `sigaction`, a plain structure of integers and an optional function.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: nothing is set, and `action` is valid for writing.
        let asked = unsafe { libc::sigaction(*number, std::ptr::null(), &mut action) };
        asked == 0 && action.sa_sigaction == libc::SIG_IGN
    };
    (1..=31).chain(34..=64).filter(is_ignored).collect()
}

/// The process group of one command, whose leader the agent started.
///
/// Its number stays taken while a process is in the group, and may be given to a stranger afterwards; so
/// nothing is signalled any more once the group was seen empty.
#[derive(Debug)]
pub(crate) struct Group {
    id: Pid,
    leader_reaped: Cell<bool>,
    gone: Cell<bool>,
}

impl Group {
    /// The group led by the process `id`, which has not been reaped yet.
    pub(crate) fn led_by(id: Pid) -> Self {
        Self {
            id,
            leader_reaped: Cell::new(false),
            gone: Cell::new(false),
        }
    }

    /// To be called when the leader was reaped, before anything else can start a process.
    pub(crate) fn leader_reaped(&self) {
        self.leader_reaped.set(true);
        self.refresh();
    }

    /// Looks whether the group still exists; to be called when any process was reaped.
    pub(crate) fn refresh(&self) {
        if self.leader_reaped.get() && test_kill_process_group(self.id).is_err() {
            self.gone.set(true);
        }
    }

    /// Sends a signal to every process of the group, if there is one.
    pub(crate) fn signal(&self, signal: Signal) {
        if !self.gone.get() {
            // Fails only if the group has just become empty.
            let _ = kill_process_group(self.id, signal);
        }
    }

    /// A signal by the number the host gave; what is no signal is ignored.
    pub(crate) fn signal_number(&self, number: i32) {
        if matches!(number, 1..=31 | 34..=64) {
            // SAFETY: the number is in the kernel's range of signals and none of the two (32 and 33) that the C
            // library keeps for itself.
            self.signal(unsafe { Signal::from_raw_unchecked(number) });
        }
    }
}
