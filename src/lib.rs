#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod builder;
mod command;
mod control;
mod error;
mod events;
mod exec;
pub mod kvm;
mod launch;
mod sandbox;
mod workspace;

/// The pages of `docs/`, so that their code is compiled.
#[cfg(doctest)]
mod documentation {
    #[doc = include_str!("../docs/artefacts.md")]
    mod artefacts {}
    #[doc = include_str!("../docs/audit.md")]
    mod audit {}
    #[doc = include_str!("../docs/backends.md")]
    mod backends {}
    #[doc = include_str!("../docs/credentials.md")]
    mod credentials {}
    #[doc = include_str!("../docs/network.md")]
    mod network {}
    #[doc = include_str!("../docs/egress.md")]
    mod egress {}
    #[doc = include_str!("../docs/policy.md")]
    mod policy {}
    #[doc = include_str!("../docs/workspace.md")]
    mod workspace {}
}

pub use builder::SandboxBuilder;
pub use command::{Child, Command, Output};
pub use error::LaunchError;
pub use events::Event;
pub use sandbox::Sandbox;
pub use sandbox_artifacts as artifacts;
pub use sandbox_core as core;
pub use sandbox_core::command::{ExitStatus, Stdin, User};
pub use sandbox_core::sandbox::ExecError;
pub use sandbox_core::size::Size;
pub use sandbox_kvm::{KvmBackend, KvmImages};
pub use sandbox_proxy as proxy;
pub use sandbox_proxy::{
    AuditKey, AuditLog, ChangeError, ClientCredential, Explanation, JsonLines, Limits, MemoryPrivacy, Rules,
    Service, UpstreamProxy, keep_memory_private, sources,
};
pub use workspace::WorkspaceError;
