//! The root file system: a shared read-only base, a private writable layer, the kernel's own file systems.

use std::{ffi::CStr, fs, io, os::unix::fs::PermissionsExt};

use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    path::Arg,
};

use crate::diagnostics::Failed;

/// The base image's disk: EROFS, read-only, shared by all sandboxes.
const BASE_DISK: &str = "/dev/vdb";

/// The private layer's disk: ext4, writable, gone with the sandbox.
const LAYER_DISK: &str = "/dev/vdc";

const BASE: &str = "/base";
const LAYER: &str = "/layer";
const NEW_ROOT: &str = "/root-new";

/// The disk is all zeros where nothing was written, so no thread need zero its tables, nor read maps of blocks that
/// nobody has used yet; and the map of system blocks, a guard against broken file systems, takes most of the time of
/// a mount where kernel code is slow.
const LAYER_OPTIONS: &CStr = c"noinit_itable,no_prefetch_block_bitmaps,noblock_validity";

/// `volatile`: the layer does not outlive the machine, so nothing in it is worth waiting for a disk.
const OVERLAY: &CStr = c"lowerdir=/base,upperdir=/layer/upper,workdir=/layer/work,volatile";

/// Goes from the agent's own image to base plus layer as the root, and leaves no way back.
pub(crate) fn enter_root() -> Result<(), Failed> {
    let none = MountFlags::empty();
    // Mounted already where the kernel is configured to do so.
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755")?;
    mount(BASE_DISK, BASE, "erofs", MountFlags::RDONLY, c"")?;
    mount(LAYER_DISK, LAYER, "ext4", MountFlags::NOATIME, LAYER_OPTIONS)?;
    for directory in ["/layer/upper", "/layer/work"] {
        make_directory(directory)?;
    }
    mount("overlay", NEW_ROOT, "overlay", none, OVERLAY)?;
    for directory in ["proc", "sys", "dev", "run", "tmp"] {
        make_directory(&format!("{NEW_ROOT}/{directory}"))?;
    }
    rustix::mount::mount_move("/dev", "/root-new/dev").map_err(Failed::when("move /dev"))?;
    rustix::process::chdir(NEW_ROOT).map_err(Failed::when("enter the new root"))?;
    // The same directory twice stacks the old root on the new one, from where it is taken off: so base,
    // layer and the agent's image are out of every path's reach.
    rustix::process::pivot_root(".", ".").map_err(Failed::when("change the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(Failed::when("drop the old root"))?;
    rustix::process::chdir("/").map_err(Failed::when("enter the new root"))
}

/// Mounts what programs expect of a Linux system.
pub(crate) fn kernel_file_systems() -> Result<(), Failed> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    let inert = safe | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", inert, c"")?;
    mount("sysfs", "/sys", "sysfs", inert, c"")?;
    mount("tmpfs", "/run", "tmpfs", safe, c"mode=0755")?;
    for directory in ["/dev/pts", "/dev/shm", "/run/lock"] {
        make_directory(directory)?;
    }
    let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
    optional(mount(
        "devpts",
        "/dev/pts",
        "devpts",
        pts,
        c"gid=5,mode=0620,ptmxmode=0666",
    ))?;
    mount("tmpfs", "/dev/shm", "tmpfs", safe, c"mode=1777")?;
    optional(mount(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        inert,
        c"nsdelegate",
    ))?;
    // Mounting still needs the rights to mount; programs that ask first, such as container tools, find it usable.
    let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666));
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        // Only those that the kernel has not made.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

/// Mounts a file system; one that is there already is well.
pub(super) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &CStr,
) -> Result<(), Failed> {
    mount_at(source, target, kind, flags, data)
        .map_err(Failed::when(format!("mount {source} ({kind}) at {target}")))
}

fn mount_at(source: &str, target: impl Arg, kind: &str, flags: MountFlags, data: &CStr) -> Result<(), Errno> {
    match rustix::mount::mount(source, target, kind, flags, data) {
        Err(Errno::BUSY) => Ok(()),
        other => other,
    }
}

/// A kernel without the file system, or an image without its mount point, can do without it.
fn optional(mounted: Result<(), Failed>) -> Result<(), Failed> {
    if let Err(error) = mounted {
        crate::diagnostics::say(&format!("going on although I {error}"));
    }
    Ok(())
}

fn make_directory(path: &str) -> Result<(), Failed> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failed::when(format!("make the directory {path}"))(error))
        }
        _ => Ok(()),
    }
}
