//! What ends a task.

use std::{io, path::PathBuf};

/// A task could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// An artefact could not be found or built.
    #[error(transparent)]
    Artifact(#[from] sandbox_artifacts::ArtifactError),
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    /// Cargo did not compile what the task needs; it has said why.
    #[error("cargo {what} failed")]
    Cargo { what: String },
    /// The emulated host ended without the command's exit code.
    #[error("the emulated host ended before the command did; the last lines of its console:\n{console}")]
    HostDied { console: String },
    /// A test program does not say what tests it has.
    #[error("{program} --list failed")]
    Tests { program: String },
    /// A file could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A proxy to measure against cannot be had.
    #[error("{why}")]
    Rival { why: String },
    /// The name of a benchmark is unknown.
    #[error("there is no benchmark {name:?}; there are: {known}")]
    NoSuchBench { name: String, known: String },
}

impl TaskError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn start(program: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let program = program.into();
        move |source| Self::Start { program, source }
    }
}
