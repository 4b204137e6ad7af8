//! Why a sandbox was not launched.

use std::time::Duration;

use sandbox_core::backend::BackendError;
use sandbox_core::host::InvalidHost;
use sandbox_core::id::InvalidId;
use sandbox_core::path::InvalidGuestPath;
use sandbox_core::size::ImpossibleResource;

use crate::workspace::WorkspaceError;

/// Why [`launch`](crate::SandboxBuilder::launch) gave no sandbox. Nothing is left running or on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The workspace cannot be shared. Caller's fault.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// Memory, processors or disk that no machine can have. Caller's fault.
    #[error(transparent)]
    Resources(#[from] ImpossibleResource),
    /// A name that no sandbox can have. Caller's fault.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A path that names no place in a guest. Caller's fault.
    #[error(transparent)]
    GuestPath(#[from] InvalidGuestPath),
    /// A name for a fixed answer that no host can have. Caller's fault.
    #[error("{name:?} cannot be given a fixed answer")]
    Host {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        cause: InvalidHost,
    },
    /// Policy, credentials, fixed answers or certificates make no proxy. Caller's fault, or a credential that
    /// is not there.
    #[error(transparent)]
    Proxy(#[from] sandbox_proxy::ProxyError),
    /// A service's credential cannot be had.
    #[error(transparent)]
    Credential(#[from] sandbox_proxy::MissingCredential),
    /// Kernel, agent, helper or image is missing or of another build. Run the command it names.
    #[error(transparent)]
    Artefacts(#[from] sandbox_artifacts::ArtifactError),
    /// The backend started no machine.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The machine runs, and its agent did not come up. `console` holds the guest's last words.
    #[error("the guest did not come up: {why}\n--- last lines of its console ---\n{console}")]
    GuestDidNotComeUp {
        /// What was seen.
        why: String,
        /// Last console lines, control characters escaped.
        console: String,
    },
    /// The machine is slower than the start may take.
    #[error("the guest did not come up within {} s: raise it with .start_timeout()\n\
             --- last lines of its console ---\n{console}", limit.as_secs())]
    StartTimeout {
        /// The limit.
        limit: Duration,
        /// Last console lines, control characters escaped.
        console: String,
    },
    /// The agent in the image is of another build than this program.
    #[error(
        "the guest's agent is of build {found:?}, this program needs {expected:?}: run `cargo xtask artifacts`"
    )]
    OtherAgent {
        /// What was found.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// The agent came up and could not set the guest up.
    #[error("the guest could not be set up: {why}\n--- last lines of its console ---\n{console}")]
    Setup {
        /// The guest's words, escaped.
        why: String,
        /// Last console lines, control characters escaped.
        console: String,
    },
}
