//! A command in a sandbox: what to run, and a running one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::sandbox::ExecError;

/// What to run and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// Program: a path, or a name looked up in the guest's `PATH`.
    pub program: OsString,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
    /// Changes to the sandbox's environment: `Some` sets, `None` removes.
    pub env: BTreeMap<OsString, Option<OsString>>,
    /// Start from an empty environment instead of the sandbox's.
    pub env_clear: bool,
    /// Working directory; `None` is the workspace.
    pub cwd: Option<PathBuf>,
    /// As whom.
    pub user: User,
    /// Ends the command (SIGTERM, then SIGKILL) when it runs longer.
    pub timeout: Option<Duration>,
    /// Whether the command reads from us.
    pub stdin: Stdin,
}

impl CommandSpec {
    /// `program` without arguments, as the unprivileged user, in the workspace, without input.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            env_clear: false,
            cwd: None,
            user: User::Agent,
            timeout: None,
            stdin: Stdin::Null,
        }
    }
}

/// As whom a command runs in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum User {
    /// The image's unprivileged user, to whom the workspace belongs.
    #[default]
    Agent,
    /// Root of the guest.
    Root,
    /// Any numeric user and group.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// What a command finds at its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stdin {
    /// End of file at once.
    #[default]
    Null,
    /// What is written to [`Process::take_stdin`].
    Piped,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
    /// It ran longer than its time-out and was ended.
    TimedOut,
}

impl ExitStatus {
    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code as a shell gives it: 128 + number for a signal, 124 for a time-out (as `timeout(1)`).
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::TimedOut => 124,
        }
    }
}

/// A reader of a command's output.
pub type Output = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// A writer to a command's input; closing it is `shutdown` or drop.
pub type Input = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A running command. Dropping it ends the command and all it started.
#[async_trait]
pub trait Process: Send + Sync {
    /// Process id in the guest.
    fn pid(&self) -> u32;

    /// The input, once; `None` unless [`Stdin::Piped`].
    fn take_stdin(&mut self) -> Option<Input>;

    /// The output, once.
    fn take_stdout(&mut self) -> Option<Output>;

    /// The error output, once.
    fn take_stderr(&mut self) -> Option<Output>;

    /// Sends a signal, by Linux number, to the command's process group.
    async fn signal(&self, signal: u8) -> Result<(), ExecError>;

    /// Waits for the end. Output that nobody took is discarded, so that it cannot block the command.
    async fn wait(&mut self) -> Result<ExitStatus, ExecError>;
}
