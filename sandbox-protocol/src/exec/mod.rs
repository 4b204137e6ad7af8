//! The exec stream: one command, its standard streams, its signals and its end.
//!
//! The host says [`Request::Spawn`] first, once. The agent answers [`Reply::Spawned`] or
//! [`Reply::SpawnFailed`], which ends the stream. Then data, credit and closing messages go both ways, and
//! the stream is complete when [`Reply::Exited`] and the ends of both outputs have been said, in any order.
//!
//! Flow control: a sender has at most [`WINDOW`] bytes of a channel under way without
//! [`Credit`](Reply::Credit), so no message is ever stuck behind data that nobody reads. To send more is a
//! [`Violation`].
//!
//! If the host closes the stream before it is complete, the agent kills the command's process group.

mod agent;
mod host;
mod outbox;
mod outputs;
mod window;

pub use agent::{AgentEvent, AgentSide};
pub use host::{HostEvent, HostSide, SpawnError};
pub use window::{ReceiveWindow, SendWindow};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ByteString,
    control::write_escaped,
    frame::{FrameError, Message},
};

/// Bytes of one channel that may be under way uncredited. Bounds what a slow reader makes its peer's agent
/// or a hostile guest makes the host hold: three times this per command.
pub const WINDOW: u32 = 256 << 10;

/// Most data in one message. Larger reads are cut, so that no channel keeps another waiting for long.
pub const MAX_CHUNK: usize = 64 << 10;

/// Longest frame of the agent: one chunk and the message around it. Bounds what a hostile guest can make the
/// host's decoder hold.
const MAX_REPLY_FRAME: usize = MAX_CHUNK + 64;

/// Longest frame of the host: a command line and environment as long as the kernel's own limit for them
/// (`execve(2)`: 2 MiB with the usual stack limit).
const MAX_REQUEST_FRAME: usize = (2 << 20) + 4096;

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First, and once: what to run.
    Spawn(Box<Spawn>),
    /// Data for standard input: 1 to [`MAX_CHUNK`] bytes.
    Stdin(ByteString),
    /// No more data for standard input.
    StdinClose,
    /// A signal, by its Linux number, for the command's whole process group.
    Signal(i32),
    /// So many more bytes of an output may be sent.
    Credit {
        /// Which output.
        output: Output,
        /// How many bytes, not 0.
        bytes: u32,
    },
}

impl Message for Request {
    const MAX_FRAME: usize = MAX_REQUEST_FRAME;
}

/// What the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The command runs.
    Spawned {
        /// Its process id in the guest, which is also its group's.
        pid: u32,
    },
    /// The command does not run. The last message.
    SpawnFailed(SpawnFailure),
    /// Data of an output: 1 to [`MAX_CHUNK`] bytes.
    Output {
        /// Which output.
        output: Output,
        /// The bytes.
        data: ByteString,
    },
    /// An output has ended.
    OutputClose(Output),
    /// So many more bytes of standard input may be sent.
    Credit {
        /// How many bytes, not 0.
        bytes: u32,
    },
    /// The command no longer reads its standard input; what is sent is dropped.
    StdinGone,
    /// The command has ended.
    Exited(Exit),
}

impl Message for Reply {
    const MAX_FRAME: usize = MAX_REPLY_FRAME;
}

/// What to run, and in which surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The program, looked up in the command's own `PATH` if it has no slash, and its arguments.
    pub argv: Vec<ByteString>,
    /// Changes to the environment, in order.
    pub env: Vec<EnvChange>,
    /// Working directory, absolute. Without: the first export, or the user's home.
    pub cwd: Option<ByteString>,
    /// Who runs it.
    pub user: User,
    /// Time after which the group gets `SIGTERM`, and a grace later `SIGKILL`.
    pub timeout_ms: Option<u64>,
    /// What its standard input is.
    pub stdin: Stdin,
}

impl Spawn {
    /// `argv` as the unprivileged user, with no input, nothing else changed.
    pub fn new<A: Into<ByteString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: User::Agent,
            timeout_ms: None,
            stdin: Stdin::Null,
        }
    }
}

/// One change to a command's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvChange {
    /// Removes everything, also what the sandbox itself sets.
    Clear,
    /// Sets a variable: name, value.
    Set(ByteString, ByteString),
    /// Removes a variable.
    Unset(ByteString),
}

/// Who runs a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// The unprivileged user of [`Configure`](crate::control::Configure).
    Agent,
    /// User 0.
    Root,
    /// Any numbers. Supplementary groups come from the image if it knows the uid.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// What a command's standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// A pipe, fed by [`Request::Stdin`].
    Pipe,
}

/// One of a command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a command did not start. Said by the guest: to be shown escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    /// What a caller can act on.
    pub kind: SpawnFailureKind,
    /// The system's error number, if a system call failed.
    pub errno: Option<i32>,
    /// In words.
    pub message: String,
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, &self.message)
    }
}

/// What a caller can do about a command that did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpawnFailureKind {
    /// No such program.
    NotFound,
    /// The program may not be executed by that user.
    PermissionDenied,
    /// The working directory does not exist or may not be entered.
    BadCwd,
    /// The request makes no sense: no program, a zero byte, an environment name with `=`.
    BadRequest,
    /// No such user in the image.
    BadUser,
    /// The program is no executable, or for another machine.
    NotExecutable,
    /// Arguments and environment are longer than the kernel takes.
    ArgumentsTooLong,
    /// Too many commands at once, or the guest is out of memory or processes: try later.
    Exhausted,
    /// The guest has not been configured yet.
    NotReady,
    /// Anything else; see the error number.
    Other,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// Whether the command's own time limit ended it.
    pub timed_out: bool,
}

/// Code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code, 0 to 255.
    Code(i32),
    /// It was ended by this signal, by its Linux number.
    Signal(i32),
}

/// How a peer broke the protocol. Fatal for the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// No frames, or no messages in them.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More data than credit.
    #[error("peer sent {sent} bytes with credit for {credit}")]
    WindowOverrun {
        /// Bytes in the message.
        sent: usize,
        /// Bytes it was allowed.
        credit: u32,
    },
    /// Credit for more than was sent, or for nothing.
    #[error("peer credited {bytes} bytes with {outstanding} outstanding")]
    BadCredit {
        /// Bytes credited.
        bytes: u32,
        /// Bytes sent and not yet credited.
        outstanding: u32,
    },
    /// A data message without data.
    #[error("peer sent a data message without data")]
    EmptyData,
    /// A message that may not come now.
    #[error("peer sent {message} {when}")]
    OutOfOrder {
        /// Which message.
        message: &'static str,
        /// What makes it wrong.
        when: &'static str,
    },
    /// The stream ended too early.
    #[error("stream ended {when}")]
    Ended {
        /// Before what.
        when: &'static str,
    },
}
