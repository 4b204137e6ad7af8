//! The directory a sandbox works on: vetted before it is shared, because the agent gets full rights over it.
//!
//! The directory is opened first and judged by what was opened, so that a swap in between gains nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use sandbox_core::path::{GuestPath, InvalidGuestPath};

/// A vetted directory.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) directory: OwnedFd,
    pub(crate) guest_path: GuestPath,
}

/// Why a directory is not shared with a sandbox. The caller's to fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// No directory was named.
    #[error("no workspace: say which directory the sandbox works on, with .workspace(\"/path/to/project\")")]
    NotSet,
    /// It does not exist.
    #[error("{} does not exist: create it, or name the project's directory", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It is no directory.
    #[error("{} is not a directory: name the directory that holds it", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It is `/`.
    #[error(
        "the workspace is the root directory: an agent would own every file of this machine; name one project"
    )]
    Root,
    /// It is a home directory.
    #[error(
        "{} is a home directory: an agent would own its SSH keys, credentials and shell start-up files; \
         name a project beneath it, or force it with .workspace_despite_risk()",
        path.display()
    )]
    Home {
        /// The path.
        path: PathBuf,
    },
    /// It holds a home directory somewhere beneath.
    #[error("{} holds the home directory {}: name a project, or force it with .workspace_despite_risk()",
        path.display(), home.display())]
    HoldsHome {
        /// The path.
        path: PathBuf,
        /// The home directory beneath it.
        home: PathBuf,
    },
    /// Credentials lie in it.
    #[error("{} holds {found}, where credentials are kept: move it away, or force it with .workspace_despite_risk()",
        path.display())]
    HoldsCredentials {
        /// The path.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// It is where credentials are kept.
    #[error("{} is in {found}, where credentials are kept: name a project elsewhere, or force it with \
         .workspace_despite_risk()", path.display())]
    IsCredentials {
        /// The path, after symbolic links.
        path: PathBuf,
        /// The name that tells.
        found: &'static str,
    },
    /// The guest's own system is at that path.
    #[error("{} is a system directory, in the guest too: name a project elsewhere", path.display())]
    SystemDirectory {
        /// The path.
        path: PathBuf,
    },
    /// The path is no path in a guest.
    #[error(transparent)]
    Path(#[from] InvalidGuestPath),
    /// The host failed, for instance for lack of permission.
    #[error("cannot open the workspace {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
}

/// Names at the top of a home directory under which tools keep credentials. Not complete, and need not be: it
/// tells a home directory that is not in the password database.
const CREDENTIALS: [&str; 8] = [
    ".ssh",
    ".aws",
    ".gnupg",
    ".kube",
    ".docker/config.json",
    ".config/gcloud",
    ".netrc",
    ".azure",
];

/// Directories of nothing but some tool's settings and credentials, where the ones above lie deeper.
const CREDENTIAL_PARENTS: [&str; 1] = [".docker"];

/// Directories that the guest's own system has at the same place; a mount there would hide it.
const SYSTEM: [&str; 13] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr",
];

/// Opens and vets `path`. With `despite_risk`, homes and credentials are accepted; `/` and system directories
/// never.
pub(crate) fn open(path: &Path, despite_risk: bool) -> Result<Workspace, WorkspaceError> {
    let io = |cause: rustix::io::Errno| match cause {
        rustix::io::Errno::NOENT => WorkspaceError::Missing {
            path: path.to_owned(),
        },
        rustix::io::Errno::NOTDIR => WorkspaceError::NotADirectory {
            path: path.to_owned(),
        },
        other => WorkspaceError::Io {
            path: path.to_owned(),
            cause: other.into(),
        },
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(io)?;
    let opened = rustix::fs::fstat(&directory).map_err(io)?;
    let real = real_path(path, &directory)?;

    if same(&opened, Path::new("/")) || real == Path::new("/") {
        return Err(WorkspaceError::Root);
    }
    if SYSTEM
        .iter()
        .any(|system| real == Path::new(system) || same(&opened, Path::new(system)))
        && !is_home(&real)
    {
        return Err(WorkspaceError::SystemDirectory { path: real });
    }
    if !despite_risk {
        for home in homes() {
            if same(&opened, &home) {
                return Err(WorkspaceError::Home { path: real });
            }
            let at = home.canonicalize().unwrap_or_else(|_| home.clone());
            if home.starts_with(&real) || at.starts_with(&real) {
                return Err(WorkspaceError::HoldsHome { path: real, home });
            }
        }
        if let Some(found) = credentials_in(&real) {
            return Err(WorkspaceError::IsCredentials { path: real, found });
        }
        if is_settings(&real) {
            return Err(WorkspaceError::IsCredentials {
                path: real,
                found: ".config",
            });
        }
        for found in CREDENTIALS {
            if rustix::fs::statat(&directory, found, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(WorkspaceError::HoldsCredentials { path: real, found });
            }
        }
    }
    let guest_path = GuestPath::try_from(as_named(path, &real))?;
    if SYSTEM
        .iter()
        .any(|system| guest_path.as_path() == Path::new(system))
    {
        return Err(WorkspaceError::SystemDirectory { path: real });
    }
    Ok(Workspace {
        directory,
        guest_path,
    })
}

/// Where the kernel says that the opened directory is. To resolve the path a second time could lead elsewhere.
fn real_path(path: &Path, directory: &OwnedFd) -> Result<PathBuf, WorkspaceError> {
    use std::os::fd::AsRawFd as _;
    let link = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    link.read_link().map_err(|cause| WorkspaceError::Io {
        path: path.to_owned(),
        cause,
    })
}

/// The part of [`CREDENTIALS`] that the path leads into: an earlier agent can make a project's subdirectory a symbolic
/// link to `~/.ssh`.
fn credentials_in(path: &Path) -> Option<&'static str> {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
    CREDENTIALS.into_iter().chain(CREDENTIAL_PARENTS).find(|names| {
        let names: Vec<_> = Path::new(names)
            .components()
            .map(|part| part.as_os_str())
            .collect();
        parts.windows(names.len()).any(|window| *window == *names)
    })
}

