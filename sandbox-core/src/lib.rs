//! The contract between the parts of `sandbox`: traits, validated value types and errors.
//!
//! No I/O happens here. A backend author reads [`backend`], a policy author [`policy`], an author of a
//! credential source [`credential`], and an orchestrator that wants to hold or fake sandboxes
//! [`sandbox`].

#![forbid(unsafe_code)]

pub mod audit;
pub mod backend;
pub mod command;
pub mod credential;
#[doc(hidden)]
pub mod defence;
pub mod host;
pub mod id;
pub mod path;
pub mod policy;
pub mod sandbox;
pub mod size;
pub mod stream;

pub use audit::{AuditEvent, AuditKind, AuditSink};
pub use backend::{Backend, Machine, MachineSpec};
pub use command::{CommandSpec, ExitStatus, Process};
pub use credential::{Credential, CredentialSource};
pub use host::{Host, HostName};
pub use id::SandboxId;
pub use path::GuestPath;
pub use policy::{Attempt, Decision, Policy, Verdict};
pub use sandbox::Sandbox;
pub use size::{CpuCount, Size};
pub use stream::{BoxStream, Stream};
