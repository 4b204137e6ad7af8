//! What a running sandbox can do, object safe, so that orchestrators can hold and fake it.

use std::path::PathBuf;

use async_trait::async_trait;

use crate::command::{CommandSpec, Process};
use crate::id::SandboxId;

/// A running sandbox.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Its name.
    fn id(&self) -> &SandboxId;

    /// Starts a command.
    async fn spawn(&self, command: CommandSpec) -> Result<Box<dyn Process>, ExecError>;

    /// Ends it in order: file systems are synced, then the machine ends.
    async fn shutdown(&self) -> Result<(), ExecError>;

    /// Ends it at once. What the guest had not written to the workspace is lost.
    async fn kill(&self);
}

/// Why a command did not run, or did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// No such program in the guest.
    #[error("no program {program:?} in the sandbox: check its name, or install it in the image")]
    NotFound {
        /// What was to run.
        program: String,
    },
    /// The guest refuses to run it.
    #[error("the sandbox may not execute {program:?}: is it an executable file?")]
    PermissionDenied {
        /// What was to run.
        program: String,
    },
    /// The working directory cannot be entered.
    #[error("cannot enter {} in the sandbox: only exported directories and the image are there", cwd.display())]
    BadWorkingDirectory {
        /// The directory.
        cwd: PathBuf,
    },
    /// The command cannot be sent: too long, or a NUL byte inside.
    #[error("the command cannot be run: {why}")]
    InvalidCommand {
        /// What is wrong.
        why: &'static str,
    },
    /// Another failure to start, in the guest's words (escaped).
    #[error("the sandbox could not start the command: {message}")]
    SpawnFailed {
        /// The guest's words.
        message: String,
        /// `errno` in the guest, 0 if unknown.
        errno: i32,
    },
    /// The command said more than the caller wanted to hold. It was ended.
    #[error(
        "the command's output is over {limit} bytes: raise it with .output_limit(), or read it as a stream"
    )]
    OutputTooLarge {
        /// The limit, in bytes, for each of the two outputs.
        limit: usize,
    },
    /// The sandbox has ended, or ended meanwhile.
    #[error("the sandbox has ended: {why}")]
    SandboxEnded {
        /// How.
        why: String,
    },
    /// The guest broke the protocol; it is not to be trusted further.
    #[error("the guest broke the protocol: {why}")]
    Protocol {
        /// How.
        why: String,
    },
}
