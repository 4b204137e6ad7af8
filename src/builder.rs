//! What the user says of a sandbox. Nothing is opened, started or checked before [`SandboxBuilder::launch`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::audit::AuditSink;
use sandbox_core::backend::{Access, Backend};
use sandbox_core::credential::CredentialSource;
use sandbox_core::policy::{Approver, Policy};
use sandbox_core::size::Size;
use sandbox_proxy::{Limits, Resolver, Service, UpstreamProxy};

use crate::error::LaunchError;
use crate::sandbox::Sandbox;

/// Several times what the slowest hosts take (interpreted guest kernels) when nothing else runs there.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Describes a sandbox; made by [`Sandbox::builder`].
#[derive(Debug)]
#[must_use = "nothing happens before launch()"]
pub struct SandboxBuilder {
    pub(crate) name: Option<String>,
    pub(crate) workspace: Option<PathBuf>,
    pub(crate) despite_risk: bool,
    pub(crate) mounts: Vec<(PathBuf, Access)>,
    pub(crate) memory: Size,
    pub(crate) cpus: u32,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) policy: Option<Arc<dyn Policy>>,
    pub(crate) approver: Option<Arc<dyn Approver>>,
    pub(crate) approval_time: Option<Duration>,
    pub(crate) credentials: Vec<(Service, Arc<dyn CredentialSource>)>,
    pub(crate) answers: Vec<(String, Vec<IpAddr>)>,
    pub(crate) resolver: Option<Box<dyn Resolver>>,
    pub(crate) upstream_proxy: Option<UpstreamProxy>,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) audit: Vec<Arc<dyn AuditSink>>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) limits: Limits,
    pub(crate) backend: Option<Arc<dyn Backend>>,
    pub(crate) start_timeout: Duration,
}

impl SandboxBuilder {
    pub(crate) fn new() -> Self {
        Self {
            name: None,
            workspace: None,
            despite_risk: false,
            mounts: Vec::new(),
            memory: Size::mib(512),
            cpus: 1,
            env: Vec::new(),
            policy: None,
            approver: None,
            approval_time: None,
            credentials: Vec::new(),
            answers: Vec::new(),
            resolver: None,
            upstream_proxy: None,
            roots: Vec::new(),
            audit: Vec::new(),
            max_connections: None,
            limits: Limits::new(),
            backend: None,
            start_timeout: START_TIMEOUT,
        }
    }

    /// The directory the agent works on, with full rights, at the same absolute path as here. Required. Nothing
    /// else of the host is visible.
    ///
    /// `/`, system directories, home directories and directories with credentials are refused.
    pub fn workspace(mut self, directory: impl Into<PathBuf>) -> Self {
        self.workspace = Some(directory.into());
        self.despite_risk = false;
        self
    }

    /// As [`Self::workspace`], also for a home directory or one with credentials in it: the agent can then read
    /// them all, and change what your shell runs.
    pub fn workspace_despite_risk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.workspace = Some(directory.into());
        self.despite_risk = true;
        self
    }

    /// One more directory, read-only, at the same absolute path. Refused where [`Self::workspace`] would be: what the
    /// agent can read it can send to any host that you allow.
    pub fn read_only(mut self, directory: impl Into<PathBuf>) -> Self {
        self.mounts.push((directory.into(), Access::ReadOnly));
        self
    }

    /// Its name, which is also the guest's host name: 1 to 63 of `a-z`, `0-9` and `-`. Random by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Guest memory, 64 MiB to 1 TiB in whole MiB; 512 MiB by default.
    pub fn memory(mut self, memory: Size) -> Self {
        self.memory = memory;
        self
    }

    /// Virtual processors, 1 to 32; 1 by default.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// An environment variable of every command. Not for secrets: the guest sees it. Use
    /// [`Self::credential`].
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// What the sandbox may reach; nothing by default.
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// Who answers attempts for which the policy says to ask; without one they are denied.
    pub fn approver(mut self, approver: impl Approver + 'static) -> Self {
        self.approver = Some(Arc::new(approver));
        self
    }

    /// How long the approver may take for one question; after it the attempt is denied. One minute by default, a
    /// year at most.
    pub fn approval_time(mut self, limit: Duration) -> Self {
        self.approval_time = Some(limit);
        self
    }

    /// Adds the credential of `source` to requests to `service`, on the host. The guest never holds it. The
    /// policy must allow the service's hosts.
    pub fn credential(mut self, service: Service, source: impl CredentialSource + 'static) -> Self {
        self.credentials.push((service, Arc::new(source)));
        self
    }

    /// A fixed answer instead of DNS, for this name only: for stand-ins and split horizons. An address in a
    /// special range, such as loopback, needs a rule that permits it.
    pub fn resolve(mut self, name: impl Into<String>, address: IpAddr) -> Self {
        self.answers.push((name.into(), vec![address]));
        self
    }

    /// Who looks allowed names up, for instance [`NameServers`](sandbox_proxy::resolve::NameServers); the host's own
    /// resolver by default.
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Box::new(resolver));
        self
    }

    /// A proxy of the host's network through which allowed hosts are reached. See [`UpstreamProxy`] for which addresses
    /// can be vetted then.
    pub fn upstream_proxy(mut self, proxy: UpstreamProxy) -> Self {
        self.upstream_proxy = Some(proxy);
        self
    }

    /// One more root certificate, in PEM, that the proxy trusts when it dials out.
    pub fn trust(mut self, root_pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(root_pem.into());
        self
    }

    /// Where a record of each attempt to get out goes; any number of sinks.
    pub fn audit(mut self, sink: impl AuditSink + 'static) -> Self {
        self.audit.push(Arc::new(sink));
        self
    }

    /// How many streams out the sandbox may have open, and how many connections to upstream; at least one. By default
    /// an eighth of the descriptors that this process may have open, at most 1024.
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = Some(max_connections);
        self
    }

    /// What the sandbox may take of the network: bytes in all, bytes per second, and of each host bytes, requests and
    /// connections. Only the last is limited by default.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What runs the machine; KVM with the artefacts of `cargo xtask artifacts` by default.
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Some(Arc::new(backend));
        self
    }

    /// How long the guest may take to come up; 2 minutes by default.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Starts the sandbox and returns when it takes commands.
    ///
    /// Dropping the future leaves nothing running.
    ///
    /// # Errors
    /// [`LaunchError`] says whose fault it is and what to do.
    pub async fn launch(self) -> Result<Sandbox, LaunchError> {
        crate::launch::launch(self).await
    }
}
