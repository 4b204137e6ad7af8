//! The file server behind virtio-fs: FUSE requests of the guest, answered on directories handed over as descriptors.
//!
//! Hostile: every request, whatever its bytes and order. Ours: the export descriptors. [`Server::handle`] takes
//! one request and one reply buffer, may block on the host's disk, and may be called by any number of threads.
//!
//! What holds, whatever the guest sends:
//! - it reaches only what is below an exported directory at the time of the request. Names are single components,
//!   links are never followed here (`READLINK` hands the text back and the guest resolves it in its own tree), and
//!   what the host has meanwhile moved out of the export is refused, also where the guest has it open;
//! - only regular files and directories are ever opened. FIFOs and sockets may be made but are the guest kernel's
//!   business; device nodes cannot be made, and those that exist name no device. Mounts of procfs, sysfs and their
//!   like inside an export are refused;
//! - set-user-id bits are never set, and set-group-id only on directories; no file is shown as root's;
//! - a read-only export is read-only here, not only in the guest's mount table; links and renames between exports
//!   fail with `EXDEV`;
//! - only `user.*` extended attributes exist;
//! - nodes, handles, descriptors, request and reply sizes are bounded.
//!
//! Both sides see each other's changes at once: names are looked up each time, and attributes are valid for one
//! tick of the guest's clock. Locks are the guest's own and are not seen by the host.

mod containment;
mod directories;
mod exports;
mod files;
mod handles;
mod host;
mod metadata;
mod nodes;
mod server;
mod wire;

pub use exports::{Access, ExportError, MAX_EXPORTS};
pub use host::{IdMap, SelfFds, SelfFdsError};
pub use server::{Limits, MAX_REPLY, MAX_REQUEST, Remains, Server};

#[cfg(test)]
mod tests;

/// Prepares the VMM process for serving files: no umask, since the guest's kernel has already applied the one of
/// the guest's process; as many open files as the hard limit permits; and no death by signal where a guest writes past
/// the host's limit of file sizes, which is then an error like others. Call it once, before any thread runs and before
/// [`Limits::of_this_process`].
pub fn prepare_process() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    rustix::process::umask(rustix::fs::Mode::empty());
    // SAFETY: ignoring a signal installs no handler, so no code of ours can run at a bad time.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    ) {
        tracing::warn!(%error, "cannot raise the limit of open files; files will be re-opened more often");
    }
}
