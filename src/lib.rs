//! Run AI coding agents in microVMs that hold no secrets.
//!
//! A [`Sandbox`] is a microVM with its own Linux kernel. An agent has full rights in it over one project
//! directory. Its only way out is a proxy on the host, which enforces a policy and adds credentials to
//! requests: the keys never enter the microVM.

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
pub use sandbox_proxy::{Rules, Service, sources};
pub use workspace::WorkspaceError;
