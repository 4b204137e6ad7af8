//! What happened at the border: one record per attempt, allowed or not.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::SandboxId;

/// Receives audit events. Called on the proxy's path: hand over and return.
pub trait AuditSink: Send + Sync + fmt::Debug {
    /// Takes one event. A sink that cannot keep it must say so by other means than blocking.
    fn record(&self, event: &Arc<AuditEvent>);

    /// Whether it takes each denial by itself, however many there are. Without, denials that say the same are counted
    /// once there are very many, and come as one event with the number of [`attempts`](AuditEvent::attempts), so that
    /// a guest that tries for ever floods nothing. A sink that says yes must bound what it keeps.
    fn takes_every_attempt(&self) -> bool {
        false
    }

    /// Whether anything may be allowed now. A sink without which nothing must happen says no while it cannot keep
    /// what it is given; then every attempt is denied. Asked before each decision: answer at once.
    fn is_ready(&self) -> bool {
        true
    }
}

/// One attempt to leave the sandbox, when it has ended. Holds no secret; text that came from the guest is printable
/// ASCII of bounded length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When the attempt began.
    #[serde(serialize_with = "unix_millis", deserialize_with = "from_unix_millis")]
    pub time: SystemTime,
    /// Whose attempt it was.
    pub sandbox: SandboxId,
    /// What was attempted.
    pub kind: AuditKind,
    /// Target host as the client named it, in normal form; empty where it could not be parsed.
    pub host: String,
    /// Target port; 0 where it could not be parsed.
    pub port: u16,
    /// Request method where the stream was readable, `CONNECT` for an opaque tunnel, the type of a look-up.
    pub method: Option<String>,
    /// Request path without query, where the stream was readable.
    pub path: Option<String>,
    /// What was decided.
    pub decision: AuditDecision,
    /// The rule that decided, as the user wrote it.
    pub rule: String,
    /// Name of the service whose credential was added, if any.
    pub credential: Option<String>,
    /// Why a credential was added or not, in a few words without any secret; `None` where no service has the host.
    pub credential_reason: Option<String>,
    /// Status code sent to the client, where there was one.
    pub status: Option<u16>,
    /// Bytes from the sandbox.
    pub bytes_out: u64,
    /// Bytes to the sandbox.
    pub bytes_in: u64,
    /// From the attempt to its end.
    #[serde(serialize_with = "millis", deserialize_with = "from_millis")]
    pub duration: Duration,
    /// How it ended, in a few words; empty where all went well.
    pub outcome: String,
    /// How many attempts this event stands for: 1, or more where denials of the same kind came faster than they can
    /// be told one by one. Then `time` is that of the first of them and `duration` goes to the end of the last.
    pub attempts: u64,
}

/// What kind of attempt it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AuditKind {
    /// A tunnel whose bytes were not read, or in which no request came.
    Tunnel,
    /// One request and its response, or the WebSocket that it became.
    Request,
    /// The look-up of a name.
    Lookup,
    /// A stream that was not served, or in which nothing came that could be understood.
    Stream,
}

/// What was decided on an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditDecision {
    /// It went out.
    Allowed,
    /// It did not.
    Denied,
}

fn unix_millis<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    millis(
        &time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        to,
    )
}

fn millis<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn from_unix_millis<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let since = from_millis(from)?;
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .ok_or_else(|| serde::de::Error::custom("a time past all times"))
}

fn from_millis<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}
