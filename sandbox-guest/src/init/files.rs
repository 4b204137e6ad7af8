//! Files that tell programs who this guest is and whom it trusts.
//!
//! An image made for sandboxes has links in their places, which lead to a file system in memory: to write there is
//! cheap, and the private layer stays empty until the workload writes. In any other image the files themselves are
//! replaced.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::diagnostics::Failed;

/// Where the links of an image made for sandboxes lead. In memory, made at each start.
pub(super) const VOLATILE: &str = "/run/sandbox";

/// Everybody reads it, root writes it.
const PUBLIC: u32 = 0o644;

/// Makes the directory that links lead to.
pub(super) fn make_volatile() -> Result<(), Failed> {
    match DirBuilder::new().mode(0o755).create(VOLATILE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failed::when(format!("make {VOLATILE}"))(error))
        }
        _ => Ok(()),
    }
}

/// Where a link at `path` leads, if that is to the file system in memory.
pub(super) fn volatile_target(path: &Path) -> Option<PathBuf> {
    let target = fs::read_link(path).ok()?;
    (target.parent() == Some(Path::new(VOLATILE))).then_some(target)
}

/// Makes `path` a file that everybody reads.
pub(super) fn put(path: &str, content: &[u8]) -> Result<(), Failed> {
    put_with_mode(path, content, PUBLIC)
}

/// Makes `path` a file with these permissions, in the image's place or where its link leads.
pub(super) fn put_with_mode(path: &str, content: &[u8], mode: u32) -> Result<(), Failed> {
    let file = match volatile_target(Path::new(path)) {
        Some(target) => target,
        None => {
            // Any other link, such as the one a resolver service leaves, may lead nowhere here.
            if fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink()) {
                fs::remove_file(path).map_err(Failed::when(format!("replace {path}")))?;
            }
            path.into()
        }
    };
    write(&file, content, mode).map_err(Failed::when(format!("write {path}")))
}

fn write(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut opened = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(file)?;
    opened.write_all(content)?;
    // The image may have had one with other permissions, and PID 1 some mask.
    opened.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_of_another_service_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = directory.path().join("elsewhere");
        let path = directory.path().join("resolv.conf");
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        put(path.to_str().unwrap(), b"ours").unwrap();
        assert!(!elsewhere.exists());
        assert!(!path.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"ours");
    }

    #[test]
    fn only_links_right_into_the_volatile_directory_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let link = |name: &str, target: &str| {
            let path = directory.path().join(name);
            std::os::unix::fs::symlink(target, &path).unwrap();
            volatile_target(&path)
        };
        assert_eq!(link("a", "/run/sandbox/hosts"), Some("/run/sandbox/hosts".into()));
        assert_eq!(link("b", "/run/sandbox/exports/0"), None);
        assert_eq!(link("c", "/run/sandbox/../../etc/shadow"), None);
        assert_eq!(link("d", "../run/sandbox/hosts"), None);
    }

    #[test]
    fn permissions_are_those_asked_for_whatever_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sudoers");
        fs::write(&path, "old and longer").unwrap();
        put_with_mode(path.to_str().unwrap(), b"new", 0o440).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o440);
    }
}
