//! Getting a processor out of the guest: a signal to its thread, and the flag that makes KVM return even when the
//! signal came just before it entered the guest.

use std::cell::Cell;
use std::ptr;

use sandbox_vmm::hypervisor::{HypervisorError, Kick};

thread_local! {
    /// This thread's `immediate_exit` flag, in the page it shares with KVM; null where no processor runs.
    static FLAG: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// A signal nobody else uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn on_signal(_: libc::c_int) {
    let flag = FLAG.get();
    if !flag.is_null() {
        // SAFETY: `Flag` keeps the pointer only while the shared page is mapped, and the handler runs on its thread.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once per process.
pub(super) fn install() -> Result<(), HypervisorError> {
    // SAFETY: zero is a valid `sigaction`: no flags, an empty mask. No SA_RESTART, so that KVM_RUN returns.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = on_signal;
    action.sa_sigaction = handler as usize;
    // SAFETY: the action is valid, and its handler only writes one byte of memory made for that.
    if unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) } != 0 {
        let cause = std::io::Error::last_os_error();
        return Err(HypervisorError::Call {
            call: "handle the kick signal",
            cause,
        });
    }
    Ok(())
}

/// Makes this thread's kicks reach the processor whose flag this is, for as long as it lives.
#[derive(Debug)]
pub(super) struct Flag(());

impl Flag {
    /// # Safety
    /// `flag` must stay valid for as long as the result lives, which stays on this thread.
    pub(super) unsafe fn set(flag: *mut u8) -> Self {
        FLAG.set(flag);
        Self(())
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        FLAG.set(ptr::null_mut());
    }
}

/// Kicks one thread. Must not outlive it: threads of processors live until the process ends.
#[derive(Debug)]
pub(super) struct ThreadKick(libc::pthread_t);

impl ThreadKick {
    pub(super) fn here() -> Self {
        // SAFETY: always allowed.
        Self(unsafe { libc::pthread_self() })
    }
}

impl Kick for ThreadKick {
    fn kick(&self) {
        // SAFETY: the thread lives until the process ends, and the signal's handler was installed first.
        unsafe { libc::pthread_kill(self.0, signal()) };
    }
}
