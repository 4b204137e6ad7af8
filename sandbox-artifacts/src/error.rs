//! What can go wrong with artefacts, sorted by what the reader can do about it.

use std::{io, path::PathBuf};

use crate::Kind;

/// An artefact cannot be found, trusted or built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// No directory to keep artefacts in is known.
    #[error("no cache directory: set HOME, XDG_CACHE_HOME or SANDBOX_CACHE_DIR")]
    NoCacheDirectory,
    /// A variable names a directory by a path that leads somewhere else in each directory: in one that a sandbox writes
    /// to, it would lead to programs of the sandbox's own making, which the host would run.
    #[error("{variable} is not an absolute path: write it from / on")]
    RelativePath {
        /// The variable.
        variable: &'static str,
    },
    /// It was never built here.
    #[error("the {kind} is missing (looked in {}): run `cargo xtask artifacts`", paths(.searched))]
    Missing {
        /// What is missing.
        kind: Kind,
        /// The directories looked in.
        searched: Vec<PathBuf>,
    },
    /// Only builds from other sources are there.
    #[error(
        "the {kind} in {} is of build {found}, this program needs {expected}: run `cargo xtask artifacts`",
        path.display()
    )]
    OtherBuild {
        /// What is of another build.
        kind: Kind,
        /// Where it is.
        path: PathBuf,
        /// The build found.
        found: String,
        /// The build needed.
        expected: String,
    },
    /// Its file is not the one that was built.
    #[error("the {kind} in {} is damaged ({why}): delete that folder and run `cargo xtask artifacts`", path.display())]
    Damaged {
        /// What is damaged.
        kind: Kind,
        /// Its folder.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The file system is full. Nothing half-made was left.
    #[error("no space left for {what} in {}: free some, or set SANDBOX_CACHE_DIR to a larger disk", path.display())]
    DiskFull {
        /// What was being written.
        what: String,
        /// Where.
        path: PathBuf,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Debian packages are missing and this user may not install them.
    #[error(
        "building needs Debian packages that are not installed. Run this, then try again:\n    {command}"
    )]
    Packages {
        /// The one command that installs them.
        command: String,
    },
    /// A step needs root.
    #[error("{what} needs root: run as root, or allow this user to use sudo without a password")]
    NeedsRoot {
        /// The step.
        what: &'static str,
    },
    /// A program that builds failed.
    #[error("{step} failed ({status}); its last lines:\n{tail}")]
    Step {
        /// What was being done.
        step: String,
        /// How the program ended.
        status: String,
        /// The last lines it wrote.
        tail: String,
    },
    /// An option of a kernel configuration did not survive: it is unknown, or lacks what it depends on.
    #[error("the kernel configuration {config} asks for what this kernel does not give: {lost}")]
    KernelOptions {
        /// The configuration file.
        config: String,
        /// The options.
        lost: String,
    },
    /// Cargo gave a program that was compiled from other sources.
    #[error("the {kind} that cargo built is of other sources: delete {} and try again", target.display())]
    Stale {
        /// What was built.
        kind: Kind,
        /// Cargo's own cache.
        target: PathBuf,
    },
    /// A program for guest or helper is not self-contained.
    #[error("{} is not a static program: it would need files that are not there where it runs", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
    },
}

impl ArtifactError {
    /// Makes an error of a failed file operation; a full disk is told apart.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                what: action.into(),
                path,
            },
            _ => Self::Io { action, path, source },
        }
    }
}

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