/// The path as the user wrote it, made absolute, so that paths in the user's scripts mean the same inside; the
/// real one where it has `..`, which means something else behind a symlink.
fn as_named(path: &Path, real: &Path) -> PathBuf {
    match std::path::absolute(path) {
        Ok(absolute) if !absolute.components().any(|part| part.as_os_str() == "..") => absolute,
        _ => real.to_owned(),
    }
}

fn same(opened: &Stat, path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|other| {
        FileType::from_raw_mode(other.st_mode) == FileType::Directory
            && (other.st_dev, other.st_ino) == (opened.st_dev, opened.st_ino)
    })
}

fn is_home(path: &Path) -> bool {
    homes().iter().any(|home| home == path)
}

/// Whether it is a home's directory of all tools' settings, tokens among them.
fn is_settings(path: &Path) -> bool {
    path.parent()
        .is_some_and(|parent| path.ends_with(".config") && is_home(parent))
}

/// Home directories of people: `$HOME`, and the password database's for root and ordinary users.
fn homes() -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = std::env::home_dir().into_iter().collect();
    for line in std::fs::read_to_string("/etc/passwd").unwrap_or_default().lines() {
        let mut fields = line.split(':').skip(2);
        let uid = fields.next().and_then(|uid| uid.parse::<u32>().ok());
        let home = fields.nth(2).filter(|home| home.starts_with('/') && *home != "/");
        if let (Some(0 | 1000..65534), Some(home)) = (uid, home) {
            homes.push(home.into());
        }
    }
    homes.retain(|home| home.parent().is_some());
    homes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_paths_and_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            open(&dir.path().join("gone"), false),
            Err(WorkspaceError::Missing { .. })
        ));
        assert!(matches!(
            open(&file, false),
            Err(WorkspaceError::NotADirectory { .. })
        ));
    }

    #[test]
    fn root_is_refused_under_every_name_and_force() {
        for name in ["/", "/../", "/proc/self/root"] {
            assert!(
                matches!(open(Path::new(name), true), Err(WorkspaceError::Root)),
                "{name}"
            );
        }
    }

    #[test]
    fn homes_and_what_holds_them_are_refused_unless_forced() {
        let home = std::env::home_dir().unwrap();
        let error = open(&home, false).unwrap_err();
        assert!(matches!(error, WorkspaceError::Home { .. }), "{error}");
        assert!(
            error.to_string().contains("SSH keys"),
            "the risk is named: {error}"
        );
        let link = tempfile::tempdir().unwrap();
        let alias = link.path().join("alias");
        std::os::unix::fs::symlink(&home, &alias).unwrap();
        assert!(
            matches!(open(&alias, false), Err(WorkspaceError::Home { .. })),
            "also through a symlink"
        );
        let forced = open(&alias, true).unwrap();
        assert_eq!(forced.guest_path.as_path(), alias);
    }

    #[test]
    fn a_directory_with_credentials_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".ssh")).unwrap();
        let refused = open(dir.path(), false);
        assert!(matches!(
            refused,
            Err(WorkspaceError::HoldsCredentials { found: ".ssh", .. })
        ));
        assert!(open(dir.path(), true).is_ok());
    }

    #[test]
    fn a_link_into_credentials_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (place, name) in [
            (".ssh", ".ssh"),
            (".config/gcloud/logs", ".config/gcloud"),
            (".docker/x", ".docker"),
        ] {
            let keys = dir.path().join("somebody").join(place);
            std::fs::create_dir_all(&keys).unwrap();
            let link = dir.path().join(place.replace('/', "-"));
            std::os::unix::fs::symlink(&keys, &link).unwrap();
            let refused = open(&link, false);
            assert!(
                matches!(refused, Err(WorkspaceError::IsCredentials { found, .. }) if found == name),
                "{place}: {refused:?}"
            );
            assert!(open(&link, true).is_ok());
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_the_second_time_is_judged_by_what_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, link) = (
            dir.path().join("one"),
            dir.path().join("two"),
            dir.path().join("link"),
        );
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&link, flags, Mode::empty()).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&two, &link).unwrap();
        assert_eq!(real_path(&link, &opened).unwrap(), one.canonicalize().unwrap());
    }

    #[test]
    fn system_directories_are_refused_even_when_forced() {
        for path in ["/usr", "/etc"] {
            assert!(
                matches!(
                    open(Path::new(path), true),
                    Err(WorkspaceError::SystemDirectory { .. })
                ),
                "{path}"
            );
        }
    }

    #[test]
    fn an_ordinary_directory_keeps_its_path() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(dir.path(), false).unwrap().guest_path.as_path(), dir.path());
    }
}
