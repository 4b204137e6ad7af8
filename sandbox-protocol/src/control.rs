//! The control stream: the agent's greeting, then requests of the host and their answers.
//!
//! The agent speaks first, once. After that it only answers, each request once, in order.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ByteString, frame::Message};

/// Longest control frame the agent may send: a greeting or an answer with one error text. Bounds what a
/// hostile guest can make the host hold.
const MAX_AGENT_FRAME: usize = 64 << 10;

/// Longest control frame the host may send: a [`Configure`] with a certificate bundle and many exports.
const MAX_HOST_FRAME: usize = 1 << 20;

/// What the agent says on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First, and once.
    Hello(Hello),
    /// The answer to one request.
    Response(Response),
}

impl Message for AgentMessage {
    const MAX_FRAME: usize = MAX_AGENT_FRAME;
}

/// The greeting. Its layout never changes, so that any two builds can tell each other apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub protocol: u32,
    /// Hash, in hex, of the sources the agent was built from; empty in a build without one.
    pub build: String,
    /// Release of the running kernel, as `uname -r` says it.
    pub kernel: String,
}

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the answer.
    pub id: u32,
    /// What to do.
    pub call: Call,
}

impl Message for Request {
    const MAX_FRAME: usize = MAX_HOST_FRAME;
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Gives the guest its identity. Once, before any command.
    Configure(Box<Configure>),
    /// Shows one more exported directory.
    AddExport(Export),
    /// Does nothing; shows that the agent answers.
    Ping,
    /// Ends all processes, syncs and unmounts the disks, answers, and resets the machine.
    Shutdown,
}

/// The agent's answer to the request of the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id.
    pub id: u32,
    /// How it went.
    pub result: Result<(), Failure>,
}

/// Why the agent could not do what was asked. Said by the guest: to be shown escaped, never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the agent was doing, such as `mount export 0 at /home/me/project`.
    pub what: String,
    /// The system's error number, if a system call failed.
    pub errno: Option<i32>,
    /// The error in words.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, &self.what)?;
        f.write_str(": ")?;
        write_escaped(f, &self.message)
    }
}

/// A guest's identity and surroundings: all that a generic, already booted guest lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Host name, one DNS label.
    pub hostname: String,
    /// Content of `/etc/machine-id`.
    pub machine_id: [u8; 16],
    /// The host's wall clock, as late as possible before sending.
    pub wall_clock: WallClock,
    /// Fresh randomness for the guest's kernel.
    pub entropy: EntropySeed,
    /// Name in the image's `/etc/passwd` of the unprivileged user that runs commands.
    pub user: String,
    /// Environment of every command, before what the command itself asks for.
    pub env: Vec<(ByteString, ByteString)>,
    /// Certificate of this sandbox's own authority, in PEM, to be trusted by all programs.
    pub ca_pem: Option<String>,
    /// Whether the egress proxy answers, so that the agent relays to it and says so in the environment.
    pub proxy: bool,
    /// Directories of the host to show.
    pub exports: Vec<Export>,
}

/// A directory of the host, served by the virtio-fs device under the name of its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name under the device's root, as a decimal number.
    pub index: u32,
    /// Absolute path at which the guest shows it, without `.` or `..`.
    pub path: ByteString,
    /// Whether the guest's mount is read-only too (the device refuses writes anyway).
    pub read_only: bool,
}

/// Time since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallClock {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds of the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Random bytes that nothing prints.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropySeed(pub [u8; 32]);

impl fmt::Debug for EntropySeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntropySeed(..)")
    }
}

/// Text of the guest as it may appear in a log or on a terminal: quotes as they are, anything that is no
/// printable character escaped.
pub(crate) fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        match character {
            '"' | '\'' => write!(f, "{character}")?,
            _ => write!(f, "{}", character.escape_debug())?,
        }
    }
    Ok(())
}
