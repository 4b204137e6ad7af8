//! Where the memory of this process, in which credentials are, may end up: in a core dump, in swap.

use std::io;

use crate::defence::holds;

/// What [`keep_memory_private`] could do beyond core dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "says whether memory can still be written to swap"]
#[non_exhaustive]
pub struct MemoryPrivacy {
    /// Whether memory is never written to swap. Where it is not, use encrypted swap or none.
    pub is_locked: bool,
}

/// Keeps the memory of this whole process private: it leaves no core dump, no other process of the same user can read
/// or trace it, and where the process may lock memory, none of it is written to swap.
///
/// Credentials are zeroised where they are kept, but what goes into a request is also in buffers of HTTP and TLS. A
/// library must not decide this for the program around it, so call it yourself, first thing in `main`; in a program that
/// gives up privileges (`setuid`), right after that, since the kernel undoes it there.
///
/// On Linux, `/proc/self` then belongs to root (`PR_SET_DUMPABLE`), and a debugger needs to be root; programs that the
/// process starts are as usual. To lock memory takes `CAP_IPC_LOCK` (not one of a user namespace) or an unlimited
/// `RLIMIT_MEMLOCK` (`ulimit -l unlimited`): with a lower limit, allocations would fail later. Elsewhere, core dumps are all that is given up.
///
/// # Errors
/// Core dumps could not be given up.
///
/// ```
/// let privacy = sandbox_proxy::keep_memory_private()?;
/// if !privacy.is_locked {
///     eprintln!("credentials may be written to swap: run `ulimit -l unlimited` first, or encrypt swap");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn keep_memory_private() -> io::Result<MemoryPrivacy> {
    if holds("core-dumps") {
        give_up_dumps()?;
    }
    Ok(MemoryPrivacy { is_locked: lock() })
}

#[cfg(target_os = "linux")]
fn give_up_dumps() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    // Unlike `RLIMIT_CORE`, for handlers to which the kernel pipes as well, and not for programs that are started.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(not(target_os = "linux"))]
fn give_up_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Core).maximum;
    Ok(setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum,
        },
    )?)
}

#[cfg(target_os = "linux")]
fn lock() -> bool {
    use rustix::mm::{MlockAllFlags, mlockall};
    use rustix::process::{Resource, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    // The kernel asks the first user namespace, in which everybody is who they are.
    let is_first_namespace = || {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    };
    let may_lock_all = getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
            && is_first_namespace();
    // Pages that nobody has touched take no memory for it.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    may_lock_all && mlockall(all).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn lock() -> bool {
    false
}
