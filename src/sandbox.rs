//! The handle of a running sandbox.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::backend::{Machine, MachineError, MachineExit, ports};
use sandbox_core::command::{CommandSpec, Process};
use sandbox_core::host::Host;
use sandbox_core::id::SandboxId;
use sandbox_core::policy::{InvalidPolicy, Policy, RequestLine, Scheme};
use sandbox_core::sandbox::ExecError;
use sandbox_protocol::control::Call;
use sandbox_proxy::{ChangeError, Explanation, Proxy, Rules};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::builder::SandboxBuilder;
use crate::command::Command;
use crate::control::Control;
use crate::events::Event;

/// How long a guest that has answered a shutdown may take to be gone.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may take to accept a command's stream; one that never answers must not hold its caller.
/// Generous: the slowest hosts take seconds under load.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How soon after the loss of a stream the machine's end is known, where that is why.
const EXIT_KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Why a stream was lost: where it broke because the machine ended, how that ended says more than `why`.
pub(crate) async fn why_lost(machine: &dyn Machine, why: String) -> String {
    match tokio::time::timeout(EXIT_KNOWN_WITHIN, machine.wait()).await {
        Ok(exit) => exit.to_string(),
        Err(_) => why,
    }
}

/// A running sandbox. Dropping the handle ends it at once and leaves nothing behind.
pub struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) control: Control,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) proxy: Proxy,
    pub(crate) kernel: String,
    /// Egress streams and the watch on the machine; ended with the handle.
    pub(crate) _tasks: JoinSet<()>,
}

impl Sandbox {
    /// Describes a sandbox.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::new()
    }

    /// Its name.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// A command to run in it, in the manner of `tokio::process::Command`.
    pub fn command(&self, program: impl Into<OsString>) -> Command<'_> {
        Command::new(self, program)
    }

    /// What happens from now on. A subscriber that falls far behind loses the oldest events and is told so.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Why a request to this host and port gets a credential, or why not: see [`Proxy::explain_credential`].
    pub fn explain_credential(
        &self,
        scheme: Scheme,
        host: &Host,
        port: u16,
        request: RequestLine<'_>,
    ) -> Explanation {
        self.proxy.explain_credential(scheme, host, port, request)
    }

    /// Replaces the policy: for every attempt and every request from now on, and for open tunnels, which end where
    /// the new policy does not allow them.
    ///
    /// # Errors
    /// The new policy cannot be used; the old one stays.
    pub fn set_policy(&self, policy: impl Policy + 'static) -> Result<(), InvalidPolicy> {
        self.proxy.set_policy(Arc::new(policy))
    }

    /// Changes the rules in force in one step, for instance one named set: `|rules| rules.set("task", 0, others)`.
    ///
    /// # Errors
    /// The policy in force is none of [`Rules`], or the changed ones have a mistake; nothing has changed then.
    pub fn change_rules(&self, change: impl FnOnce(Rules) -> Rules) -> Result<(), ChangeError> {
        self.proxy.change_rules(change)
    }

    /// The rules in force; `None` where the policy is not made of [`Rules`].
    pub fn rules(&self) -> Option<Rules> {
        self.proxy.rules()
    }

    /// Forgets what the approver answered for more than once: it is asked again.
    pub fn forget_answers(&self) {
        self.proxy.forget_answers();
    }

    /// Release of the guest's kernel, as the guest says.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Waits until the machine has ended, for whatever reason.
    pub async fn wait(&self) -> MachineExit {
        self.machine.wait().await
    }

    /// The last lines of the guest's console, control characters escaped.
    pub fn console_tail(&self) -> String {
        self.machine.console_tail()
    }

    /// Ends it in order: processes end, file systems are synced, the machine resets.
    ///
    /// # Errors
    /// When the guest does not comply; it is ended all the same.
    pub async fn shutdown(&self) -> Result<(), ExecError> {
        let asked = self.control.call(Call::Shutdown).await;
        let gone = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.machine.wait()).await;
        self.machine.kill().await;
        match (asked, gone) {
            (_, Ok(MachineExit::Shutdown)) => Ok(()),
            (Err(error), _) => Err(ExecError::Protocol {
                why: error.to_string(),
            }),
            (Ok(()), Ok(exit)) => Err(ExecError::SandboxEnded {
                why: exit.to_string(),
            }),
            (Ok(()), Err(_)) => Err(ExecError::Protocol {
                why: "the guest did not shut down in time".into(),
            }),
        }
    }

    /// Ends it at once and waits until nothing of it is left.
    pub async fn kill(&self) {
        self.machine.kill().await;
    }
}

#[async_trait]
impl sandbox_core::sandbox::Sandbox for Sandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn spawn(&self, command: CommandSpec) -> Result<Box<dyn Process>, ExecError> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.machine.connect(ports::EXEC)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(MachineError::Ended(exit))) => {
                return Err(ExecError::SandboxEnded {
                    why: exit.to_string(),
                });
            }
            Ok(Err(other)) => {
                return Err(ExecError::SpawnFailed {
                    message: other.to_string(),
                    errno: 0,
                });
            }
            Err(_) => {
                return Err(ExecError::SpawnFailed {
                    message: format!(
                        "the guest did not take the command within {} s",
                        CONNECT_TIMEOUT.as_secs()
                    ),
                    errno: 0,
                });
            }
        };
        crate::exec::spawn(stream, command, Arc::downgrade(&self.machine)).await
    }

    async fn shutdown(&self) -> Result<(), ExecError> {
        Sandbox::shutdown(self).await
    }

    async fn kill(&self) {
        Sandbox::kill(self).await;
    }
}
