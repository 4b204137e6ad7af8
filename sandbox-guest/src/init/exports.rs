//! Exported directories: one device, mounted where nobody looks, each of its entries shown at its own path.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Component, Path},
};

use rustix::mount::MountFlags;
use sandbox_protocol::control::Export;

use crate::diagnostics::Failed;

/// Tag of the virtio-fs device.
const TAG: &str = "sandbox";

/// Where the device's root is mounted, in a directory that only root may enter.
const DEVICE_ROOT: &str = "/run/sandbox/exports";

/// Mount points that no export may hide: without them the guest does not work.
const RESERVED: [&str; 9] = [
    "/proc",
    "/sys",
    "/dev",
    "/run/sandbox",
    "/etc",
    "/bin",
    "/lib",
    "/usr/bin",
    "/usr/lib",
];

/// Mounts the device, if there is anything to show.
pub(super) fn mount_device(exports: &[Export]) -> Result<(), Failed> {
    if exports.is_empty() { Ok(()) } else { mounted() }
}

/// Shows one export at its path. Parents that the image lacks are made as empty directories.
pub(super) fn show(export: &Export) -> Result<(), Failed> {
    let path = Path::new(OsStr::from_bytes(export.path.as_bytes()));
    let what = format!("show export {} at {}", export.index, path.display());
    if let Err(why) = acceptable(path) {
        return Err(Failed::because(what, why));
    }
    mounted()?;
    make_stubs(path).map_err(Failed::when(what.clone()))?;
    let source = format!("{DEVICE_ROOT}/{}", export.index);
    rustix::mount::mount_bind(source.as_str(), path).map_err(Failed::when(what.clone()))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::BIND;
    if export.read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(path, flags, c"").map_err(Failed::when(what))
}

fn mounted() -> Result<(), Failed> {
    if fs::exists(DEVICE_ROOT).unwrap_or(false) {
        return Ok(());
    }
    let mut private = DirBuilder::new();
    private.mode(0o700).recursive(true);
    super::files::make_volatile()?;
    private
        .create(DEVICE_ROOT)
        .map_err(Failed::when(format!("make {DEVICE_ROOT}")))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mounted = super::mounts::mount(TAG, DEVICE_ROOT, "virtiofs", flags, c"");
    if mounted.is_err() {
        // So that the next attempt does not take the empty directory for the device.
        let _ = fs::remove_dir(DEVICE_ROOT);
    }
    mounted
}

fn acceptable(path: &Path) -> Result<(), &'static str> {
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err("the path is not absolute");
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err("the path has a zero byte");
    }
    let mut named = false;
    for component in components {
        match component {
            Component::Normal(_) => named = true,
            _ => return Err("the path has `.` or `..` in it"),
        }
    }
    if !named {
        return Err("it would hide the whole system");
    }
    if RESERVED
        .iter()
        .any(|reserved| Path::new(reserved).starts_with(path) || path.starts_with(reserved))
    {
        return Err("it would hide a directory that the system needs");
    }
    Ok(())
}

/// Makes the directory to mount on and its parents, writable by nobody, so that nothing is left beside the
/// mount by mistake; and lets everyone pass through those that exist, such as `/root`.
fn make_stubs(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o555).recursive(true).create(path)?;
    for parent in path.ancestors().skip(1) {
        let mode = fs::metadata(parent)?.permissions().mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(parent, Permissions::from_mode(mode | 0o001))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_cannot_hide_what_the_system_needs() {
        for bad in [
            "relative",
            "/",
            "/a/../b",
            "/proc",
            "/dev/shm",
            "/run",
            "/etc/ssl",
            "/run/sandbox/x",
            "/usr",
        ] {
            assert!(acceptable(Path::new(bad)).is_err(), "{bad}");
        }
        for good in [
            "/home/me/project",
            "/srv",
            "/run/user/1000/x",
            "/devel",
            "/usr/src/app",
        ] {
            assert_eq!(acceptable(Path::new(good)), Ok(()), "{good}");
        }
    }
}
